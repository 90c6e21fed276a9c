//! Cgroups as they are found from inside of a container.
//!
//! With a cgroup namespace of its own, a container sees its cgroup as the root of the hierarchy, and nothing of those around it. Three
//! things show more: the host's cgroup namespace; the host's hierarchy, mounted into the container (read-only will do); and the mounts
//! of another container whose processes can be seen. What a program is attached to is a directory that was opened, however that
//! was found: the kernel asks for no more (`cgroup_get_from_fd()`).

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use super::{Cgroup2, CgroupError, Mount, is_hierarchy, mounts, processes, walk};

/// Whether the root of a mount is outside of our cgroup namespace (`cgroup_show_path()` in `kernel/cgroup/cgroup.c`).
pub(super) fn is_above(root: &Path) -> bool {
    root.starts_with("/..")
}

/// The hierarchy by a mount that begins above the root of our cgroup namespace, if there is one. There `/proc/self/cgroup` does not
/// tell our place; that we are listed in it does.
pub(super) fn host_hierarchy(mounts: &[Mount]) -> Option<Cgroup2> {
    let above = mounts.iter().filter(|mount| is_above(&mount.root));
    // The longer the way up to it, the more it shows.
    let highest = above
        .filter(|mount| is_hierarchy(&mount.point))
        .max_by_key(|mount| mount.root.components().count())?;
    let own = holder_of(&highest.point, std::process::id())?;
    let below = Path::new("/").join(own.strip_prefix(&highest.point).ok()?);
    let seen = Cgroup2::of_process(std::process::id()).ok()?;
    let steps = seen.components().count().saturating_sub(1);
    Some(Cgroup2 {
        mount: highest.point.clone(),
        root: "/".into(),
        namespace: below.ancestors().nth(steps)?.to_owned(),
    })
}

/// The cgroup below a directory that has a process in it. Processes of other process namespaces are listed as 0, so whatever has our
/// number is us.
fn holder_of(top: &Path, pid: u32) -> Option<PathBuf> {
    let mut found = None;
    walk(top, &mut |directory| {
        if holds(directory, pid) {
            found = Some(directory.to_owned());
        }
        found.is_none()
    });
    found
}

fn holds(cgroup: &Path, pid: u32) -> bool {
    processes(cgroup).contains(&pid)
}

/// The directory of the cgroup of a process in another container, which need not be visible here: the container's own mounts show it.
///
/// # Errors
/// [`CgroupError::Process`] or [`CgroupError::Hidden`].
pub fn of_neighbour(pid: u32) -> Result<PathBuf, CgroupError> {
    let path = Cgroup2::of_process(pid)?;
    let table = fs::read(format!("/proc/{pid}/mountinfo"))
        .map_err(|source| CgroupError::Process { pid, source })?;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let directory = |mount: Mount| {
        // Both are told as our own cgroup namespace sees them, so they fit together.
        let below = path.strip_prefix(&mount.root).ok()?;
        let climbs = below
            .components()
            .any(|part| matches!(part, Component::ParentDir));
        let point = mount.point.strip_prefix("/").ok()?;
        (!climbs).then(|| root.join(point).join(below))
    };
    mounts(&table)
        .into_iter()
        .filter_map(directory)
        .find(|directory| is_hierarchy(directory) && holds(directory, pid))
        .ok_or(CgroupError::Hidden { pid })
}

impl Cgroup2 {
    /// The directory of the cgroup that the containers of this process's pod share; `None` when it is in no pod, or that is not
    /// visible.
    ///
    /// # Errors
    /// As [`Cgroup2::own_dir`].
    pub fn pod_dir(&self) -> Result<Option<PathBuf>, CgroupError> {
        let own = self.own_dir()?;
        let above = self.upwards(&own);
        // The mount point has no name of its own.
        let named = above.filter(|directory| *directory != self.mount);
        let mut pods = named.filter(|directory| is_pod(directory));
        Ok(pods.next().map(Path::to_owned))
    }
}

/// Whether a cgroup is called like that of a pod: of Kubernetes `pod<UID>` or `kubepods-<class>-pod<UID>.slice`, with `_` for `-` in
/// the UID and no `-` in that of a static pod; of Podman `libpod_pod_<ID>` or `machine-libpod_pod_<ID>.slice`.
fn is_pod(directory: &Path) -> bool {
    let Some(name) = directory.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some((_, id)) = name.rsplit_once("libpod_pod_") {
        return id.len() == 64 && is_hex(id);
    }
    let Some((before, uid)) = name.rsplit_once("pod") else {
        return false;
    };
    let digits: String = uid
        .chars()
        .filter(|letter| !['-', '_'].contains(letter))
        .collect();
    let is_named_so = before.is_empty() || before.starts_with("kubepods") && before.ends_with('-');
    is_named_so && digits.len() == 32 && is_hex(&digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_their_names() {
        for pod in [
            "pod0d1c2b3a-4e5f-6071-8293-a4b5c6d7e8f9",
            "kubepods-burstable-pod0d1c2b3a_4e5f_6071_8293_a4b5c6d7e8f9.slice",
            "kubepods-pod0123456789abcdef0123456789abcdef.slice",
            &format!("machine-libpod_pod_{}.slice", "a1".repeat(32)),
            &format!("libpod_pod_{}", "a1".repeat(32)),
        ] {
            assert!(is_pod(&Path::new("/x").join(pod)), "{pod}");
        }
        for other in [
            "kubepods.slice",
            "kubepods-burstable.slice",
            "kubepods",
            "docker",
            "pod",
            "tripod0123456789abcdef0123456789abcdef",
            &format!("docker-{}.scope", "a1".repeat(32)),
            &format!("libpod-{}.scope", "a1".repeat(32)),
        ] {
            assert!(!is_pod(&Path::new("/x").join(other)), "{other}");
        }
    }

    #[test]
    fn the_own_cgroup_is_where_this_process_is_listed() {
        let cgroups = Cgroup2::find().unwrap();
        let own = holder_of(cgroups.mount(), std::process::id());
        assert_eq!(own, cgroups.own_dir().ok());
        assert!(of_neighbour(std::process::id()).is_ok());
    }

    #[test]
    fn a_mount_within_the_namespace_is_not_above_it() {
        assert!(is_above(Path::new("/../..")) && is_above(Path::new("/..")));
        assert!(!is_above(Path::new("/")) && !is_above(Path::new("/..a")));
    }
}
