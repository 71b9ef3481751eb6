// SPDX-License-Identifier: GPL-2.0-only
//! The values a shared word can hold, and which atomic stands behind each in the worlds that borrow one.

use std::fmt::Debug;
use std::sync::atomic::Ordering;

/// Operations common to std's and loom's atomics, so that both are used through one name.
pub trait WordOps<T> {
    #![expect(missing_docs, reason = "the names are std's")]
    fn new(v: T) -> Self;
    fn load(&self, o: Ordering) -> T;
    fn store(&self, v: T, o: Ordering);
    fn swap(&self, v: T, o: Ordering) -> T;
    fn compare_exchange(&self, old: T, new: T, o: Ordering) -> Result<T, T>;
}

/// [`WordOps`] of the integers.
pub trait IntOps<T>: WordOps<T> {
    #![expect(missing_docs, reason = "the names are std's")]
    fn fetch_add(&self, v: T, o: Ordering) -> T;
    fn fetch_sub(&self, v: T, o: Ordering) -> T;
    fn fetch_or(&self, v: T, o: Ordering) -> T;
    fn fetch_and(&self, v: T, o: Ordering) -> T;
}

/// A value that fits a shared word: an integer or a thin pointer.
pub trait Prim: Copy + PartialEq + Debug + 'static {
    /// Its atomic in std.
    type Std: WordOps<Self>;
    /// Its atomic in loom.
    type Loom: WordOps<Self>;
}

/// An integer word.
pub trait Int: Prim<Std: IntOps<Self>, Loom: IntOps<Self>> {}

macro_rules! word_ops {
    ($atomic:ty, $t:ty $(, $g:ident)?) => {
        impl$(<$g: 'static>)? WordOps<$t> for $atomic {
            #[inline(always)]
            fn new(v: $t) -> Self { <$atomic>::new(v) }
            #[inline(always)]
            fn load(&self, o: Ordering) -> $t { self.load(o) }
            #[inline(always)]
            fn store(&self, v: $t, o: Ordering) { self.store(v, o) }
            #[inline(always)]
            fn swap(&self, v: $t, o: Ordering) -> $t { self.swap(v, o) }
            #[inline(always)]
            fn compare_exchange(&self, old: $t, new: $t, o: Ordering) -> Result<$t, $t> {
                self.compare_exchange(old, new, o, Ordering::Relaxed)
            }
        }
    };
}
macro_rules! int_ops {
    ($atomic:ty, $t:ty) => {
        impl IntOps<$t> for $atomic {
            #[inline(always)]
            fn fetch_add(&self, v: $t, o: Ordering) -> $t {
                self.fetch_add(v, o)
            }
            #[inline(always)]
            fn fetch_sub(&self, v: $t, o: Ordering) -> $t {
                self.fetch_sub(v, o)
            }
            #[inline(always)]
            fn fetch_or(&self, v: $t, o: Ordering) -> $t {
                self.fetch_or(v, o)
            }
            #[inline(always)]
            fn fetch_and(&self, v: $t, o: Ordering) -> $t {
                self.fetch_and(v, o)
            }
        }
    };
}
macro_rules! prim_int {
    ($($t:ty => $a:ident),*) => { $(
        word_ops!(std::sync::atomic::$a, $t);
        int_ops!(std::sync::atomic::$a, $t);
        word_ops!(::loom::sync::atomic::$a, $t);
        int_ops!(::loom::sync::atomic::$a, $t);
        impl Prim for $t {
            type Std = std::sync::atomic::$a;
            type Loom = ::loom::sync::atomic::$a;
        }
        impl Int for $t {}
    )* };
}
prim_int!(u8 => AtomicU8, u16 => AtomicU16, u32 => AtomicU32, i32 => AtomicI32, u64 => AtomicU64, i64 => AtomicI64,
          usize => AtomicUsize, isize => AtomicIsize);

word_ops!(std::sync::atomic::AtomicPtr<P>, *mut P, P);
word_ops!(::loom::sync::atomic::AtomicPtr<P>, *mut P, P);
impl<P: 'static> Prim for *mut P {
    type Std = std::sync::atomic::AtomicPtr<P>;
    type Loom = ::loom::sync::atomic::AtomicPtr<P>;
}
