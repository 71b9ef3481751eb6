// SPDX-License-Identifier: GPL-2.0-only
//! Stacks: the only file of the project that switches them.
//!
//! A [`Coro`] runs one job on a stack of its own until the job suspends itself or ends. A panic of the job is caught
//! on its own stack and handed back as a value, so nothing ever unwinds across a switch and the release profile's
//! `panic = "abort"` changes only who reports it. A coroutine that will never be resumed is leaked, stack and all,
//! rather than unwound: its frames may hold references to a machine that has just failed.

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::any::Any;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes of a virtual CPU's stack. Only touched pages are backed; a guard page lies below.
const STACK_SIZE: usize = 256 << 10;

/// How a job ended.
pub(super) type Ended = Result<(), Box<dyn Any + Send>>;

/// Where a running job finds the way back to the run loop.
pub(super) type Handle = *const Yielder<(), ()>;

/// A stack to run on.
pub(super) struct Stack(DefaultStack);

impl Stack {
    /// A fresh stack.
    pub(super) fn new() -> Stack {
        Stack(DefaultStack::new(STACK_SIZE).expect("address space for a virtual CPU's stack"))
    }
}

/// A job on its stack.
pub(super) struct Coro(ManuallyDrop<Coroutine<(), (), Ended>>);

impl Coro {
    /// Puts `job` on `stack`; it starts with the first [`Coro::resume`], and first tells `started` its [`Handle`].
    ///
    /// # Safety
    /// What `job` and `started` borrow lives until the job has ended, or the coroutine is never resumed again.
    pub(super) unsafe fn new<'a>(
        stack: Stack,
        started: impl FnOnce(Handle) + 'a,
        job: Box<dyn FnOnce() + Send + 'a>,
    ) -> Coro {
        // SAFETY: the caller's; with_stack asks for the same.
        let c = unsafe {
            Coroutine::with_stack_unchecked(stack.0, move |y: &Yielder<(), ()>, ()| {
                started(y);
                catch_unwind(AssertUnwindSafe(job))
            })
        };
        Coro(ManuallyDrop::new(c))
    }

    /// Runs the job until it suspends itself (`None`) or ends.
    pub(super) fn resume(&mut self) -> Option<Ended> {
        match self.0.resume(()) {
            CoroutineResult::Yield(()) => None,
            CoroutineResult::Return(r) => Some(r),
        }
    }

    /// The stack of a job that has ended.
    pub(super) fn into_stack(self) -> Stack {
        Stack(ManuallyDrop::into_inner(self.0).into_stack())
    }
}

/// Goes back to the run loop; returns when the job is resumed.
///
/// # Safety
/// `h` is the handle of the job that is running.
#[inline(always)]
pub(super) unsafe fn suspend(h: Handle) {
    // SAFETY: the yielder lives at the root of the running job's stack.
    unsafe { (*h).suspend(()) }
}
