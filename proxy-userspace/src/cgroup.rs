//! The cgroup v2 hierarchy: where it is mounted, which cgroups a name means, and cgroups of our own.
//!
//! Rules select by cgroup and programs attach to one, so the directory tree is read here and nowhere else.
//! What is done with an id or a level is the business of `policy` and `intercept`; nothing here knows rules,
//! maps or programs. [`mod@reference`] turns what a user wrote into cgroups, [`own`] makes the
//! cgroup of one command and takes it away again, [`container`] finds cgroups from inside of a container.

use std::{
    fs, io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use procfs::process::MountInfo;
use thiserror::Error;

pub mod container;
pub mod own;
pub mod reference;
pub mod runtime;

pub use own::OwnCgroup;
pub use reference::{Reference, ReferenceError};

/// The mounted cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup2 {
    /// Where it is mounted.
    mount: PathBuf,
    /// The cgroup that appears at the mount point: `/`, or the root of a bind-mounted subtree.
    root: PathBuf,
    /// Where paths of `/proc/PID/cgroup` begin: `/`, or the root of our cgroup namespace where more than that is mounted.
    namespace: PathBuf,
}

/// One existing cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cgroup {
    /// Path in the hierarchy, as `/proc/PID/cgroup` shows it.
    pub path: PathBuf,
    /// What `bpf_get_current_cgroup_id()` returns for its processes. A cgroup that is removed and made again
    /// has another id.
    pub id: u64,
    /// Depth below the root, which has level 0: the argument `bpf_get_current_ancestor_cgroup_id()` takes.
    /// Right only where [`Cgroup2::is_whole`] holds.
    pub level: u32,
}

/// What reading or changing the hierarchy can fail with.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The mount table could not be read.
    #[error("cannot read {}", path.display())]
    MountTable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel or the container offers no cgroup v2.
    #[error(
        "no cgroup v2 hierarchy is mounted; as root: mkdir -p /mnt/cgroup2 && mount -t cgroup2 cgroup2 /mnt/cgroup2"
    )]
    NotMounted,
    /// The cgroup of a process could not be read.
    #[error("cannot tell the cgroup of process {pid}")]
    Process {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A cgroup lies outside the part of the hierarchy that is mounted here.
    #[error(
        "cgroup {} is not visible below {}; mount the whole hierarchy, or start the container with its host's cgroup namespace",
        path.display(), mount.display()
    )]
    NotVisible {
        /// The cgroup.
        path: PathBuf,
        /// The mount point.
        mount: PathBuf,
    },
    /// The cgroup of a process of another container could not be found.
    #[error(
        "process {pid} is in a container that does not show its cgroup (no cgroup v2 mount in /proc/{pid}/root, or no \
         CAP_SYS_PTRACE to look); mount the host's cgroup hierarchy here, read-only, and name the cgroup instead"
    )]
    Hidden {
        /// The process.
        pid: u32,
    },
    /// A cgroup could not be created.
    #[error("cannot create the cgroup {}; this needs root and a writable cgroup v2 mount", path.display())]
    Create {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process could not be moved.
    #[error("cannot move process {pid} into the cgroup {}", path.display())]
    Place {
        /// The process.
        pid: u32,
        /// The directory of the cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The processes of a cgroup could not be signalled or waited for.
    #[error("cannot end the processes in the cgroup {}", path.display())]
    End {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A cgroup could not be removed.
    #[error(
        "cannot remove the cgroup {0}; once it is empty: rmdir {0}", path.display()
    )]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Cgroup2 {
    /// Finds the hierarchy in the mount table of this process.
    ///
    /// Hybrid systems mount it beside the v1 controllers, so the path is not assumed. Of several mounts the one
    /// that shows most of the hierarchy is taken; inside a cgroup namespace that may be one of the host's.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`] with the command that mounts it.
    pub fn find() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let table = fs::read(path).map_err(|source| CgroupError::MountTable {
            path: path.to_owned(),
            source,
        })?;
        let mounts = mounts(&table);
        if let Some(found) = container::host_hierarchy(&mounts) {
            return Ok(found);
        }
        let inside = mounts
            .into_iter()
            .filter(|mount| !container::is_above(&mount.root));
        inside
            .map(Self::from)
            .find(|found| is_hierarchy(&found.mount))
            .ok_or(CgroupError::NotMounted)
    }

    /// Where the hierarchy is mounted.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Whether the real root of the hierarchy is visible, so that paths and [`Cgroup::level`] count from it.
    ///
    /// False inside a cgroup namespace (a container's default): only the root has no `cgroup.events`.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.root == Path::new("/") && !self.mount.join("cgroup.events").exists()
    }

    /// The directory of a cgroup.
    ///
    /// # Errors
    /// [`CgroupError::NotVisible`] when the path lies outside the mounted part.
    pub fn dir(&self, path: &Path) -> Result<PathBuf, CgroupError> {
        let climbs = path
            .components()
            .any(|part| matches!(part, Component::ParentDir));
        match path.strip_prefix(&self.root) {
            Ok(below) if !climbs => Ok(self.mount.join(below)),
            _ => Err(CgroupError::NotVisible {
                path: path.to_owned(),
                mount: self.mount.clone(),
            }),
        }
    }

    /// The cgroup of a process, as a path in the hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::Process`] when the process is gone or its file has no v2 line.
    pub fn of_process(pid: u32) -> Result<PathBuf, CgroupError> {
        fs::read(format!("/proc/{pid}/cgroup"))
            .and_then(|table| {
                v2_path(&table).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
            })
            .map_err(|source| CgroupError::Process { pid, source })
    }

    /// The directory of the cgroup this process is in.
    ///
    /// # Errors
    /// As [`Cgroup2::of_process`] and [`Cgroup2::dir`].
    pub fn own_dir(&self) -> Result<PathBuf, CgroupError> {
        let path = Self::of_process(std::process::id())?;
        let below = path.strip_prefix("/").unwrap_or(&path);
        self.dir(&self.namespace.join(below))
    }

    /// The cgroup behind a directory below the mount point; `None` when there is none (any more).
    #[must_use]
    pub fn at(&self, dir: &Path) -> Option<Cgroup> {
        let below = dir.strip_prefix(&self.mount).ok()?;
        // The inode number of a cgroup directory is its id (kernfs, 64-bit since Linux 5.5).
        let meta = fs::metadata(dir).ok().filter(fs::Metadata::is_dir)?;
        let path = self.root.join(below);
        let level = path.components().count().saturating_sub(1);
        Some(Cgroup {
            path,
            id: meta.ino(),
            level: u32::try_from(level).ok()?,
        })
    }

    /// A directory and those above it, up to the mount point.
    pub(crate) fn upwards<'a>(&self, directory: &'a Path) -> impl Iterator<Item = &'a Path> {
        let mount = self.mount.clone();
        let above = directory.ancestors();
        above.take_while(move |directory| directory.starts_with(&mount))
    }

    /// The cgroup with an id; `None` when it is gone. Walks the tree: meant for display, not for each connection.
    #[must_use]
    pub fn by_id(&self, id: u64) -> Option<Cgroup> {
        let mut found = None;
        walk(&self.mount, &mut |dir| {
            let here = fs::metadata(dir).is_ok_and(|meta| meta.ino() == id);
            if here {
                found = self.at(dir);
            }
            !here
        });
        found
    }
}

#[cfg(test)]
impl Cgroup2 {
    /// Any directory tree as a hierarchy: finding cgroups reads names and inode numbers only.
    pub(crate) fn pretended(mount: &Path) -> Self {
        Self {
            mount: mount.to_owned(),
            root: "/".into(),
            namespace: "/".into(),
        }
    }
}

/// A mount of the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// The cgroup that appears there, from our cgroup namespace: outside of it as `/..` and so on.
    root: PathBuf,
}

impl From<Mount> for Cgroup2 {
    fn from(mount: Mount) -> Self {
        Self {
            mount: mount.point,
            root: mount.root,
            namespace: "/".into(),
        }
    }
}

/// Whether a path really leads to the file system: a mount may be hidden below a later one.
fn is_hierarchy(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Visits a directory and all below it, parents first, until `visit` returns false. What vanishes meanwhile is
/// skipped: cgroups come and go at any time.
pub(crate) fn walk(root: &Path, visit: &mut dyn FnMut(&Path) -> bool) {
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        if !visit(&dir) {
            return;
        }
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
}

/// The processes of a cgroup itself; none when it is gone.
pub(crate) fn processes(directory: &Path) -> Vec<u32> {
    let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// The cgroup v2 mounts of a mount table, those that show most of the hierarchy first.
fn mounts(table: &[u8]) -> Vec<Mount> {
    // Line by line, so that an odd mount elsewhere (a path that is not UTF-8) does not hide ours.
    let mut found: Vec<_> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| MountInfo::from_line(str::from_utf8(line).ok()?).ok())
        .filter(|mount| mount.fs_type == "cgroup2")
        .map(|mount| Mount {
            point: mount.mount_point,
            root: PathBuf::from(mount.root),
        })
        .collect();
    found.sort_by_key(|mount| mount.root.components().count());
    found
}

/// The v2 line of a `/proc/PID/cgroup`: `0::/path`.
pub(crate) fn v2_path(table: &[u8]) -> Option<PathBuf> {
    let path = table
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))?;
    // A process whose cgroup was removed keeps it until its own end.
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    path.starts_with(b"/")
        .then(|| PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        40 31 0:37 / /mnt/\xff\xfe rw - ext4 /dev/vdb rw\n\
        39 31 0:38 /kubepods /run/sub rw,relatime shared:4 - cgroup2 cgroup2 rw\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_mount_that_shows_the_whole_hierarchy_comes_first() {
        let found = mounts(HYBRID);
        assert_eq!(
            found[0],
            Mount {
                point: "/sys/fs/cgroup/unified".into(),
                root: "/".into()
            }
        );
        assert_eq!(found[1].point, Path::new("/run/sub"));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn version_1_alone_is_not_enough() {
        assert_eq!(mounts(&HYBRID[..140]), []);
    }

    #[test]
    fn a_bind_mounted_subtree_maps_paths_both_ways() {
        let sub = Cgroup2::from(mounts(HYBRID)[1].clone());
        let dir = sub.dir(Path::new("/kubepods/pod1")).unwrap();
        assert_eq!(dir, Path::new("/run/sub/pod1"));
        let error = sub.dir(Path::new("/system.slice")).unwrap_err();
        assert!(error.to_string().contains("/system.slice is not visible"));
    }

    #[test]
    fn a_path_that_climbs_is_not_followed() {
        let whole = Cgroup2::from(mounts(HYBRID)[0].clone());
        assert!(whole.dir(Path::new("/a/../../etc")).is_err());
    }

    #[test]
    fn the_version_2_line_is_found_among_the_others() {
        let table = b"9:name=systemd:/x\n4:memory:/y\n0::/user.slice/user-1.slice\n";
        assert_eq!(
            v2_path(table).unwrap(),
            Path::new("/user.slice/user-1.slice")
        );
        assert_eq!(
            v2_path(b"0::/gone (deleted)\n").unwrap(),
            Path::new("/gone")
        );
        assert_eq!(v2_path(b"4:memory:/y\n"), None);
    }

    #[test]
    fn this_machine_has_the_hierarchy_and_this_process_is_in_it() {
        let cgroups = Cgroup2::find().unwrap();
        let own = cgroups.own_dir().unwrap();
        let cgroup = cgroups.at(&own).unwrap();
        assert_eq!(cgroups.by_id(cgroup.id).unwrap(), cgroup);
        assert_eq!(cgroups.at(cgroups.mount()).unwrap().level, 0);
    }
}
