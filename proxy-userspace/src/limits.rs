//! What this process may do: privileges and open files.

use anyhow::Result;
use caps::{CapSet, Capability};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::failure::Failure;

/// Files that are no connections: programs, maps, listeners, logs.
const RESERVED_FILES: u64 = 128;
/// Both sockets of a relayed connection.
const FILES_PER_CONNECTION: u64 = 2;

/// What attaching takes, with what for.
const NEEDED: [(Capability, &str); 2] = [
    (Capability::CAP_BPF, "load eBPF programs"),
    (Capability::CAP_NET_ADMIN, "attach them to cgroups"),
];

/// Checks that programs can be loaded and attached.
///
/// # Errors
/// A missing privilege, with what it is for.
pub(crate) fn require_privileges() -> Result<()> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    // CAP_SYS_ADMIN implies CAP_BPF (capabilities(7)).
    let missing: Vec<_> = NEEDED
        .into_iter()
        .filter(|(capability, _)| !has(*capability))
        .filter(|(capability, _)| {
            *capability != Capability::CAP_BPF || !has(Capability::CAP_SYS_ADMIN)
        })
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

/// Soft and hard limit of open files, for a child that is to have them as they are now.
#[must_use]
pub(crate) fn open_files() -> Option<(u64, u64)> {
    getrlimit(Resource::RLIMIT_NOFILE).ok()
}

/// Raises the soft limit of open files to the hard one, and returns how many connections it allows of those wanted.
#[must_use]
pub(crate) fn connections(wanted: u32) -> usize {
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return wanted;
    };
    let files = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    let allowed = files.saturating_sub(RESERVED_FILES) / FILES_PER_CONNECTION;
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX).max(1);
    if allowed < wanted {
        tracing::info!(
            allowed,
            wanted,
            files,
            "the limit on open files allows fewer connections"
        );
    }
    wanted.min(allowed)
}
