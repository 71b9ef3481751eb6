// SPDX-License-Identifier: GPL-2.0-only
//! liburcu, if the host has it: its flavours `memb`, `mb` and `qsbr`, loaded at run time, so that nothing is linked and
//! nothing is missing where it is not.
//!
//! Through the library a reader is a call. A program that is compiled against its headers has it inlined, which is what
//! the targets are set from: [`Words`] are the library's own words (its grace period's counter, the thread's), and the
//! readers and the quiescent state of the headers are written here over them, the rare parts being left to the library.
//!
//! A callback is called by a thread of liburcu's. Where a bench makes a thread its own ([`Liburcu::worker`]), it names
//! the CPU of that worker; the default one runs where [`Flavours::load`] was told.

use faultline::host::affinity;
use std::ffi::{CStr, CString, c_int, c_ulong, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering, compiler_fence, fence};

/// `struct rcu_head` of liburcu.
#[repr(C, align(64))]
pub struct UrcuHead {
    next: *mut UrcuHead,
    func: usize,
}

impl Default for UrcuHead {
    fn default() -> Self {
        UrcuHead { next: null_mut(), func: 0 }
    }
}

/// What is called after a grace period.
pub type Callback = unsafe extern "C" fn(*mut UrcuHead);
type Plain = unsafe extern "C" fn();

/// One flavour.
pub struct Liburcu {
    /// Enters a read-side section.
    pub read_lock: Plain,
    /// Leaves it.
    pub read_unlock: Plain,
    /// Queues a callback.
    pub call_rcu: unsafe extern "C" fn(*mut UrcuHead, Callback),
    /// Waits for all callbacks queued so far.
    pub barrier: Plain,
    /// Waits for a grace period.
    pub synchronize_rcu: Plain,
    /// Makes the calling thread one that grace periods wait for.
    pub register_thread: Plain,
    /// The opposite.
    pub unregister_thread: Plain,
    /// Reports a quiescent state; of `qsbr` alone, elsewhere nothing.
    pub quiescent_state: Plain,
    create_call_rcu_data: unsafe extern "C" fn(c_ulong, c_int) -> *mut c_void,
    set_thread_call_rcu_data: unsafe extern "C" fn(*mut c_void),
    call_rcu_data_free: unsafe extern "C" fn(*mut c_void),
    get_default_call_rcu_data: unsafe extern "C" fn() -> *mut c_void,
    /// `struct urcu_gp`: the counter, then a futex.
    gp: *const AtomicU64,
    has_membarrier: Option<*const AtomicI32>,
    reader: CString,
    lib: *mut c_void,
}

// SAFETY: functions and words of a library that is for threads and is never unloaded.
unsafe impl Sync for Liburcu {}

extern "C" fn nothing() {}

impl Liburcu {
    /// # Safety
    /// `name` is a flavour: its symbols are those of the library's headers.
    unsafe fn load(name: &str) -> Option<Liburcu> {
        let open = |file: String| {
            let file = CString::new(file).expect("no zero in it");
            // SAFETY: loading the library runs its constructor only.
            let lib = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW) };
            (!lib.is_null()).then_some(lib)
        };
        let lib = open(format!("liburcu-{name}.so.8")).or_else(|| open(format!("liburcu-{name}.so")))?;
        let symbol = |what: &str| CString::new(format!("urcu_{name}_{what}")).expect("no zero in it");
        let find = |what: &str| find(lib, &symbol(what));
        // SAFETY: functions of these signatures, as its headers declare them.
        unsafe {
            let plain = |what: &str| find(what).map(|f| std::mem::transmute::<*mut c_void, Plain>(f));
            Some(Liburcu {
                read_lock: plain("read_lock")?,
                read_unlock: plain("read_unlock")?,
                call_rcu: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut UrcuHead, Callback)>(find(
                    "call_rcu",
                )?),
                barrier: plain("barrier")?,
                synchronize_rcu: plain("synchronize_rcu")?,
                register_thread: plain("register_thread")?,
                unregister_thread: plain("unregister_thread")?,
                quiescent_state: plain("quiescent_state").unwrap_or(nothing),
                create_call_rcu_data: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(c_ulong, c_int) -> *mut c_void,
                >(find("create_call_rcu_data")?),
                set_thread_call_rcu_data: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(find(
                    "set_thread_call_rcu_data",
                )?),
                call_rcu_data_free: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(find(
                    "call_rcu_data_free",
                )?),
                get_default_call_rcu_data: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *mut c_void>(
                    find("get_default_call_rcu_data")?,
                ),
                gp: find("gp")?.cast(),
                has_membarrier: find("has_sys_membarrier").map(|p| p.cast_const().cast()),
                reader: symbol("reader"),
                lib,
            })
        }
    }

    /// The words of the calling thread, which must be registered while they are used.
    pub fn words(&self) -> Words {
        // The address of a thread's own variable is the calling thread's.
        let ctr = find(self.lib, &self.reader).expect("it exports its reader");
        // SAFETY: 8-byte counters at the beginning of both structures, the futex behind the one of the grace period; they
        // live as long as the thread and the library, and are only touched as atomics here.
        unsafe {
            Words {
                ctr: &*ctr.cast_const().cast(),
                gp: &*self.gp,
                futex: &*self.gp.add(1).cast(),
                has_membarrier: self.has_membarrier.map(|p| &*p),
                lock: self.read_lock,
                unlock: self.read_unlock,
                quiescent_state: self.quiescent_state,
            }
        }
    }

    /// Registers the calling thread until the end of the guard.
    pub fn registered(&self) -> Registered<'_> {
        // SAFETY: undone by the guard, which does not leave the thread.
        unsafe { (self.register_thread)() };
        Registered(self, PhantomData)
    }

    /// Gives the calling thread a worker of its own, on `cpu`, until the end of the guard.
    pub fn worker(&self, cpu: u32) -> Worker<'_> {
        // SAFETY: a worker of ours; the guard frees it.
        unsafe { Worker(self, (self.create_call_rcu_data)(0, cpu as c_int)) }
    }
}

fn find(lib: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: an open library and a name.
    let p = unsafe { libc::dlsym(lib, name.as_ptr()) };
    (!p.is_null()).then_some(p)
}

/// A registered thread.
pub struct Registered<'a>(&'a Liburcu, PhantomData<*mut ()>);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        // SAFETY: registered by this thread.
        unsafe { (self.0.unregister_thread)() };
    }
}

/// A thread of liburcu's that calls the callbacks of whoever uses it.
pub struct Worker<'a>(&'a Liburcu, *mut c_void);

impl Worker<'_> {
    /// From here on the calling thread queues to this worker; `false`: to the default one again.
    pub fn of_this_thread(&self, on: bool) {
        // SAFETY: it lives until the guard ends.
        unsafe { (self.0.set_thread_call_rcu_data)(if on { self.1 } else { null_mut() }) };
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.of_this_thread(false);
        // SAFETY: nobody queues to it any more; what it still holds goes to the default one.
        unsafe { (self.0.call_rcu_data_free)(self.1) };
    }
}

/// Words that the headers' inlined functions touch.
#[derive(Clone, Copy)]
pub struct Words {
    ctr: &'static AtomicU64,
    gp: &'static AtomicU64,
    futex: &'static AtomicI32,
    has_membarrier: Option<&'static AtomicI32>,
    lock: Plain,
    unlock: Plain,
    quiescent_state: Plain,
}

/// Nesting is counted in the lower half of the reader's counter.
const NEST_MASK: u64 = (1 << 32) - 1;

impl Words {
    /// Readers leave the full fence to the writer where the kernel has membarrier(2).
    #[inline(always)]
    fn light_fence(&self) {
        match self.has_membarrier {
            Some(has) if has.load(Ordering::Relaxed) != 0 => compiler_fence(Ordering::SeqCst),
            _ => fence(Ordering::SeqCst),
        }
    }

    /// Enters a read-side section of `memb`.
    #[inline(always)]
    pub fn read_lock(&self) {
        let n = self.ctr.load(Ordering::Relaxed);
        if n & NEST_MASK == 0 {
            self.ctr.store(self.gp.load(Ordering::Relaxed), Ordering::Relaxed);
            self.light_fence();
        } else {
            self.ctr.store(n + 1, Ordering::Relaxed);
        }
    }

    /// Leaves it.
    #[inline(always)]
    pub fn read_unlock(&self) {
        let n = self.ctr.load(Ordering::Relaxed);
        if n & NEST_MASK == 1 {
            self.light_fence();
            self.ctr.store(n - 1, Ordering::Relaxed);
            self.light_fence();
            if self.futex.load(Ordering::Relaxed) == -1 {
                self.wake();
            }
        } else {
            self.ctr.store(n - 1, Ordering::Relaxed);
        }
    }

    /// A grace period sleeps: the library's own unlock wakes it.
    #[cold]
    #[inline(never)]
    fn wake(&self) {
        // SAFETY: the thread is registered; a pair.
        unsafe {
            (self.lock)();
            (self.unlock)();
        }
    }

    /// A quiescent state of `qsbr`, reported if there is somebody to tell.
    #[inline(always)]
    pub fn quiescent_state(&self) {
        if self.gp.load(Ordering::Relaxed) != self.ctr.load(Ordering::Relaxed) {
            // SAFETY: the thread is registered.
            unsafe { (self.quiescent_state)() };
        }
    }
}

/// The flavours that this host has.
pub struct Flavours {
    /// Readers without fences, writers with membarrier(2).
    pub memb: Option<Liburcu>,
    /// Readers with fences.
    pub mb: Option<Liburcu>,
    /// Readers that do nothing and report quiescent states.
    pub qsbr: Option<Liburcu>,
}

impl Flavours {
    /// Loads them and starts each one's default worker on `cpu`.
    pub fn load(cpu: u32) -> Flavours {
        // SAFETY: names of flavours.
        let [memb, mb, qsbr] = ["memb", "mb", "qsbr"].map(|name| unsafe { Liburcu::load(name) });
        let all = Flavours { memb, mb, qsbr };
        // A worker keeps the CPUs of the thread that made it.
        std::thread::scope(|s| {
            s.spawn(|| {
                let _ = affinity::pin(cpu);
                for u in all.each() {
                    // SAFETY: makes the worker if there is none.
                    unsafe { (u.1.get_default_call_rcu_data)() };
                }
            });
        });
        all
    }

    /// Those that there are, with the names of their contenders.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &Liburcu)> {
        let named = [(MEMB, &self.memb), (MB, &self.mb), (QSBR, &self.qsbr)];
        named.into_iter().filter_map(|(name, u)| Some((name, u.as_ref()?)))
    }
}

/// Through the library.
pub const MEMB: &str = "liburcu memb, called";
/// As above.
pub const MB: &str = "liburcu mb, called";
/// As above.
pub const QSBR: &str = "liburcu qsbr, called";
/// As with its headers.
pub const MEMB_INLINED: &str = "liburcu memb, inlined";
/// As above.
pub const QSBR_INLINED: &str = "liburcu qsbr, inlined";
