//! Job control: culvert stops when its command is stopped, so that the shell gets its prompt back.
//!
//! The command is in culvert's process group, so Ctrl-Z, `fg` and `bg` reach both. Culvert itself takes no notice
//! of Ctrl-Z: the command may catch it, and only when the command has stopped culvert stops as well (and with
//! it, all connections of the job wait). The same that sudo does without a pty (`exec_nopty.c`).

use std::fs::{self, File, OpenOptions};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, getpgid, getpgrp, getppid, getsid, tcgetpgrp, tcsetpgrp},
};

use super::signals::{Disposition, set_disposition};

/// Whether culvert has to stop as well after a signal stopped the command.
///
/// `SIGSTOP` counts only if the command held the terminal: then it stopped itself (`suspend` of a shell), and the
/// shell outside waits for us. Without a terminal somebody paused the command alone and will continue it alone;
/// culvert would stay behind stopped, with the network of all its processes.
pub(super) fn stops_the_job(signal: i32, command: Pid) -> bool {
    match signal {
        libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => true,
        _ => Terminal::open().is_some_and(|terminal| {
            let holder = tcgetpgrp(&terminal.0);
            holder.is_ok() && holder == getpgid(Some(command))
        }),
    }
}

/// Stops this process as the command was stopped; returns when it is continued.
pub(super) fn follow_stop(signal: i32, command: Pid) {
    let terminal = Terminal::open();
    if let Some(terminal) = &terminal
        && matches!(signal, libc::SIGTTIN | libc::SIGTTOU)
        && terminal.hand_over(command)
    {
        return;
    }
    let holder = terminal.as_ref().and_then(Terminal::foreign_holder);
    stop(signal);
    // Most shells took the terminal from the command before they stopped; where they did not, it has to be given
    // back, unless the job continues in the background.
    if let (Some(terminal), Some(holder)) = (terminal, holder) {
        terminal.give_to(holder);
    }
}

/// Stops this process as a signal does by default; returns when it is continued.
///
/// For Ctrl-Z that is done by `SIGSTOP`, which leaves the handler where it is. Between going on and putting it back, the next Ctrl-Z
/// would stop us, whatever the command does of it. Shells show both as stopped. Unlike by `SIGTSTP` one is stopped by it
/// also when nobody is left to continue the job, as when the terminal was closed a moment ago.
pub(super) fn stop(signal: i32) {
    if signal == libc::SIGTSTP {
        if !is_orphaned() {
            raise(libc::SIGSTOP);
        }
        return;
    }
    // SAFETY: the old action is put back as it was, and no handler is installed meanwhile.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        let known = libc::sigaction(signal, std::ptr::null(), &raw mut old) == 0;
        set_disposition(signal, Disposition::Default);
        raise(signal);
        if known {
            libc::sigaction(signal, &raw const old, std::ptr::null_mut());
        }
    }
}

/// Sends this thread a signal, which has done its work on the process when this returns.
fn raise(signal: i32) {
    // SAFETY: a plain system call.
    unsafe { libc::raise(signal) };
}

/// Whether nobody is left who would continue our process group: the first of our ancestors outside of it is not of our session.
fn is_orphaned() -> bool {
    let (group, mut ancestor) = (Ok(getpgrp()), getppid());
    while getpgid(Some(ancestor)) == group {
        match parent_of(ancestor) {
            Some(parent) => ancestor = parent,
            None => return true,
        }
    }
    getsid(Some(ancestor)) != getsid(None)
}

fn parent_of(process: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in brackets may have brackets and spaces itself.
    let (_, fields) = stat.rsplit_once(')')?;
    let parent = fields.split_whitespace().nth(1)?.parse().ok()?;
    (parent != 0).then(|| Pid::from_raw(parent))
}

/// The controlling terminal.
struct Terminal(File);

impl Terminal {
    fn open() -> Option<Self> {
        let tty = OpenOptions::new().read(true).write(true).open("/dev/tty");
        tty.ok().map(Self)
    }

    /// The foreground process group, if it is not ours.
    fn foreign_holder(&self) -> Option<Pid> {
        tcgetpgrp(&self.0).ok().filter(|group| *group != getpgrp())
    }

    /// Gives the terminal to a command that made a process group of its own and waits for what we hold.
    fn hand_over(&self, command: Pid) -> bool {
        let Ok(group) = getpgid(Some(command)) else {
            return false;
        };
        group != getpgrp() && self.give_to(group) && killpg(group, Signal::SIGCONT).is_ok()
    }

    /// Makes a group the foreground one. Only from the foreground: the terminal is not taken from the shell.
    fn give_to(&self, group: Pid) -> bool {
        self.foreign_holder().is_none() && tcsetpgrp(&self.0, group).is_ok()
    }
}
