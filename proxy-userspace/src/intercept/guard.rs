//! The pinned part: what keeps `on_relay_failure = "refuse"` in force without the daemon.
//!
//! Links are pinned in a bpffs, which keeps them and the maps of their programs alive after the process died.
//! `/sys/fs/bpf` is used where it is a bpffs; otherwise one is mounted at `/run/culvert/bpf` and unmounted with the
//! last pin. `culvert detach`, or the next start, removes what a killed daemon left.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use aya::programs::{
    cgroup_sock_addr::CgroupSockAddrLink,
    links::{FdLink, LinkError, PinnedLink},
};
use nix::{
    mount::{MsFlags, mount, umount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use thiserror::Error;

use super::syscall::{detach_link, pin};

/// Where systems mount it.
const SYSTEM_BPFFS: &str = "/sys/fs/bpf";
/// Where we mount it if nobody did.
const OWN_BPFFS: &str = "/run/culvert/bpf";
/// Our directory in either.
const DIRECTORY: &str = "culvert";

/// Why the guard cannot be pinned or removed.
#[derive(Debug, Error)]
pub enum GuardError {
    /// A directory could not be made, listed or removed.
    #[error("cannot {operation} {path}")]
    Directory {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No bpffs, and none could be mounted.
    #[error(
        "cannot mount a bpffs at {path}, which `on_relay_failure = \"refuse\"` needs; in a container, mount the host's \
         /sys/fs/bpf"
    )]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: nix::Error,
    },
    /// The link cannot be pinned as it is.
    #[error("cannot pin the link of {program}, which needs kernel 5.7")]
    Link {
        /// Name of the program.
        program: &'static str,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// The kernel does not show the descriptor of the link.
    #[error("cannot find the link of {program} in /proc/self/fdinfo; is /proc mounted?")]
    NoDescriptor {
        /// Name of the program.
        program: &'static str,
    },
    /// The pin was refused.
    #[error("cannot pin a link at {path}")]
    Pin {
        /// Where, which ends with the name of its program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The descriptor of a link, for somebody else to hold. aya keeps it to itself, so it is found by the link's id in
/// `/proc/self/fdinfo`.
pub(super) fn duplicate(
    program: &'static str,
    link: CgroupSockAddrLink,
) -> Result<OwnedFd, GuardError> {
    let no_link = |source| GuardError::Link { program, source };
    let link: FdLink = link.try_into().map_err(no_link)?;
    let id = link.info().map_err(no_link)?.id();
    let number = descriptor_of(id).ok_or(GuardError::NoDescriptor { program })?;
    // SAFETY: `link` owns the descriptor of this number and is alive until the end of this function.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed
        .try_clone_to_owned()
        .map_err(|_| GuardError::NoDescriptor { program })
}

/// The number of our descriptor of a link (`bpf_link_show_fdinfo()` in `kernel/bpf/syscall.c`).
fn descriptor_of(link_id: u32) -> Option<RawFd> {
    let wanted = format!("link_id:\t{link_id}\n");
    let entries = fs::read_dir("/proc/self/fdinfo").ok()?;
    entries.filter_map(Result::ok).find_map(|entry| {
        let info = fs::read_to_string(entry.path()).ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        info.contains(&wanted).then_some(number)
    })
}

/// The pins of one daemon.
#[derive(Debug)]
pub struct Guard {
    place: PathBuf,
    /// The names of the pins.
    pinned: BTreeSet<String>,
}

impl Guard {
    /// Makes the directory for the pins.
    pub(super) fn create(place: PathBuf) -> Result<Self, GuardError> {
        fs::create_dir_all(&place).map_err(|source| GuardError::Directory {
            operation: "make",
            path: place.clone(),
            source,
        })?;
        Ok(Self {
            place,
            pinned: BTreeSet::new(),
        })
    }

    /// Whether there is a pin.
    pub(super) fn has(&self, pin: &str) -> bool {
        self.pinned.contains(pin)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.pinned.is_empty()
    }

    /// The names of the pins that begin so.
    pub(super) fn begin_with(&self, prefix: &str) -> Vec<String> {
        let named = |pin: &&String| pin.starts_with(prefix);
        self.pinned.iter().filter(named).cloned().collect()
    }

    /// Pins a link under the name of its program, or one that begins so.
    pub(super) fn pin(&mut self, name: &str, link: BorrowedFd<'_>) -> Result<(), GuardError> {
        let path = self.place.join(name);
        pin(link, &path).map_err(|source| GuardError::Pin { path, source })?;
        self.pinned.insert(name.to_owned());
        Ok(())
    }

    /// Removes some pins, and with them their part of the guard.
    pub(super) fn unpin(&mut self, names: &[impl AsRef<str>]) -> Result<(), GuardError> {
        let names = names.iter().map(AsRef::as_ref);
        let names: Vec<_> = names.filter(|name| self.has(name)).collect();
        let pins: Vec<_> = names.iter().map(|name| self.place.join(name)).collect();
        remove_pins(&pins)?.iter().for_each(detach);
        self.pinned.retain(|pin| !names.contains(&pin.as_str()));
        Ok(())
    }

    /// Removes all pins, and with them the guard.
    pub(super) fn remove(self) -> Result<(), GuardError> {
        remove(&self.place)
    }
}

/// A place for the pins of this process: `…/culvert/PID`. Mounts a bpffs if there is none.
///
/// # Errors
/// When there is no bpffs and none can be mounted.
pub fn place() -> Result<PathBuf, GuardError> {
    let root = match bpffs() {
        Some(root) => root,
        None => mount_own()?,
    };
    Ok(root.join(DIRECTORY).join(std::process::id().to_string()))
}

/// Where pins go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bpffs {
    /// Into the bpffs that is mounted there.
    Mounted(PathBuf),
    /// There is none yet; it would be mounted there.
    Absent(PathBuf),
}

impl Bpffs {
    /// Finds it. Mounts nothing.
    #[must_use]
    pub fn find() -> Self {
        bpffs().map_or_else(|| Self::Absent(OWN_BPFFS.into()), Self::Mounted)
    }
}

/// What daemons that are gone left: the directory of each one's pins.
#[must_use]
pub fn stale() -> Vec<PathBuf> {
    let directories = directories();
    let entries = directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten();
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| !is_running(path))
        .collect()
}

/// Removes the guards of daemons that are gone, and returns how many there were.
///
/// # Errors
/// When a pin cannot be removed.
pub fn remove_stale() -> Result<usize, GuardError> {
    let stale = stale();
    for place in &stale {
        remove(place)?;
    }
    for directory in directories() {
        // Fails while another daemon has pins there, which is right.
        let _ = fs::remove_dir(directory);
    }
    unmount_own();
    Ok(stale.len())
}

/// Takes a program off its hook now: the kernel would do so some milliseconds after the pin is gone, and until then
/// connections would still be refused.
fn detach(link: &FdLink) {
    let detached = link.info().map_err(io::Error::other).and_then(|info| {
        let number = descriptor_of(info.id()).ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: `link` owns the descriptor of this number and outlives this call.
        detach_link(unsafe { BorrowedFd::borrow_raw(number) })
    });
    if let Err(error) = detached {
        tracing::debug!(%error, "a link is not detached at once, but a little later");
    }
}

/// Where daemons have the directories of their pins.
fn directories() -> [PathBuf; 2] {
    [SYSTEM_BPFFS, OWN_BPFFS].map(|root| Path::new(root).join(DIRECTORY))
}

/// Whether the daemon that made a directory of pins still runs.
fn is_running(place: &Path) -> bool {
    let Some(pid) = place.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    // A zombie has no executable any more. Not being allowed to look is no proof of death.
    let exe = fs::read_link(format!("/proc/{pid}/exe"));
    if exe.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return false;
    }
    // A recycled process id: some other program has it now.
    fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with(b"culvert"))
}

/// Removes pins, and returns the links, which are in force until they are dropped.
fn remove_pins(pins: &[PathBuf]) -> Result<Vec<FdLink>, GuardError> {
    // Held until the pins are gone: whenever we are killed, either a pin is left for the next one to find, or nothing.
    let links = pins
        .iter()
        .filter_map(|pin| PinnedLink::from_pin(pin).ok())
        .map(FdLink::from)
        .collect();
    for pin in pins {
        fs::remove_file(pin).map_err(|source| failed("remove", pin, source))?;
    }
    Ok(links)
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> GuardError {
    GuardError::Directory {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn remove(place: &Path) -> Result<(), GuardError> {
    let pins: Vec<PathBuf> = fs::read_dir(place)
        .map_err(|source| failed("list", place, source))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    let links = remove_pins(&pins)?;
    fs::remove_dir(place).map_err(|source| failed("remove", place, source))?;
    if let Some(directory) = place.parent() {
        let _ = fs::remove_dir(directory);
    }
    links.iter().for_each(detach);
    unmount_own();
    Ok(())
}

/// Whether the system has a bpffs, so that we need not mount and unmount one.
pub(crate) fn has_system_bpffs() -> bool {
    is_bpffs(Path::new(SYSTEM_BPFFS))
}

/// The bpffs that is mounted, the system's first.
fn bpffs() -> Option<PathBuf> {
    [SYSTEM_BPFFS, OWN_BPFFS]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| is_bpffs(path))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_own() -> Result<PathBuf, GuardError> {
    let path = PathBuf::from(OWN_BPFFS);
    fs::create_dir_all(&path).map_err(|source| GuardError::Directory {
        operation: "make",
        path: path.clone(),
        source,
    })?;
    mount(
        Some("bpf"),
        &path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|source| GuardError::Mount {
        path: path.clone(),
        source,
    })?;
    Ok(path)
}

/// Unmounts our bpffs once no pin is left in it. (It is never empty: the kernel puts `maps.debug` and `progs.debug` there.) It
/// is busy, and stays, while somebody looks at it.
fn unmount_own() {
    let path = Path::new(OWN_BPFFS);
    if is_bpffs(path) && (path.join(DIRECTORY).exists() || umount(path).is_err()) {
        return;
    }
    // These remove empty directories only, also those of a daemon that was killed before it mounted.
    let _ = fs::remove_dir(path);
    if let Some(parent) = path.parent() {
        let _ = fs::remove_dir(parent);
    }
}
