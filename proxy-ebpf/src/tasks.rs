//! Following the children of processes that rules name.
//!
//! Attached only while some rule selects by `pid`. Threads have entries of their own, so that one that outlives
//! its group leader is still known.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::RawTracePointContext};

use crate::{
    globals::{Offsets, reads_tasks},
    kernel::field,
    maps::DESCENDANTS,
    policy::descends_from,
};

/// `sched_process_fork(parent, child)`: the child, process or thread, belongs where its parent does.
#[inline(always)]
pub fn fork(ctx: &RawTracePointContext) -> i32 {
    if let Some(root) = descends_from(bpf_get_current_pid_tgid())
        && reads_tasks()
    {
        let child: *const u8 = ctx.arg(1);
        if let Some(pid) = field::<u32>(child, Offsets::task_pid()) {
            let _ = DESCENDANTS.insert(pid, root, 0);
        }
    }
    0
}

/// `sched_process_exit(task)`: the current task.
#[inline(always)]
pub fn exit() -> i32 {
    let _ = DESCENDANTS.remove(bpf_get_current_pid_tgid() as u32);
    0
}
