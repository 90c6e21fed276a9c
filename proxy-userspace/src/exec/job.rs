//! The whole life of one command: cgroup, reaper, process, signals, what it leaves behind.
//!
//! The caller attaches its programs to [`Job::cgroup`] between [`Job::prepare`] and [`Job::spawn`], relays
//! while it polls [`Job::wait`], and takes its programs off before [`Job::finish`].

use std::{io, os::fd::BorrowedFd, time::Duration};

use nix::sys::signal::Signal;
use thiserror::Error;
use tokio::time::timeout;

use super::{
    child::{Child, Command, SpawnError, Turn},
    ending::Ending,
    reaper::{Reaper, ReaperError},
    signals::{Received, Sender, Signals},
    terminal::{follow_stop, stop, stops_the_job},
};
use crate::cgroup::{Cgroup2, CgroupError, OwnCgroup};

/// How long processes that outlive the command may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// What becomes of processes that outlive the command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leftovers {
    /// They get SIGTERM, and SIGKILL two seconds later.
    #[default]
    End,
    /// Their connections go on until the last of them ends, or until culvert gets SIGINT, SIGQUIT, SIGTERM or SIGHUP.
    Wait,
}

/// Why a command cannot be run or watched.
#[derive(Debug, Error)]
pub enum JobError {
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its reaper.
    #[error(transparent)]
    Reaper(#[from] ReaperError),
    /// Its process.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Its end could not be waited for.
    #[error("cannot wait for the command")]
    Wait(#[source] io::Error),
}

/// A command and all that belongs to it. Dropping it kills and removes everything.
#[derive(Debug)]
pub struct Job {
    signals: Signals,
    child: Option<Child>,
    /// Whether we stopped with the command when it was last stopped.
    followed: bool,
    cgroup: OwnCgroup,
    // After the cgroup, since fields are dropped in this order: the reaper then has nothing left to do.
    reaper: Reaper,
}

impl Job {
    /// Makes the cgroup, with the reaper already watching over it.
    ///
    /// # Errors
    /// [`JobError::Cgroup`] or [`JobError::Reaper`].
    pub fn prepare(cgroups: &Cgroup2, signals: Signals) -> Result<Self, JobError> {
        let dir = OwnCgroup::planned(cgroups)?;
        let reaper = Reaper::start(&dir)?;
        let cgroup = OwnCgroup::create(cgroups, dir)?;
        Ok(Self {
            signals,
            child: None,
            followed: false,
            cgroup,
            reaper,
        })
    }

    /// The cgroup the command and all it forks are in.
    #[must_use]
    pub fn cgroup(&self) -> &OwnCgroup {
        &self.cgroup
    }

    /// Lets descriptors live until nothing of the command is left, even if this process is killed.
    ///
    /// # Errors
    /// [`JobError::Reaper`].
    pub fn hold(&self, files: &[BorrowedFd<'_>]) -> Result<(), JobError> {
        Ok(self.reaper.give(files)?)
    }

    /// Starts the command; to be called once.
    ///
    /// # Errors
    /// [`JobError::Spawn`]; its [`SpawnError::code`] is the exit status.
    pub fn spawn(&mut self, command: &Command) -> Result<(), JobError> {
        let child = Child::spawn(command, &self.cgroup, self.signals.ignored_here())?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits for the end of the command and of what it leaves behind, and passes signals on meanwhile. What is in the
    /// cgroup when this returns has been killed.
    ///
    /// # Errors
    /// [`JobError::Wait`] or [`JobError::Cgroup`].
    pub async fn wait(&mut self, leftovers: Leftovers) -> Result<Ending, JobError> {
        let ending = self.command_ends().await?;
        if leftovers == Leftovers::Wait {
            self.let_leftovers_run().await?;
        }
        self.end_leftovers().await?;
        Ok(ending)
    }

    /// Removes the cgroup and lets the reaper go.
    ///
    /// # Errors
    /// [`JobError::Cgroup`] when something stays: the reaper has tried as well then.
    pub fn finish(self) -> Result<(), JobError> {
        let removed = self.cgroup.remove();
        self.reaper.finish();
        Ok(removed?)
    }

    async fn command_ends(&mut self) -> Result<Ending, JobError> {
        loop {
            if let Some(ending) = self.follow_child()? {
                return Ok(ending);
            }
            let received = self.signals.next().await;
            // Whether the command is stopped decides what a signal means.
            if let Some(ending) = self.follow_child()? {
                return Ok(ending);
            }
            self.pass_on(received);
        }
    }

    /// Takes notice of what the command did; stops when job control has stopped it.
    fn follow_child(&mut self) -> Result<Option<Ending>, JobError> {
        let Some(child) = &mut self.child else {
            let missing = io::Error::other("no command was started");
            return Err(JobError::Wait(missing));
        };
        while let Some(turn) = child.poll().map_err(JobError::Wait)? {
            match turn {
                Turn::Ended(ending) => return Ok(Some(ending)),
                Turn::Stopped(signal) => {
                    self.followed = stops_the_job(signal, child.pid());
                    if self.followed {
                        follow_stop(signal, child.pid());
                    }
                }
                Turn::Continued => {}
            }
        }
        Ok(None)
    }

    /// Gives the command a signal that culvert got instead of it.
    fn pass_on(&self, received: Received) {
        let Some(child) = &self.child else {
            return;
        };
        match received.signal {
            // `fg` and `bg` continue the whole process group; `kill -CONT` of culvert alone does not.
            libc::SIGCONT if child.is_stopped() => child.signal(libc::SIGCONT),
            libc::SIGCONT | libc::SIGCHLD => {}
            // The signal of a stop that we followed: it may be read only after `bg`, when the command is not yet seen to go on.
            libc::SIGTSTP if child.is_stopped() && self.followed => {}
            // Stopped by SIGSTOP before, so that it will not tell again, and the user wants the prompt.
            libc::SIGTSTP if child.is_stopped() => stop(libc::SIGTSTP),
            signal if !self.reached(child, received.sender) => child.signal(signal),
            _ => {}
        }
    }

    /// Whether the command got a signal itself. The terminal sends to the whole process group; and a command that
    /// sends to its own group (`kill 0`, editors on Ctrl-Z) sends to us as well.
    fn reached(&self, command: &Child, sender: Sender) -> bool {
        match sender {
            Sender::Kernel => command.is_in_our_group(),
            Sender::Process(pid) => self.cgroup.holds(pid),
        }
    }

    async fn let_leftovers_run(&mut self) -> Result<(), JobError> {
        let Self {
            signals, cgroup, ..
        } = self;
        loop {
            tokio::select! {
                emptied = cgroup.emptied() => return Ok(emptied?),
                received = signals.next() => {
                    if ends(received) {
                        return Ok(());
                    }
                    if received.signal == libc::SIGTSTP {
                        stop(libc::SIGTSTP);
                    }
                }
            }
        }
    }

    async fn end_leftovers(&mut self) -> Result<(), JobError> {
        if !self.cgroup.is_populated()? {
            return Ok(());
        }
        tracing::debug!("the command left processes behind; they are ended");
        self.cgroup.signal(Signal::SIGTERM);
        // A stopped process gets to its SIGTERM only when it is continued.
        self.cgroup.signal(Signal::SIGCONT);
        let Self {
            signals, cgroup, ..
        } = self;
        let impatient = async { while !ends(signals.next().await) {} };
        let left = async {
            tokio::select! {
                emptied = cgroup.emptied() => emptied,
                () = impatient => Ok(()),
            }
        };
        if let Ok(left) = timeout(GRACE, left).await {
            left?;
        }
        // Also when all are gone: it costs nothing then, and a late fork is not missed.
        Ok(cgroup.kill()?)
    }
}

/// Whether a signal asks culvert to come to an end.
fn ends(received: Received) -> bool {
    matches!(
        received.signal,
        libc::SIGINT | libc::SIGQUIT | libc::SIGTERM | libc::SIGHUP
    )
}
