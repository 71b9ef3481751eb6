// SPDX-License-Identifier: GPL-2.0-only
//! What `kfree_rcu()` is made of: the block of pointers, the batch, the block of a CPU [struct kvfree_rcu_bulk_data,
//! kfree_rcu_cpu_work and kfree_rcu_cpu of kernel/rcu/tree.c, 6.12]. Who may change what is said in `kvfree_rcu.rs`.

use super::kvfree_rcu::KvfreeRcu;
use super::stat::Unpriced;
use crate::arch::arena::PAGE_SIZE;
use crate::arch::{Atomic, Hardware, Plain, Relaxed};
use crate::cpu::workqueue::Work;
use crate::rcu::{RcuGpOldstate, RcuHead};
use crate::sync::RawSpinLock;
use std::mem::offset_of;
use std::ptr::null_mut;

/// `KFREE_N_BATCHES`
pub(super) const KFREE_N_BATCHES: usize = 2;
/// `KVFREE_BULK_MAX_ENTR`: pointers of a block.
pub const KVFREE_BULK_MAX_ENTR: usize = (PAGE_SIZE - 40) / size_of::<usize>();

/// `struct kvfree_rcu_bulk_data`: a block, one page.
#[repr(C)]
pub(super) struct KvfreeRcuBulkData<A: Hardware> {
    pub(super) next: Plain<A, *mut KvfreeRcuBulkData<A>>,
    pub(super) prev: Plain<A, *mut KvfreeRcuBulkData<A>>,
    pub(super) gp_snap: [Plain<A, u64>; 2],
    pub(super) nr_records: Plain<A, u64>,
    pub(super) records: [Plain<A, *mut u8>; KVFREE_BULK_MAX_ENTR],
}

const _: () = {
    type B = KvfreeRcuBulkData<crate::arch::Native>;
    assert!(KVFREE_BULK_MAX_ENTR == 507 && offset_of!(B, records) == 40 && size_of::<B>() == PAGE_SIZE);
};

/// A list of blocks, newest first.
#[repr(C)]
pub(super) struct BulkList<A: Hardware> {
    pub(super) first: Atomic<A, *mut KvfreeRcuBulkData<A>>,
    pub(super) last: Plain<A, *mut KvfreeRcuBulkData<A>>,
}

impl<A: Hardware> BulkList<A> {
    pub(super) fn new() -> Self {
        BulkList { first: Atomic::new(null_mut()), last: Plain::new(null_mut()) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.load(Relaxed).is_null()
    }

    /// `list_add()`
    ///
    /// # Safety
    /// `b` is a block on no list; the list's lock is held.
    pub(super) unsafe fn add(&self, b: *mut KvfreeRcuBulkData<A>) {
        let first = self.first.load(Relaxed);
        // SAFETY: the caller's; members of the list are blocks.
        unsafe {
            (*b).prev.set(null_mut());
            (*b).next.set(first);
            if first.is_null() {
                self.last.set(b);
            } else {
                (*first).prev.set(b);
            }
        }
        self.first.store(b, Relaxed);
    }

    /// Takes the oldest off.
    ///
    /// # Safety
    /// The list's lock is held; the list is not empty.
    pub(super) unsafe fn del_last(&self) -> *mut KvfreeRcuBulkData<A> {
        let b = self.last.get();
        // SAFETY: the caller's.
        let prev = unsafe { (*b).prev.get() };
        self.last.set(prev);
        if prev.is_null() {
            self.first.store(null_mut(), Relaxed);
        } else {
            // SAFETY: a member.
            unsafe { (*prev).next.set(null_mut()) };
        }
        b
    }

    /// `list_replace_init()`: all of it; the newest.
    pub(super) fn take(&self) -> *mut KvfreeRcuBulkData<A> {
        let first = self.first.load(Relaxed);
        self.first.store(null_mut(), Relaxed);
        self.last.set(null_mut());
        first
    }
}

/// `struct kfree_rcu_cpu_work`: a batch, which waits for a grace period and then for the kworker.
#[repr(C)]
pub(super) struct KfreeRcuCpuWork<A: Hardware> {
    /// `rcu_work`: its work and its head.
    pub(super) work: Work<A>,
    pub(super) rcu: RcuHead<A>,
    pub(super) head_free: Atomic<A, *mut RcuHead<A>>,
    pub(super) head_free_gp_snap: [Plain<A, u64>; 2],
    pub(super) bulk_head_free: BulkList<A>,
    pub(super) krcp: Plain<A, *mut KfreeRcuCpu<A>>,
}

/// `struct kfree_rcu_cpu`
#[repr(C, align(64))]
pub(super) struct KfreeRcuCpu<A: Hardware> {
    pub(super) head: Atomic<A, *mut RcuHead<A>>,
    pub(super) head_gp_snap: Plain<A, u64>,
    pub(super) head_count: Atomic<A, u32>,
    pub(super) bulk_head: BulkList<A>,
    pub(super) bulk_count: Atomic<A, u32>,
    pub(super) krw_arr: [KfreeRcuCpuWork<A>; KFREE_N_BATCHES],
    pub(super) lock: RawSpinLock<A>,
    pub(super) monitor_work: Work<A>,
    /// When the timer of the monitor fires, jiffies; 0: it is not armed.
    pub(super) monitor_expires: Atomic<A, u64>,
    /// It was armed to fire at the next jiffy: nothing is sooner.
    pub(super) monitor_soon: Plain<A, u8>,
    /// The CPU at whose tick it does.
    pub(super) monitor_cpu: Atomic<A, u32>,
    pub(super) page_cache_work: Work<A>,
    pub(super) work_in_progress: Atomic<A, u32>,
    pub(super) bkvcache: Plain<A, *mut KvfreeRcuBulkData<A>>,
    pub(super) nr_bkv_objs: Atomic<A, u32>,
    /// Back to the state that owns it: a work is given nothing else.
    pub(super) state: Plain<A, *mut KvfreeRcu<A>>,
    pub(super) stat: KvfreeStats,
}

/// What is counted: by the CPU that queues, and by the one that frees.
#[derive(Default)]
pub(super) struct KvfreeStats {
    pub(super) queued: Counter,
    pub(super) freed: Counter,
    pub(super) chained: Counter,
    pub(super) blocks: Counter,
    pub(super) monitors: Counter,
    pub(super) batches: Counter,
    pub(super) busy: Counter,
}

pub(super) struct Counter(pub(super) Unpriced);
impl Default for Counter {
    fn default() -> Self {
        Counter(Plain::new(0))
    }
}
impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.set(self.0.get().wrapping_add(n));
    }
}

pub(super) fn load_snap<A: Hardware>(s: &[Plain<A, u64>; 2]) -> RcuGpOldstate {
    RcuGpOldstate { rgos_norm: s[0].get(), rgos_exp: s[1].get() }
}

pub(super) fn store_snap<A: Hardware>(s: &[Plain<A, u64>; 2], v: RcuGpOldstate) {
    s[0].set(v.rgos_norm);
    s[1].set(v.rgos_exp);
}
