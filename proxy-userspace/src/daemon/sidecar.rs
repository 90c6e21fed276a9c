//! Whom a sidecar serves, found from inside of its container.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use super::{Kind, Post};
use crate::{
    cgroup::{Cgroup2, container},
    config::Config,
    failure::Failure,
    intercept::standing::Standing,
    privileges,
    rule::FailMode,
};

/// Finds the cgroup to serve, and what a sidecar before this one has left there.
pub(super) fn post(pid: Option<u32>, config: &Config, cgroups: &Cgroup2) -> Result<Post> {
    let attach_point = match (pid, &*config.daemon.cgroup) {
        (Some(pid), _) => neighbour(pid)?,
        (None, "") => pod(cgroups)?,
        // Never the root, for which there is no other word than none.
        (None, path) => cgroups.mount().join(path),
    };
    let failed = || format!("cannot look at the cgroup {}", attach_point.display());
    let cgroup = File::open(&attach_point).with_context(failed)?;
    let mut rules = config.forward.iter();
    if rules.any(|rule| rule.on_relay_failure == FailMode::Refuse) {
        privileges::require_all(&[privileges::FIND_GUARD])?;
    }
    let left = Standing::find(cgroup.as_fd()).with_context(failed)?;
    Ok(Post {
        attach_point,
        takes_over: false,
        kind: Kind::Sidecar(left),
    })
}

/// What to do where there is no pod to be seen.
const OTHERWISE: &str = "name the cgroup that the app's container has in common with this one (`cgroup` in [daemon]), or share the app's \
     process namespace and give its process (`--pid 1`)";

fn pod(cgroups: &Cgroup2) -> Result<PathBuf> {
    if let Some(pod) = cgroups.pod_dir()? {
        return Ok(pod);
    }
    let own = cgroups.own_dir()?;
    let what = if own == cgroups.mount() && !cgroups.is_whole() {
        format!(
            "of the cgroup hierarchy only this container's own cgroup is visible; mount the host's here, read-only, or {OTHERWISE}"
        )
    } else {
        format!(
            "this container's cgroup {} is in no pod; {OTHERWISE}",
            own.display()
        )
    };
    Err(Failure::usage(what).into())
}

/// The cgroup of a process of another container.
fn neighbour(pid: u32) -> Result<PathBuf> {
    if !is_in_own_network(pid).with_context(|| format!("cannot look at process {pid}"))? {
        return Err(Failure::usage(format!(
            "process {pid} is in another network namespace, from where it cannot reach this sidecar; share the app's"
        ))
        .into());
    }
    // As our own cgroup namespace sees both.
    if Cgroup2::of_process(pid)? == Cgroup2::of_process(std::process::id())? {
        return Err(Failure::usage(format!(
            "process {pid} is in this container's own cgroup; share the process namespace of the app's container and name a process of \
             it"
        ))
        .into());
    }
    Ok(container::of_neighbour(pid)?)
}

fn is_in_own_network(pid: u32) -> io::Result<bool> {
    let own = fs::metadata("/proc/self/ns/net")?.ino();
    Ok(fs::metadata(format!("/proc/{pid}/ns/net"))?.ino() == own)
}
