//! Signals that culvert must not die of while a command runs, and who sent them.
//!
//! The sender matters: what the terminal sends reaches the whole foreground process group, the command included,
//! and must not be sent to it again; what somebody sends to culvert alone is meant for the command. [`job`] draws
//! these conclusions, here signals are only received.
//!
//! [`job`]: super::job

use std::{io, thread};

use signal_hook::{
    iterator::{Handle, SignalsInfo, exfiltrator::WithOrigin},
    low_level::siginfo::{Cause, Origin},
};
use tokio::sync::mpsc;

/// Signals that are passed on to the command.
const PASSED_ON: [i32; 9] = [
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTSTP,
    libc::SIGCONT,
];

/// A signal and where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// Who sent it.
    pub sender: Sender,
}

/// The sender of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The kernel: for the terminal, or because a child changed.
    Kernel,
    /// A process, by its id; 0 when it is in another PID namespace.
    Process(u32),
}

/// The signals of this process, from [`Signals::install`] to the end of the process.
#[derive(Debug)]
pub struct Signals {
    received: mpsc::UnboundedReceiver<Received>,
    /// Signals ignored here only, whose default the command gets back.
    ignored_here: Vec<i32>,
    reader: Handle,
}

impl Signals {
    /// Takes the signals over. What the caller of culvert ignores (`nohup`, a script's background job) stays
    /// ignored, here and in the command.
    ///
    /// # Errors
    /// When a handler or the thread that reads for it cannot be set up.
    pub fn install() -> io::Result<Self> {
        let mut taken = vec![libc::SIGCHLD];
        taken.extend(PASSED_ON.into_iter().filter(|signal| !is_ignored(*signal)));
        let mut signals = SignalsInfo::<WithOrigin>::new(taken)?;
        let reader = signals.handle();
        let (sender, received) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for origin in signals.forever() {
                    if sender.send(Received::of(&origin)).is_err() {
                        return;
                    }
                }
            })?;
        // A message to the terminal while the command holds it must not stop the relay (`stty tostop`).
        let mut ignored_here = Vec::new();
        if !is_ignored(libc::SIGTTOU) {
            set_disposition(libc::SIGTTOU, Disposition::Ignore);
            ignored_here.push(libc::SIGTTOU);
        }
        Ok(Self {
            received,
            ignored_here,
            reader,
        })
    }

    /// The next signal. May be dropped and called again.
    pub async fn next(&mut self) -> Received {
        match self.received.recv().await {
            Some(received) => received,
            // The thread ends only after this value.
            None => std::future::pending().await,
        }
    }

    /// Signals whose default disposition a child has to restore before `execve`.
    #[must_use]
    pub fn ignored_here(&self) -> &[i32] {
        &self.ignored_here
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.reader.close();
    }
}

impl Received {
    fn of(origin: &Origin) -> Self {
        let sender = match (&origin.cause, &origin.process) {
            (Cause::Sent(_), Some(process)) => {
                Sender::Process(u32::try_from(process.pid).unwrap_or(0))
            }
            _ => Sender::Kernel,
        };
        Self {
            signal: origin.signal,
            sender,
        }
    }
}

/// Whether this process ignores a signal.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: with a null pointer for the new action, `sigaction` only writes the old one to a valid local.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut old) == 0
            && old.sa_sigaction == libc::SIG_IGN
    }
}

/// What a signal does without a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposition {
    Default,
    Ignore,
}

/// Takes the handler of a signal away. May be called between `fork` and `execve`.
pub(super) fn set_disposition(signal: i32, disposition: Disposition) {
    let disposition = match disposition {
        Disposition::Default => libc::SIG_DFL,
        Disposition::Ignore => libc::SIG_IGN,
    };
    // SAFETY: neither value is a handler, so no code of ours can be run at a bad moment.
    unsafe {
        libc::signal(signal, disposition);
    }
}
