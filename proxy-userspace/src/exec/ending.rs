//! How a command ended, and how culvert ends the same way.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this status.
    Exited(u8),
    /// A signal killed it; the number, since real-time signals have no name.
    Killed(i32),
}

impl Ending {
    /// The end a process status tells of; `None` when the process only stopped or continued.
    #[must_use]
    pub fn of(status: ExitStatus) -> Option<Self> {
        let exited = status.code().and_then(|code| u8::try_from(code).ok());
        exited
            .map(Self::Exited)
            .or_else(|| status.signal().map(Self::Killed))
    }

    /// The exit status a shell shows for it: that of the command, or 128 + the number of the signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }

    /// Ends this process by the signal that killed the command, as sudo and timeout do: the shell then says
    /// "Terminated", and a script is left by Ctrl-C. To be called last, after all cleaning up.
    ///
    /// Returns the exit status to leave with when the command exited, or when the signal did not end us.
    #[must_use]
    pub fn reproduce(self) -> u8 {
        if let Self::Killed(signal) = self {
            // The command has dumped core if anybody; a second dump, of culvert, would be misleading.
            if let Err(error) = nix::sys::prctl::set_dumpable(false) {
                tracing::debug!(%error, "a core dump of culvert itself cannot be prevented");
            }
            // SAFETY: plain system calls on a local set; restoring a default disposition cannot break a handler
            // that runs, and no signal number is invalid for them (they would fail with EINVAL).
            unsafe {
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, signal);
                libc::signal(signal, libc::SIG_DFL);
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
                libc::raise(signal);
            }
        }
        self.code()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_endings_and_codes_as_in_a_shell() {
        let of = |raw| Ending::of(ExitStatus::from_raw(raw));
        assert_eq!(of(3 << 8), Some(Ending::Exited(3)));
        assert_eq!(of(libc::SIGTERM), Some(Ending::Killed(15)));
        assert_eq!(of(libc::SIGSEGV | 0x80), Some(Ending::Killed(11)));
        assert_eq!(of(libc::SIGRTMIN()), Some(Ending::Killed(34)));
        // Stopped and continued.
        assert_eq!(of((libc::SIGTSTP << 8) | 0x7f), None);
        assert_eq!(of(0xffff), None);
        assert_eq!(Ending::Exited(3).code(), 3);
        assert_eq!(Ending::Killed(15).code(), 143);
    }
}
