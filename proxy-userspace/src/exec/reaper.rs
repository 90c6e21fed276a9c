//! The reaper: a tiny process that outlives culvert by one breath.
//!
//! `SIGKILL` leaves no time to clean up, so somebody else has to: before the command starts, culvert runs its own
//! executable again as `culvert __reap DIRECTORY`, with one end of a socket pair for its standard input. When the other
//! end is closed, by culvert's end of whatever kind, the reaper kills what is left in the cgroup, removes it and exits.
//! After an orderly end the cgroup is gone already.
//!
//! It holds that socket and what culvert sends through it: the links of the guard, which refuses connections between
//! culvert's death and the command's. Nothing else, no terminal either. It is in a session of its own, so what is sent
//! to culvert's process group does not reach it, and in culvert's cgroup.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    unistd::setsid,
};
use thiserror::Error;

use super::signals::{Disposition, set_disposition};
use crate::cgroup::{CgroupError, own};

/// The hidden subcommand that runs [`main`], with the directory of the cgroup as its only argument.
pub const SUBCOMMAND: &str = "__reap";

/// The name in `ps -o comm`; the kernel would say `exe`.
const COMM: &std::ffi::CStr = c"culvert-reaper";

/// Who wants to stop culvert wants to stop the reaper as well, but it has work to do before.
const IGNORED: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
];

/// Why nobody would clean up.
#[derive(Debug, Error)]
pub enum ReaperError {
    /// The process could not be started.
    #[error(
        "cannot start the reaper from /proc/self/exe with /dev/null; are /proc and /dev mounted?"
    )]
    Start(#[source] io::Error),
    /// It does not take what it is given.
    #[error("the reaper does not take what it is to hold")]
    Give(#[source] nix::Error),
    /// The argument is no cgroup of ours.
    #[error("{} is no cgroup of culvert exec", .0.display())]
    NotOurs(PathBuf),
    /// The cgroup could not be emptied or removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// The running reaper. Dropping it makes it do its work.
#[derive(Debug)]
pub struct Reaper {
    process: Child,
    /// Its end is the alarm; before that, descriptors go through it.
    owner: UnixStream,
}

impl Reaper {
    /// Starts the reaper of a cgroup, which need not exist yet.
    ///
    /// # Errors
    /// [`ReaperError::Start`].
    pub fn start(cgroup: &Path) -> Result<Self, ReaperError> {
        let start = || {
            let (alarm, owner) = UnixStream::pair()?;
            let mut command = Command::new("/proc/self/exe");
            command
                .arg0("culvert")
                .args([SUBCOMMAND.as_ref(), cgroup])
                // Not in anybody's way, and without the secrets of the environment.
                .current_dir("/")
                .env_clear()
                .stdin(Stdio::from(OwnedFd::from(alarm)))
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            // SAFETY: only system calls between fork and execve.
            unsafe {
                command.pre_exec(|| {
                    setsid()?;
                    // What is ignored stays so across execve: there is no moment at which a signal would do harm.
                    for signal in IGNORED {
                        set_disposition(signal, Disposition::Ignore);
                    }
                    Ok(())
                });
            }
            let process = command.spawn()?;
            Ok(Self { process, owner })
        };
        start().map_err(ReaperError::Start)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Gives it descriptors to hold until it has done its work.
    ///
    /// # Errors
    /// [`ReaperError::Give`] when it is gone.
    pub fn give(&self, files: &[BorrowedFd<'_>]) -> Result<(), ReaperError> {
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let message = [ControlMessage::ScmRights(&raw)];
        // One byte has to go along (unix(7)).
        let byte = [IoSlice::new(&[0])];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.owner.as_raw_fd(), &byte, &message, flags, None)
            .map(drop)
            .map_err(ReaperError::Give)
    }

    /// Lets it go and waits for its end. Whatever is left of the cgroup is removed by it before.
    pub fn finish(self) {
        let Self { mut process, owner } = self;
        drop(owner);
        if let Err(error) = process.wait() {
            tracing::debug!(%error, "the reaper cannot be waited for");
        }
    }
}

/// What the hidden subcommand does: waits for the end of culvert, then destroys the cgroup.
///
/// To be called first thing in the process, before a runtime is started: it closes all files but the standard ones.
///
/// # Errors
/// [`ReaperError::NotOurs`] for any directory that is not called like a cgroup of ours, or what keeps it alive.
pub fn main(cgroup: &Path) -> Result<(), ReaperError> {
    if !own::is_own_name(cgroup) {
        return Err(ReaperError::NotOurs(cgroup.to_owned()));
    }
    // Culvert's own files are closed by execve; these came from whoever called it.
    // SAFETY: nothing in this young process owns a file above the standard ones.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
    }
    let _only_for_looks = nix::sys::prctl::set_name(COMM);
    let held = hold_until_the_end();
    let destroyed = own::destroy(cgroup);
    // Only now: the guard is in force until nobody is left to be guarded.
    drop(held);
    Ok(destroyed?)
}

/// Descriptors that one message carries at most.
const MOST_GIVEN: usize = 8;

/// Takes what is given, until the other end is closed. An error is as good a reason as the end.
fn hold_until_the_end() -> Vec<OwnedFd> {
    let mut held = Vec::new();
    let mut byte = [0];
    let mut space = nix::cmsg_space!([RawFd; MOST_GIVEN]);
    loop {
        let mut into = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(message) = recvmsg::<()>(libc::STDIN_FILENO, &mut into, Some(&mut space), flags)
        else {
            return held;
        };
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(given) = control {
                // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
                held.extend(
                    given
                        .into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        if message.bytes == 0 {
            return held;
        }
    }
}
