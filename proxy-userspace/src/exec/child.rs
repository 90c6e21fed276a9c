//! The command as a process: started inside its cgroup, watched for stops and for its end.

use std::{
    ffi::{OsStr, OsString},
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command as Process, ExitStatus},
};

use nix::{
    errno::Errno,
    sys::resource::{Resource, setrlimit},
    unistd::{Gid, Pid, Uid, getpgid, getpgrp, setgid, setgroups, setuid},
};
use thiserror::Error;

use super::{
    ending::Ending,
    identity::Identity,
    signals::{Disposition, set_disposition},
};
use crate::cgroup::OwnCgroup;

/// What to run, and as whom.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// Path of a program, or a name to find in `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Whom to become first.
    pub identity: Option<Identity>,
    /// Soft and hard limit of open files, where culvert has raised its own.
    pub open_files: Option<(u64, u64)>,
}

/// Why a command does not run.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// No such program.
    #[error("{}: command not found", program.display())]
    NotFound {
        /// As it was asked for.
        program: OsString,
    },
    /// There is something of the name that does not run.
    #[error("{}: cannot be run", program.display())]
    NotExecutable {
        /// As it was asked for.
        program: OsString,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The child could not enter the cgroup.
    #[error("cannot start the command in the cgroup {}", path.display())]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The child could not become the user.
    #[error("cannot run the command as user {uid} with group {gid}; this needs root")]
    Identity {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The limit of open files could not be restored.
    #[error("cannot set the command's limit of open files")]
    OpenFiles(#[source] io::Error),
    /// No process could be made.
    #[error("cannot start a process")]
    Fork(#[source] io::Error),
}

impl SpawnError {
    /// The exit status a shell has for it: 127 not found, 126 not executable, 1 otherwise.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            _ => 1,
        }
    }
}

/// How far a child came before `execve`. It has no other way to tell which call failed than one byte for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Cgroup,
    OpenFiles,
    Identity,
    Execute,
}

impl Step {
    const ALL: [Self; 4] = [Self::Cgroup, Self::OpenFiles, Self::Identity, Self::Execute];

    fn announce(self, mut progress: &PipeWriter) -> io::Result<()> {
        progress.write_all(&[self as u8])
    }

    /// The last one announced; none if there is no child.
    fn last(mut progress: PipeReader) -> Option<Self> {
        let mut announced = Vec::new();
        progress.read_to_end(&mut announced).ok()?;
        let last = announced.last()?;
        Self::ALL.into_iter().find(|step| *step as u8 == *last)
    }
}

/// What happened to the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is no more.
    Ended(Ending),
    /// A signal stopped it.
    Stopped(i32),
    /// It runs again.
    Continued,
}

/// The running command.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    stopped: bool,
    ended: Option<Ending>,
}

impl Child {
    /// Starts a command in a cgroup.
    ///
    /// The child moves itself, between fork and execve: no instruction of the command runs outside, as with
    /// `CLONE_INTO_CGROUP`, but by the standard library's spawn, which reports a failed `execve`. The signals in
    /// `ignored_here` get their default back. `no_new_privs` is not set: sudo inside must work.
    ///
    /// Standard input, output and error, the process group and all files that were inherited from culvert's caller
    /// are the command's as well (`<(…)` of a shell works); files of culvert itself are closed by execve.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub fn spawn(
        command: &Command,
        cgroup: &OwnCgroup,
        ignored_here: &[i32],
    ) -> Result<Self, SpawnError> {
        let (progress, announce) = io::pipe().map_err(SpawnError::Fork)?;
        let mut process = Process::new(&command.program);
        process.args(&command.args);
        for (variable, value) in command.identity.iter().flat_map(|it| &it.variables) {
            match value {
                Some(value) => process.env(variable, value),
                None => process.env_remove(variable),
            };
        }
        let enter = before_execve(command, cgroup, ignored_here.to_vec(), announce)?;
        // SAFETY: the closure only makes system calls on what was allocated before the fork.
        unsafe {
            process.pre_exec(enter);
        }
        let spawned = process.spawn();
        // With it goes our write end of the progress.
        drop(process);
        match spawned {
            Ok(child) => Ok(Self {
                pid: Pid::from_raw(child.id().cast_signed()),
                stopped: false,
                ended: None,
            }),
            Err(source) => Err(explain(command, cgroup, Step::last(progress), source)),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it is stopped, as far as was polled.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether it is still in the process group it was started in: ours. Interactive shells make one of their own.
    #[must_use]
    pub fn is_in_our_group(&self) -> bool {
        getpgid(Some(self.pid)) == Ok(getpgrp())
    }

    /// What happened since the last call; `None` when nothing did. After the end, the end again.
    ///
    /// # Errors
    /// Those of `waitpid`.
    pub fn poll(&mut self) -> io::Result<Option<Turn>> {
        if let Some(ending) = self.ended {
            return Ok(Some(Turn::Ended(ending)));
        }
        let Some(status) = wait(self.pid)? else {
            return Ok(None);
        };
        let turn = match (Ending::of(status), status.stopped_signal()) {
            (Some(ending), _) => Turn::Ended(ending),
            (None, Some(signal)) => Turn::Stopped(signal),
            (None, None) => Turn::Continued,
        };
        self.stopped = matches!(turn, Turn::Stopped(_));
        if let Turn::Ended(ending) = turn {
            self.ended = Some(ending);
        }
        Ok(Some(turn))
    }

    /// Sends it a signal, unless its end was seen already.
    pub fn signal(&self, signal: i32) {
        if self.ended.is_some() {
            return;
        }
        // SAFETY: a plain system call; the id is not in use by another process until we have waited for it.
        if unsafe { libc::kill(self.pid.as_raw(), signal) } != 0 {
            let error = io::Error::last_os_error();
            tracing::debug!(signal, %error, "a signal cannot be passed on");
        }
    }
}

/// What the child does before `execve`. Everything it needs is opened and allocated here.
fn before_execve(
    command: &Command,
    cgroup: &OwnCgroup,
    ignored_here: Vec<i32>,
    progress: PipeWriter,
) -> Result<impl FnMut() -> io::Result<()> + use<>, SpawnError> {
    let mut entrance = cgroup.entrance().map_err(|source| SpawnError::Cgroup {
        path: cgroup.dir().to_owned(),
        source,
    })?;
    let open_files = command.open_files;
    let identity = command.identity.as_ref().map(|identity| {
        let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
        (
            Uid::from_raw(identity.uid),
            Gid::from_raw(identity.gid),
            groups,
        )
    });
    Ok(move || {
        Step::Cgroup.announce(&progress)?;
        // Still as root: older kernels ask for the right of the writer.
        entrance.write_all(b"0")?;
        for signal in &ignored_here {
            set_disposition(*signal, Disposition::Default);
        }
        Step::OpenFiles.announce(&progress)?;
        if let Some((soft, hard)) = open_files {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        Step::Identity.announce(&progress)?;
        if let Some((uid, gid, groups)) = &identity {
            setgroups(groups)?;
            setgid(*gid)?;
            // Last: it takes the right to the others, and all capabilities.
            setuid(*uid)?;
        }
        Step::Execute.announce(&progress)
    })
}

/// Says why a child did not get to run its program.
fn explain(
    command: &Command,
    cgroup: &OwnCgroup,
    step: Option<Step>,
    source: io::Error,
) -> SpawnError {
    let program = command.program.clone();
    match step {
        None => SpawnError::Fork(source),
        Some(Step::Cgroup) => SpawnError::Cgroup {
            path: cgroup.dir().to_owned(),
            source,
        },
        Some(Step::OpenFiles) => SpawnError::OpenFiles(source),
        Some(Step::Identity) => {
            let identity = command.identity.as_ref();
            SpawnError::Identity {
                uid: identity.map_or(0, |identity| identity.uid),
                gid: identity.map_or(0, |identity| identity.gid),
                source,
            }
        }
        Some(Step::Execute) => match source.kind() {
            // A file that is there is a script whose interpreter is missing.
            io::ErrorKind::NotFound if is_missing(&program) => SpawnError::NotFound { program },
            io::ErrorKind::NotADirectory => SpawnError::NotFound { program },
            io::ErrorKind::NotFound => SpawnError::NotExecutable {
                program,
                source: io::Error::new(source.kind(), "its interpreter does not exist"),
            },
            _ => SpawnError::NotExecutable { program, source },
        },
    }
}

/// Whether a program is not there; one without `/` was looked for in `PATH`.
fn is_missing(program: &OsStr) -> bool {
    !program.as_encoded_bytes().contains(&b'/') || !Path::new(program).exists()
}

/// One change of state, if there is one. Not by nix: it has no name for real-time signals, and would lose the end of
/// a command that one of them killed.
fn wait(pid: Pid) -> io::Result<Option<ExitStatus>> {
    let mut status = 0;
    let options = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
    loop {
        // SAFETY: the status is a valid local; the child is ours and nobody else waits for it.
        match unsafe { libc::waitpid(pid.as_raw(), &raw mut status, options) } {
            0 => return Ok(None),
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => return Ok(Some(ExitStatus::from_raw(status))),
        }
    }
}
