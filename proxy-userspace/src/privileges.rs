//! What this process may do: capabilities and open files. It asks for what it needs, and gives up the rest.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::{
    prctl,
    resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
    utsname::uname,
};
use socket2::{Domain, Socket, Type};

use crate::failure::Failure;

/// Files that are no connections: programs, maps, listeners, logs. About 150 with rules of all roles, and some for who asks and what is
/// checked.
const RESERVED_FILES: u64 = 256;
/// Both sockets of a relayed connection.
const FILES_PER_CONNECTION: u64 = 2;

/// A capability, and what it is for.
pub(crate) type Privilege = (Capability, &'static str);

/// What a daemon needs, and what for.
pub(crate) const NEEDED: [Privilege; 3] = [
    (Capability::CAP_BPF, "load eBPF programs"),
    (Capability::CAP_NET_ADMIN, "attach them to cgroups"),
    // Without it the verifier follows every path that a processor may guess wrongly, and gives up on ours.
    READ_TASKS,
];

/// What a daemon makes use of where it has it.
pub(crate) const USEFUL: [Privilege; 3] = [
    (
        Capability::CAP_NET_RAW,
        "connect from addresses of clients (`keep_source`) in threads that would need CAP_NET_ADMIN for it otherwise",
    ),
    (
        Capability::CAP_SYS_PTRACE,
        "tell the executable of other users' processes in close records, and steer to their listeners",
    ),
    (
        Capability::CAP_DAC_READ_SEARCH,
        "read configurations and secrets of other users",
    ),
];

/// What rules with `exe` or `pid` need.
pub(crate) const READ_TASKS: Privilege = (
    Capability::CAP_PERFMON,
    "have the programs verified, and select by executable and process id",
);
/// What rules with `on_relay_failure = "refuse"` need where there is no bpffs.
pub(crate) const MOUNT: Privilege = (
    Capability::CAP_SYS_ADMIN,
    "mount a bpffs for rules with `on_relay_failure = \"refuse\"`",
);
/// What a sidecar needs for rules with `on_relay_failure = "refuse"`.
pub(crate) const FIND_GUARD: Privilege = (
    Capability::CAP_SYS_ADMIN,
    "find what a killed sidecar has left of rules with `on_relay_failure = \"refuse\"` (it is given up before anything is served)",
);
/// What rules with `container` need.
pub(crate) const ENTER: Privilege = (
    Capability::CAP_SYS_ADMIN,
    "open listeners in the network namespaces of containers (`container`; one thread has it, all others give it up)",
);
/// What they need beside it.
pub(crate) const SEE_NAMESPACES: Privilege = (
    Capability::CAP_SYS_PTRACE,
    "see which network namespaces processes of containers are in (`container`)",
);
/// What the demonstration needs.
pub(crate) const NAMESPACE: Privilege = (
    Capability::CAP_SYS_ADMIN,
    "make a network namespace (`culvert demo`)",
);
/// What it takes to find another daemon and its maps.
pub(crate) const TAKE_OVER: Privilege = (
    Capability::CAP_SYS_ADMIN,
    "take over from another culvert (--takeover)",
);
/// What looking around needs.
pub(crate) const SURVEY: Privilege = (
    Capability::CAP_SYS_ADMIN,
    "name the programs of others (`culvert doctor`)",
);

/// What a thread that relays keeps: it handles what strangers send.
const WORKER: [Capability; 3] = [
    // Kernels before 5.19 want it for every bpf(2) call where unprivileged users may not use it.
    Capability::CAP_BPF,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
];

/// Checks that programs can be loaded and attached.
///
/// # Errors
/// A missing privilege, with what it is for.
pub(crate) fn require() -> Result<()> {
    if is_in_user_namespace() {
        return Err(Failure::missing(
            "this is a user namespace, whose capabilities do not count for eBPF programs; start culvert outside of it: a container \
             without user namespace (no `hostUsers: false`, no `--userns`, not rootless)",
        )
        .into());
    }
    require_all(&NEEDED)
}

/// Whether this process is in another user namespace than the first, which has a number of its own (`PROC_USER_INIT_INO` in
/// `include/linux/proc_ns.h`).
fn is_in_user_namespace() -> bool {
    const FIRST: u64 = 0xEFFF_FFFD;
    fs::metadata("/proc/self/ns/user").is_ok_and(|namespace| namespace.ino() != FIRST)
}

/// Checks that all of some privileges are there.
///
/// # Errors
/// Those that are not, with what they are for.
pub(crate) fn require_all(privileges: &[Privilege]) -> Result<()> {
    let missing: Vec<_> = privileges
        .iter()
        .filter(|(capability, _)| !has(*capability))
        .map(|(capability, purpose)| format!("{capability} to {purpose}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::missing(format!(
        "culvert needs {}; run it as root, or give the service these capabilities",
        missing.join(" and ")
    ))
    .into())
}

/// Whether this thread may use a capability. `CAP_SYS_ADMIN` implies `CAP_BPF` and `CAP_PERFMON` (capabilities(7)).
pub(crate) fn has(capability: Capability) -> bool {
    let effective =
        |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let implied = matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
    effective(capability) || implied && effective(Capability::CAP_SYS_ADMIN)
}

/// Gives up what a daemon has no use for, for good; whether it may have to mount something, or to enter namespaces, is for the caller
/// to say. To be called before threads are started: all of it is per thread, and inherited. A daemon starts no other program.
///
/// # Errors
/// When the kernel refuses to take them.
pub(crate) fn keep_what_a_daemon_needs(is_admin: bool) -> Result<()> {
    prctl::set_no_new_privs().context("cannot keep programs from getting privileges")?;
    let keep = of_a_daemon(is_admin);
    bound(&keep);
    keep_only(&keep)
}

/// Gives up what only the start of a daemon has a use for. Threads that relay have what they need by then.
///
/// # Errors
/// When the kernel refuses to take them.
pub(crate) fn keep_what_a_running_daemon_needs(mounts: bool) -> Result<()> {
    let mut keep = of_a_daemon(mounts);
    keep.remove(&Capability::CAP_NET_RAW);
    keep_only(&keep)
}

fn of_a_daemon(is_admin: bool) -> CapsHashSet {
    let mut keep: CapsHashSet = NEEDED.iter().chain(&USEFUL).map(|(cap, _)| *cap).collect();
    let implies_bpf = !caps::has_cap(None, CapSet::Permitted, Capability::CAP_BPF).unwrap_or(false);
    if is_admin || implies_bpf {
        keep.insert(Capability::CAP_SYS_ADMIN);
    }
    keep
}

/// Lowers what a program could get that this thread became. Where that takes a capability that is not there, a service manager
/// has seen to it, and a new program gets nothing anyway.
fn bound(keep: &CapsHashSet) {
    let bounding = caps::read(None, CapSet::Bounding).unwrap_or_default();
    for capability in bounding.difference(keep) {
        if let Err(error) = caps::drop(None, CapSet::Bounding, *capability) {
            tracing::debug!(%error, %capability, "cannot lower the bounding set");
            return;
        }
    }
}

/// Gives up everything, in a thread that only writes to files that are open.
///
/// # Errors
/// When the kernel refuses to take them.
pub(crate) fn keep_nothing() -> Result<()> {
    keep_only(&CapsHashSet::new())
}

/// Gives up what a thread has no use for that enters namespaces of other processes.
///
/// # Errors
/// When the kernel refuses to take them.
pub(crate) fn keep_what_entering_needs() -> Result<()> {
    keep_only(&HashSet::from([ENTER.0, SEE_NAMESPACES.0]))
}

/// Gives up what a thread that relays has no use for; whether it connects from addresses of clients is for the caller to say.
///
/// # Errors
/// When the kernel refuses to take them.
pub(crate) fn keep_what_a_worker_needs(connects_as_clients: bool) -> Result<()> {
    let mut keep = HashSet::from(WORKER);
    if connects_as_clients {
        // Either does, and the first allows less; before kernel 5.17 too little.
        keep.insert(
            if has(Capability::CAP_NET_RAW) && marks_without_net_admin()? {
                Capability::CAP_NET_RAW
            } else {
                Capability::CAP_NET_ADMIN
            },
        );
    }
    keep_only(&keep)
}

/// Whether this thread could mark sockets without `CAP_NET_ADMIN` (`SO_MARK` by `CAP_NET_RAW`, 079925cce1d0 in kernel 5.17).
fn marks_without_net_admin() -> Result<bool> {
    let (set, capability) = (CapSet::Effective, Capability::CAP_NET_ADMIN);
    let had = caps::has_cap(None, set, capability)?;
    caps::drop(None, set, capability)?;
    let marked = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|it| it.set_mark(1));
    if had {
        caps::raise(None, set, capability)?;
    }
    Ok(marked.is_ok())
}

fn keep_only(keep: &CapsHashSet) -> Result<()> {
    let lower = |set| -> Result<(), caps::errors::CapsError> {
        let now = caps::read(None, set)?;
        caps::set(None, set, &now.intersection(keep).copied().collect())
    };
    // From the last to the first: effective capabilities must be permitted ones.
    [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ]
    .into_iter()
    .try_for_each(lower)
    .context("cannot give up capabilities")
}

/// Soft and hard limit of open files, for a child that is to have them as they are now.
#[must_use]
pub(crate) fn open_files() -> Option<(u64, u64)> {
    getrlimit(Resource::RLIMIT_NOFILE).ok()
}

/// How many connections so many open files allow; at least one.
pub(crate) fn connections_of(files: u64) -> usize {
    let connections = files.saturating_sub(RESERVED_FILES) / FILES_PER_CONNECTION;
    usize::try_from(connections).unwrap_or(usize::MAX).max(1)
}

/// Raises the soft limit of open files to the hard one, and returns how many connections it allows of those wanted.
#[must_use]
pub(crate) fn connections(wanted: u32) -> usize {
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let Some((soft, hard)) = open_files() else {
        return wanted;
    };
    let files = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    let allowed = connections_of(files);
    if allowed < wanted {
        tracing::debug!(
            allowed,
            wanted,
            files,
            "the limit on open files allows fewer connections"
        );
    }
    wanted.min(allowed)
}

/// What somebody does who may lock too little memory.
pub(crate) const MORE_LOCKED_MEMORY: &str =
    "raise it: LimitMEMLOCK=infinity in a unit, ulimit -l unlimited in a shell";

/// Raises the limit of locked memory as far as it goes, on kernels that count eBPF maps and programs against it: those before
/// 5.11. `None` on others. To be called before capabilities are given up: `CAP_SYS_RESOURCE` is for this alone.
pub(crate) fn lift_locked_memory() -> Option<u64> {
    if !counts_maps(&uname().ok()?.release().to_string_lossy()) {
        return None;
    }
    let kind = Resource::RLIMIT_MEMLOCK;
    let (soft, hard) = getrlimit(kind).ok()?;
    let raised = [RLIM_INFINITY, hard]
        .into_iter()
        .find(|limit| setrlimit(kind, *limit, *limit.max(&hard)).is_ok());
    Some(raised.unwrap_or(soft))
}

fn counts_maps(release: &str) -> bool {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (5u32, 11u32),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_5_11_count_maps_as_locked_memory() {
        assert!(counts_maps("5.10.0-46-cloud-amd64"));
        assert!(counts_maps("4.19.3"));
        assert!(!counts_maps("5.11.0"));
        assert!(!counts_maps("6.1.192"));
        assert!(!counts_maps("unheard-of"));
    }

    #[test]
    fn a_connection_takes_two_files_and_the_daemon_itself_some() {
        assert_eq!(connections_of(1024), 384);
        assert_eq!(connections_of(10), 1, "never none");
    }

    #[test]
    fn a_thread_that_gave_up_capabilities_has_only_the_rest() {
        let before = caps::read(None, CapSet::Permitted).unwrap();
        // A thread of its own: what is given up does not come back.
        let after = std::thread::spawn(|| {
            keep_what_a_worker_needs(false).unwrap();
            caps::read(None, CapSet::Permitted).unwrap()
        })
        .join()
        .unwrap();
        let worker = HashSet::from(WORKER);
        assert_eq!(after, before.intersection(&worker).copied().collect());
    }
}
