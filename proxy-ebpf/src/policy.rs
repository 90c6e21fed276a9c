//! `decide` over the kernel's own maps and the current task.

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::bpf_get_current_ancestor_cgroup_id,
    },
};
use proxy_common::{
    Action, Addr, Areas, BePort, Bindings, Cell, CellKey, Crossings, Draws, MemberKey, Membership,
    Policy, PrefixKey, RuleRef, RuleSet, Seat, SeatKey, Subject, Tables, Wheels,
};

use crate::{
    kernel::current_exe,
    maps::{
        ACTIONS, AREAS, CELLS, DESCENDANTS, HOSTS, MEMBERS, POLICY, PORTS, PREFIXES,
        REVERSE_ACTIONS, SEATS, TRANSIT_ACTIONS, WHEELS,
    },
};

/// The policy maps.
pub struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn policy(&self) -> Option<&Policy> {
        let policy = POLICY.get(0)?;
        (policy.generation != 0).then_some(policy)
    }

    #[inline(always)]
    fn prefix(&self, key: &PrefixKey) -> Option<&RuleSet> {
        PREFIXES.get(&Key::new(PrefixKey::FULL_BITS, *key))
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> Option<&Membership> {
        // SAFETY: entries of a generation are not changed while it is in force, except by replacing an element
        // whole; a stale copy is a decision that was right a moment ago.
        unsafe { MEMBERS.get(key) }
    }

    #[inline(always)]
    fn action(&self, rule: RuleRef) -> Option<&Action> {
        ACTIONS.get(rule.slot())
    }
}

impl Bindings for KernelTables {
    #[inline(always)]
    fn host(&self, key: &PrefixKey) -> Option<&Areas> {
        // SAFETY: as in `member`.
        unsafe { HOSTS.get(key) }
    }

    #[inline(always)]
    fn areas(&self, key: &PrefixKey) -> Option<&Areas> {
        AREAS.get(&Key::new(PrefixKey::FULL_BITS, *key))
    }

    #[inline(always)]
    fn single(&self, key: &CellKey) -> Option<&Cell> {
        // SAFETY: as in `member`.
        unsafe { PORTS.get(key) }
    }

    #[inline(always)]
    fn cell(&self, key: &CellKey) -> Option<&Cell> {
        CELLS.get(&Key::new(CellKey::FULL_BITS, *key))
    }

    #[inline(always)]
    fn arrival_action(&self, rule: RuleRef) -> Option<&Action> {
        REVERSE_ACTIONS.get(rule.slot())
    }
}

impl Crossings for KernelTables {
    #[inline(always)]
    fn transit_action(&self, rule: RuleRef) -> Option<&Action> {
        TRANSIT_ACTIONS.get(rule.slot())
    }
}

impl Draws for KernelTables {
    #[inline(always)]
    fn wheels(&self, group: u32) -> Option<&Wheels> {
        // SAFETY: an element is replaced whole, and what an old one names stays for longer than a program runs.
        unsafe { WHEELS.get(group) }
    }

    #[inline(always)]
    fn seat(&self, key: &SeatKey) -> Option<&Seat> {
        // SAFETY: elements are never changed, and removed long after the last program could find them.
        unsafe { SEATS.get(key) }
    }
}

/// The task that calls `connect()`, and where to.
pub struct Connector {
    pub addr: Addr,
    pub port: BePort,
}

impl Subject for Connector {
    #[inline(always)]
    fn dest(&self) -> Addr {
        self.addr
    }

    #[inline(always)]
    fn port(&self) -> BePort {
        self.port
    }

    #[inline(always)]
    fn uid(&self) -> u32 {
        bpf_get_current_uid_gid() as u32
    }

    #[inline(always)]
    fn gid(&self) -> u32 {
        (bpf_get_current_uid_gid() >> 32) as u32
    }

    #[inline(always)]
    fn cgroup(&self, level: u32) -> u64 {
        // SAFETY: a plain number in, a plain number out.
        unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
    }

    #[inline(always)]
    fn exe(&self) -> Option<(u64, u64)> {
        current_exe()
    }

    #[inline(always)]
    fn descends_from(&self) -> Option<u32> {
        descends_from(bpf_get_current_pid_tgid())
    }
}

/// The process of a rule that a task descends from, by `tgid << 32 | tid`. The thread counts too: a thread that
/// outlives its group leader has only its own entry left.
#[inline(always)]
pub fn descends_from(pid_tgid: u64) -> Option<u32> {
    let (process, thread) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    // SAFETY: the value is one aligned word.
    unsafe {
        DESCENDANTS
            .get(process)
            .or_else(|| DESCENDANTS.get(thread))
            .copied()
    }
}
