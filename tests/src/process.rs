//! Programs that tests run.

use std::{
    env,
    io::{BufRead, BufReader, Write, pipe},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::eventually::in_time;

/// Has a command know nothing of who may have called the tests through sudo.
pub fn without_invoker(command: &mut Command) -> &mut Command {
    for variable in [
        "SUDO_UID",
        "SUDO_GID",
        "SUDO_USER",
        "PKEXEC_UID",
        "DOAS_USER",
    ] {
        command.env_remove(variable);
    }
    command
}

/// Runs a tool to its end and returns its standard output. Panics, with what it said, when it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    output(Command::new(program).args(arguments))
}

/// Runs a command to its end and returns its standard output. Panics, with what it said, when it fails.
pub fn output(command: &mut Command) -> String {
    let output = attempt(command);
    printed(&format!("{command:?}"), output)
}

fn printed(command: &str, output: Output) -> String {
    assert!(
        output.status.success(),
        "{command} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("output that is not UTF-8")
}

/// As [`output`], of a command that reads this from its standard input, which must fit into a pipe.
pub fn output_of(command: &mut Command, input: &str) -> String {
    let (from, mut to) = pipe().expect("a pipe");
    to.write_all(input.as_bytes()).expect("room in a pipe");
    drop(to);
    let shown = format!("{command:?}");
    let output = command
        .stdin(from)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {shown}: {error}"));
    printed(&shown, output)
}

/// Runs a command to its end, however it ends.
pub fn attempt(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// Runs a command that now and then prints a line and waits for one, and takes the next step in between. Panics when the
/// command fails.
pub fn in_steps(command: &mut Command, steps: &mut [&mut dyn FnMut()]) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let mut input = child.stdin.take().expect("its input");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    for step in steps {
        lines.next().expect("it failed").expect("a line");
        step();
        input.write_all(b"\n").expect("to go on");
    }
    assert!(child.wait().expect("its end").success());
}

/// A program in the background that ends with its owner.
#[derive(Debug)]
pub struct Running {
    child: Child,
    ended_by: Signal,
}

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self {
            child,
            ended_by: Signal::SIGKILL,
        }
    }

    /// Ends it by another signal than that which kills, so that it can clean up.
    #[must_use]
    pub fn ended_by(mut self, signal: Signal) -> Self {
        self.ended_by = signal;
        self
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("cannot signal a child");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended_by != Signal::SIGKILL && self.child.try_wait().is_ok_and(|end| end.is_none())
        {
            self.signal(self.ended_by);
            let _ = in_time(|| self.child.try_wait().ok().flatten());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary under test: what `CULVERT_BIN` names, or else what the workspace has built, release first.
pub fn culvert_binary() -> PathBuf {
    if let Some(path) = env::var_os("CULVERT_BIN") {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "CULVERT_BIN is {}, where no file is",
            path.display()
        );
        return path;
    }
    let target = target_directory();
    let triples = std::fs::read_dir(&target).into_iter().flatten();
    let triples: Vec<_> = triples
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    let candidates = ["release", "debug"].into_iter().flat_map(|profile| {
        let below = |folder: &PathBuf| folder.join(profile).join("culvert");
        triples
            .iter()
            .map(below)
            .chain([below(&target)])
            .collect::<Vec<_>>()
    });
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no culvert binary below {}: run the tests by `cargo xtask test`, or set CULVERT_BIN",
                target.display()
            )
        })
}

/// The program that connects on behalf of tests; Cargo puts it beside other programs, and beside the folder of the test
/// binaries.
pub fn app_binary() -> PathBuf {
    program_beside("culvert-test-app")
}

/// A program of this package.
pub fn program_beside(name: &str) -> PathBuf {
    let own = env::current_exe().expect("cannot tell the path of this program");
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no {name} beside {}", own.display()))
}

fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    )
}

/// Writes a file that only its owner may read, as a configuration with secrets should be.
pub fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
