//! Job control, from an interactive bash on a terminal of its own.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::{
        fd::AsFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt},
};

use crate::harness::{DEADLINE, eventually, gone, state};

tests![
    ctrl_c_reaches_the_command_once,
    ctrl_c_leaves_a_loop_of_the_shell,
    ctrl_z_gives_the_prompt_back_and_fg_continues,
    a_job_in_the_background_goes_on_and_waits_for_input,
    a_command_that_catches_ctrl_z_decides_itself,
    a_shell_inside_has_job_control_too,
    a_shell_inside_can_be_suspended,
    a_resized_window_is_told,
    a_closed_terminal_leaves_nothing,
];

/// A terminal with an interactive bash in it.
struct Terminal {
    master: File,
    shell: Child,
    /// All that was shown.
    shown: String,
    /// How much of it was expected already.
    seen: usize,
}

impl Terminal {
    fn open() -> Self {
        let open = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(open).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname_r(&master).unwrap();
        let exe = std::env::current_exe().unwrap();
        let slave = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            let slave = options.custom_flags(libc::O_NOCTTY).open(&path);
            Stdio::from(slave.unwrap())
        };
        let mut bash = Command::new("bash");
        bash.args(["--norc", "--noprofile", "-i"])
            .env("PS1", "PROMPT> ")
            .env("TERM", "dumb")
            .env("CULVERT", exe)
            .env("HISTFILE", "/dev/null")
            .stdin(slave())
            .stdout(slave())
            .stderr(slave());
        // SAFETY: both are plain system calls; descriptor 0 is the terminal by then.
        unsafe {
            bash.pre_exec(|| {
                nix::unistd::setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    -1 => Err(std::io::Error::last_os_error()),
                    _ => Ok(()),
                }
            });
        }
        let shell = bash.spawn().unwrap();
        let mut terminal = Self {
            master: File::from(std::os::fd::OwnedFd::from(master)),
            shell,
            shown: String::new(),
            seen: 0,
        };
        terminal.expect("PROMPT> ");
        terminal
    }

    /// Types a line, in which `culvert` is the program under test.
    fn line(&mut self, line: &str) {
        let line = line.replace("culvert ", "\"$CULVERT\" exec ");
        self.keys(&format!("{line}\n"));
    }

    fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the text is shown after what was expected before; returns what came between.
    fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = self.shown[self.seen..].find(text) {
                let between = self.shown[self.seen..self.seen + at].to_owned();
                self.seen += at + text.len();
                return between;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {text:?} after:\n{}", self.shown);
            let timeout = PollTimeout::try_from(left).unwrap();
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, timeout).unwrap() > 0 {
                let mut buffer = [0; 4096];
                let count = nix::unistd::read(&self.master, &mut buffer)
                    .unwrap_or_else(|error| panic!("{error}, no {text:?} after:\n{}", self.shown));
                self.shown
                    .push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        }
    }

    /// Runs a line and returns what it showed, echo excluded.
    fn answer(&mut self, line: &str) -> String {
        self.line(&format!("{line}; echo END-$((1))"));
        self.expect("\n");
        let answer = self.expect("END-1");
        self.expect("PROMPT> ");
        answer.trim().to_owned()
    }

    /// The number after a word that the command shows. The echo of what was typed has none there.
    fn number(&mut self, word: &str) -> i32 {
        loop {
            self.expect(&format!("{word}="));
            if let Ok(number) = self.expect("\r\n").parse() {
                return number;
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ended = self.shell.kill();
        let _reaped = self.shell.wait();
        if thread::panicking() {
            eprintln!("the terminal showed:\n{}", self.shown);
        }
    }
}

const LOOP: &str = "while :; do sleep 0.01; done";

fn ctrl_c_reaches_the_command_once() {
    let counter = script(
        "import signal, sys, time\n\
         count = 0\n\
         def on_int(*_):\n    global count\n    count += 1\n    print('int=%d' % count, flush=True)\n\
         def on_quit(*_):\n    print('total=%d' % count, flush=True)\n    sys.exit(6)\n\
         signal.signal(signal.SIGINT, on_int)\n\
         signal.signal(signal.SIGQUIT, on_quit)\n\
         print('ready=1', flush=True)\n\
         while True: time.sleep(0.01)\n",
    );
    let mut terminal = Terminal::open();
    terminal.line(&format!("culvert python3 {}", counter.path().display()));
    terminal.number("ready");
    for count in 1..=3 {
        terminal.keys("\x03");
        assert_eq!(terminal.number("int"), count);
    }
    terminal.keys("\x1c");
    assert_eq!(terminal.number("total"), 3);
    terminal.expect("PROMPT> ");
    assert_eq!(terminal.answer("echo $?"), "6");
}

fn ctrl_c_leaves_a_loop_of_the_shell() {
    let mut terminal = Terminal::open();
    // The shell leaves the loop only if culvert itself dies of the signal.
    terminal.line("for i in 1 2 3; do culvert sh -c 'echo run=$$; exec sleep 1000'; done");
    let command = terminal.number("run");
    terminal.keys("\x03");
    terminal.expect("PROMPT> ");
    assert_eq!(terminal.answer("echo $?"), "130");
    assert!(gone(command));
}

fn ctrl_z_gives_the_prompt_back_and_fg_continues() {
    let mut terminal = Terminal::open();
    terminal.line("culvert sh -c 'echo pid=$$; read line; echo got-$line'");
    let command = terminal.number("pid");
    for _ in 0..3 {
        terminal.keys("\x1a");
        terminal.expect("Stopped");
        terminal.expect("PROMPT> ");
        terminal.line("fg");
        // Only then: SIGCONT takes a SIGTSTP away that comes before it.
        eventually("the command runs again", || state(command) != 'T');
    }
    terminal.line("hello");
    terminal.expect("got-hello");
    terminal.expect("PROMPT> ");
    assert_eq!(terminal.answer("jobs"), "");
}

fn a_job_in_the_background_goes_on_and_waits_for_input() {
    let mut terminal = Terminal::open();
    terminal.line("culvert sh -c 'echo pid=$$; read line; echo got-$line' &");
    terminal.number("pid");
    // It reads from the terminal that it does not have.
    eventually("the job is stopped for input", || {
        terminal.answer("jobs").contains("Stopped")
    });
    terminal.line("fg");
    terminal.expect("exec sh -c");
    terminal.line("hello");
    terminal.expect("got-hello");
    terminal.expect("PROMPT> ");
    // No loop of dash here: Ctrl-Z between vfork and execve would stop its child and leave it waiting.
    terminal.line("culvert sh -c 'echo pid=$$; exec sleep 1000'");
    terminal.number("pid");
    terminal.keys("\x1a");
    terminal.expect("PROMPT> ");
    terminal.line("bg");
    terminal.expect("PROMPT> ");
    assert!(terminal.answer("jobs").contains("Running"));
    assert!(
        terminal
            .answer("kill %1; wait %1; echo status-$?")
            .contains("status-143")
    );
}

fn a_command_that_catches_ctrl_z_decides_itself() {
    // As editors do: tidy up, then stop the whole process group.
    let editor = script(
        "import os, signal, time\n\
         def on_stop(*_):\n    \
             print('tidy=1', flush=True)\n    \
             signal.signal(signal.SIGTSTP, signal.SIG_DFL)\n    \
             os.kill(0, signal.SIGTSTP)\n    \
             signal.signal(signal.SIGTSTP, on_stop)\n    \
             print('back=1', flush=True)\n\
         signal.signal(signal.SIGTSTP, on_stop)\n\
         print('ready=1', flush=True)\n\
         while True: time.sleep(0.01)\n",
    );
    let mut terminal = Terminal::open();
    terminal.line(&format!("culvert python3 {}", editor.path().display()));
    terminal.number("ready");
    for _ in 0..2 {
        terminal.keys("\x1a");
        terminal.number("tidy");
        terminal.expect("Stopped");
        terminal.expect("PROMPT> ");
        terminal.line("fg");
        terminal.number("back");
    }
    terminal.keys("\x03");
    terminal.expect("PROMPT> ");
}

fn a_shell_inside_has_job_control_too() {
    let mut terminal = Terminal::open();
    terminal.line("PS1=INNER'> ' culvert bash --norc --noprofile -i");
    terminal.expect("INNER> ");
    terminal.line("sleep 1000");
    eventually("sleep has the terminal", || {
        has_terminal(&terminal, "sleep")
    });
    terminal.keys("\x1a");
    terminal.expect("Stopped");
    terminal.expect("INNER> ");
    terminal.line("fg");
    eventually("sleep has it again", || has_terminal(&terminal, "sleep"));
    terminal.keys("\x03");
    terminal.expect("INNER> ");
    terminal.line("exit 3");
    terminal.expect("PROMPT> ");
    assert_eq!(terminal.answer("echo $?"), "3");
}

fn a_shell_inside_can_be_suspended() {
    let mut terminal = Terminal::open();
    terminal.line("PS1=INNER'> ' culvert bash --norc --noprofile -i");
    terminal.expect("INNER> ");
    for _ in 0..2 {
        terminal.line("suspend");
        terminal.expect("Stopped");
        terminal.expect("PROMPT> ");
        terminal.line("fg");
        terminal.expect("\r\n");
        terminal.line("echo here-$((6*7))");
        terminal.expect("here-42");
        terminal.expect("INNER> ");
    }
    terminal.line("exit 4");
    terminal.expect("PROMPT> ");
    assert_eq!(terminal.answer("echo $?"), "4");
}

fn a_resized_window_is_told() {
    let mut terminal = Terminal::open();
    terminal.line(&format!(
        "culvert bash -c 'trap \"echo size=\\$(stty size)\" WINCH; echo pid=$$; {LOOP}'"
    ));
    terminal.number("pid");
    let size = Winsize {
        ws_row: 11,
        ws_col: 77,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call reads a valid structure of its kind.
    let set = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&terminal.master),
            libc::TIOCSWINSZ,
            &raw const size,
        )
    };
    assert_eq!(set, 0);
    terminal.expect("size=11 77");
    terminal.keys("\x03");
    terminal.expect("PROMPT> ");
}

fn a_closed_terminal_leaves_nothing() {
    let mut terminal = Terminal::open();
    terminal.line(&format!(
        "culvert bash -c 'echo culvert=$PPID; echo pid=$$; {LOOP}'"
    ));
    let culvert = terminal.number("culvert");
    let command = terminal.number("pid");
    let cgroup = crate::harness::cgroup_of(culvert.unsigned_abs());
    assert!(cgroup.exists());
    terminal.master = File::open("/dev/null").unwrap();
    eventually("command, culvert and cgroup are gone", || {
        gone(command) && gone(culvert) && !cgroup.exists()
    });
}

/// A Python program: unlike a shell it loses no signal that comes while it starts a child.
fn script(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Whether a program of this name is in the foreground process group.
fn has_terminal(terminal: &Terminal, name: &str) -> bool {
    let Ok(group) = nix::unistd::tcgetpgrp(&terminal.master) else {
        return false;
    };
    let comm = std::fs::read_to_string(format!("/proc/{group}/comm"));
    comm.is_ok_and(|comm| comm.trim_end() == name)
}
