//! A terminal with a shell in it, which the test types into and reads from.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::{Winsize, openpty},
    unistd::setsid,
};

use crate::eventually;

/// A process that leads a session of its own on a terminal, killed when dropped.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    seen: String,
}

impl Terminal {
    /// Starts a command on a new terminal.
    pub fn start(command: &mut Command) -> Self {
        Self::open(command, None)
    }

    /// Starts a command on a new terminal of so many columns and lines.
    pub(crate) fn open(command: &mut Command, size: Option<(u16, u16)>) -> Self {
        let size = size.map(winsize);
        let ends = openpty(size.as_ref(), None).expect("a terminal");
        let slave = || Stdio::from(ends.slave.try_clone().expect("a second descriptor"));
        command.stdin(slave()).stdout(slave()).stderr(slave());
        // SAFETY: single system calls, which may be made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        // Nobody but the child may hold the other end, or the terminal would outlive it.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let master = File::from(ends.master);
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("O_NONBLOCK");
        Self {
            master,
            child,
            seen: String::new(),
        }
    }

    /// Types a text; control characters are what they are on a keyboard.
    pub fn type_in(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("cannot type into the terminal");
    }

    /// Gives it another size, of which the kernel tells who is on it.
    pub(crate) fn resize(&self, columns: u16, lines: u16) {
        let size = winsize((columns, lines));
        // SAFETY: the descriptor is open, and the kernel reads the struct.
        let result =
            unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(result, 0, "cannot resize the terminal");
    }

    /// What was written since; `None` when nobody is on it any more.
    pub(crate) fn read(&mut self) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.master.read(&mut buffer) {
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(all),
                Err(_) if all.is_empty() => return None,
                Err(_) => return Some(all),
            }
        }
    }

    /// How the command ended, once it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("cannot wait for the command")
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a text appears after what was waited for before, and returns what stood before it.
    pub fn await_text(&mut self, wanted: &str) -> String {
        let Self { master, seen, .. } = self;
        let what = format!("{wanted:?} on the terminal");
        let mut buffer = [0; 4096];
        let at = eventually(&what, || {
            match master.read(&mut buffer) {
                Ok(count) => seen.push_str(&String::from_utf8_lossy(&buffer[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The last process on the terminal has ended.
                Err(error) => assert!(seen.contains(wanted), "{error}, {wanted:?} not in {seen:?}"),
            }
            seen.find(wanted)
        });
        let rest = seen.split_off(at + wanted.len());
        let mut before = std::mem::replace(seen, rest);
        before.truncate(at);
        before
    }
}

impl Terminal {
    /// Waits until a job has the terminal and all its processes go on. Shells say that a job is continued before it is, and
    /// what is typed in between stops nobody.
    pub fn await_running_job(&self) {
        let shell = self.child.id().to_string();
        eventually("a job that runs in the foreground", || {
            let job = fields(&shell).and_then(|shell| {
                let [_, _, group, _, _, foreground] = shell;
                (group != foreground).then_some(foreground)
            })?;
            let processes = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok);
            let states: Vec<_> = processes
                .filter_map(|entry| fields(entry.file_name().to_str()?))
                .filter(|[_, _, group, ..]| *group == job)
                .map(|[state, ..]| state)
                .collect();
            (!states.is_empty() && states.iter().all(|state| state != "T")).then_some(())
        });
    }
}

fn winsize((columns, lines): (u16, u16)) -> Winsize {
    Winsize {
        ws_row: lines,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// State, parent, group, session, terminal and the terminal's foreground group of a process (`proc_pid_stat(5)`).
fn fields(pid: &str) -> Option<[String; 6]> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<_> = fields
        .split_ascii_whitespace()
        .take(6)
        .map(str::to_owned)
        .collect();
    fields.try_into().ok()
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- rest of the terminal\n{}---", self.seen);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
