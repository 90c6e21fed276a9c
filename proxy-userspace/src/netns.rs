//! Network namespaces of other processes: which one a process is in, and how a thread gets there and back.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};

/// Which namespace it is. No other one is called so while somebody holds it, be it by a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    device: u64,
    inode: u64,
}

impl Id {
    /// Of a process.
    ///
    /// # Errors
    /// When it has ended, or may not be looked at (`CAP_SYS_PTRACE`).
    pub fn of(pid: u32) -> io::Result<Self> {
        fs::metadata(format!("/proc/{pid}/ns/net")).map(|it| Self::from(&it))
    }

    /// Of this thread.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn own() -> io::Result<Self> {
        fs::metadata(OWN).map(|it| Self::from(&it))
    }

    /// As tools show it: `net:[NUMBER]`.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.inode
    }
}

impl From<&fs::Metadata> for Id {
    fn from(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

const OWN: &str = "/proc/thread-self/ns/net";

/// A namespace, which is there as long as this is.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// That of a process.
    ///
    /// # Errors
    /// As [`Id::of`].
    pub fn of(pid: u32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/ns/net"))?;
        Ok(Self { file })
    }

    /// That of this thread.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn own() -> io::Result<Self> {
        Ok(Self {
            file: File::open(OWN)?,
        })
    }

    /// Which one it is.
    ///
    /// # Errors
    /// None that is known.
    pub fn id(&self) -> io::Result<Id> {
        self.file.metadata().map(|it| Id::from(&it))
    }

    /// Whether it belongs to the user namespace of this process, and not to one whose users may do what they like in it.
    ///
    /// # Errors
    /// Those of `NS_GET_USERNS` (kernel 4.9).
    pub fn is_of_own_users(&self) -> io::Result<bool> {
        // `_IO(NSIO, 0x1)` of `linux/nsfs.h`.
        const NS_GET_USERNS: libc::Ioctl = 0xb701;
        // SAFETY: a request without an argument, on a file that is open.
        let owner = unsafe { libc::ioctl(self.file.as_raw_fd(), NS_GET_USERNS) };
        let owner = match Errno::result(owner) {
            // SAFETY: a new descriptor, which nobody else has.
            Ok(owner) => unsafe { OwnedFd::from_raw_fd(owner) },
            // It is of a user namespace that is not below this one.
            Err(Errno::EPERM) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let owner = File::from(owner).metadata()?;
        Ok(Id::from(&owner) == Id::from(&fs::metadata("/proc/self/ns/user")?))
    }

    /// Moves this thread there, and no other one.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`, here and where the namespace belongs to.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }
}
