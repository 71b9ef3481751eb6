// SPDX-License-Identifier: GPL-2.0-only
//! Lock event counters under the names of debugfs `lock_event_counts` [kernel/locking/lock_events_list.h, 6.12], so
//! that a real kernel's can be put beside them.
//!
//! dup: the names and what each counts. stub: the paravirtual events.

crate::counters! {
    /// What happened off the fast paths of the locks.
    pub enum LockEvent in 0..24 => {
        /// Spinlock taken through the pending bit.
        LockPending = "lock_pending",
        /// Spinlock taken through the queue (or by the trylock right before it).
        LockSlowpath = "lock_slowpath",
        /// Second node of the CPU used.
        LockUseNode2 = "lock_use_node2",
        /// Third node of the CPU used.
        LockUseNode3 = "lock_use_node3",
        /// Fourth node of the CPU used.
        LockUseNode4 = "lock_use_node4",
        /// No node left: taken by test-and-set.
        LockNoNode = "lock_no_node",
        /// Reader sleeps.
        RwsemSleepReader = "rwsem_sleep_reader",
        /// Writer sleeps.
        RwsemSleepWriter = "rwsem_sleep_writer",
        /// Reader wake-ups.
        RwsemWakeReader = "rwsem_wake_reader",
        /// Writer wake-ups.
        RwsemWakeWriter = "rwsem_wake_writer",
        /// Write locks taken while spinning.
        RwsemOptLock = "rwsem_opt_lock",
        /// Spins that failed or were not begun.
        RwsemOptFail = "rwsem_opt_fail",
        /// Spins on readers that ran out of time.
        RwsemOptNospin = "rwsem_opt_nospin",
        /// Read locks granted to a queued reader.
        RwsemRlock = "rwsem_rlock",
        /// Read locks stolen past the queue.
        RwsemRlockSteal = "rwsem_rlock_steal",
        /// Read locks taken under `wait_lock` without queueing.
        RwsemRlockFast = "rwsem_rlock_fast",
        /// Queued readers that a fatal signal took away.
        RwsemRlockFail = "rwsem_rlock_fail",
        /// Handoffs asked for by a reader.
        RwsemRlockHandoff = "rwsem_rlock_handoff",
        /// Write locks taken by a queued writer.
        RwsemWlock = "rwsem_wlock",
        /// Queued writers that a fatal signal took away.
        RwsemWlockFail = "rwsem_wlock_fail",
        /// Handoffs asked for by a writer.
        RwsemWlockHandoff = "rwsem_wlock_handoff",
    }
}
