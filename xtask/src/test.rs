//! Running every test: those of the crates, and those of `culvert-tests` on the running kernel.

mod again;
mod tally;

use std::{
    ffi::OsString,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use self::{again::Failures, tally::Tally};
use crate::{
    build::{self, Profile},
    command, packages, progress,
    workspace::Workspace,
};

/// Where the tests find the release binary.
pub(crate) const BINARY: &str = "CULVERT_BIN";
/// What the kernel tests talk to and look with: program or file, Debian package.
const PROGRAMS: [(&str, &str); 22] = [
    ("bpftool", "bpftool"),
    // What is in images has to run without libraries; the program of another package may not.
    ("/var/lib/dpkg/info/busybox-static.list", "busybox-static"),
    ("/usr/bin/chromium", "chromium"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("curl", "curl"),
    // With containerd and runc.
    ("/usr/sbin/dockerd", "docker.io"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("microsocks", "microsocks"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    (
        "/usr/lib/nginx/modules/ngx_stream_module.so",
        "libnginx-mod-stream",
    ),
    ("openssl", "openssl"),
    ("/usr/bin/podman", "podman"),
    // The server itself is in no PATH.
    ("pg_ctlcluster", "postgresql"),
    ("python3", "python3"),
    (
        "/usr/lib/python3/dist-packages/jsonschema",
        "python3-jsonschema",
    ),
    // With its client and its load tool.
    ("redis-server", "redis-server"),
    ("ssh", "openssh-client"),
    ("sshd", "openssh-server"),
    ("/lib/systemd/systemd", "systemd"),
    ("wrk", "wrk"),
];
/// How long the test takes that is `cargo xtask soak`.
const SOAK_SECONDS: &str = "CULVERT_SOAK_SECONDS";
/// How the output names it where it fails.
const SOAK: &str = "--test soak";
/// What it prints, and takes from the environment.
const SOAK_SEED: &str = "CULVERT_SOAK_SEED=";
/// The crates with tests; all in one Cargo call, so that their dependencies are built once for all.
const PACKAGES: [&str; 8] = [
    "--package",
    "proxy-common",
    "--package",
    "proxy-userspace",
    "--package",
    "xtask",
    "--package",
    "culvert-tests",
];

/// So many failed tests are run again, each by itself: on a busy machine one may fail of what runs beside it. If it passes
/// then, the last line names it.
const MOST_REPEATED: usize = 3;

/// Runs the tests whose name contains `filter` and prints their number last.
pub(crate) fn test(workspace: &Workspace, filter: Option<&str>) -> Result<ExitCode> {
    let runner = Runner::new(workspace)?;
    progress::step("building the tests (from scratch usually two to four minutes)");
    command::run(runner.cargo(&PACKAGES).arg("--no-run"))?;

    let mut cargo = runner.cargo(&PACKAGES);
    cargo.arg("--no-fail-fast").args(filter);
    progress::step(&command::line(&cargo));
    let (mut tally, failures) = watch(cargo)?;
    for program in failures.few(MOST_REPEATED) {
        if program.names.is_empty() {
            continue;
        }
        // What it does is drawn anew each time: that it passes once says nothing of the time that it did not.
        if program.selection.ends_with(SOAK) {
            let seed = failures.seed().unwrap_or("SEED, which it prints");
            progress::step(&format!(
                "the soak failed, and is not run again; the same once more: {SOAK_SEED}{seed} cargo xtask soak"
            ));
            continue;
        }
        let selection: Vec<_> = program.selection.split(' ').collect();
        let mut cargo = runner.cargo(&selection);
        cargo.args(["--", "--exact"]).args(&program.names);
        progress::step(&format!(
            "once more, by themselves: {}",
            command::line(&cargo)
        ));
        if command::run(&mut cargo).is_ok() {
            tally.accept(program.names.clone());
        }
    }
    println!("{tally}");
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the one test that goes on for as long as it is told.
pub(crate) fn soak(workspace: &Workspace, minutes: u64) -> Result<()> {
    let mut runner = Runner::new(workspace)?;
    let seconds = (minutes * 60).to_string();
    runner.variables.push((SOAK_SECONDS, seconds.into()));
    let mut cargo = runner.cargo(&["--package", "culvert-tests", "--test", "soak"]);
    cargo.args(["--", "--nocapture"]);
    progress::step(&command::line(&cargo));
    command::run(&mut cargo)
}

/// Starts Cargo so that its test programs run as root and know what they test.
struct Runner<'a> {
    workspace: &'a Workspace,
    as_root: AsRoot,
    variables: Vec<(&'static str, OsString)>,
}

impl<'a> Runner<'a> {
    /// Provides what tests need, and builds what they test.
    fn new(workspace: &'a Workspace) -> Result<Self> {
        let as_root = as_root()?;
        provide_programs()?;
        let binary = build::build(workspace, Profile::Release)?;
        Ok(Self {
            workspace,
            as_root,
            variables: vec![(BINARY, binary.into())],
        })
    }

    fn cargo(&self, selection: &[&str]) -> Command {
        let mut cargo = command::cargo(&self.workspace.root);
        cargo.arg("test");
        if self.as_root == AsRoot::Sudo {
            // Only the test programs become root: Cargo's folders keep their owner. sudo drops the environment,
            // and the variables it adds would make culvert act for the user behind it.
            let mut words: Vec<_> = ["sudo", "env", "-uSUDO_UID", "-uSUDO_GID", "-uSUDO_USER"]
                .map(str::to_owned)
                .into();
            let own = self.variables.iter();
            words.extend(own.map(|(name, value)| format!("{name}={}", value.display())));
            words.extend(command::cargo_variables());
            let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
            cargo
                .arg("--config")
                .arg(format!("target.'cfg(all())'.runner=[{}]", words.join(",")));
        }
        cargo.args(selection).envs(self.variables.iter().cloned());
        cargo
    }
}

#[derive(PartialEq, Eq)]
enum AsRoot {
    Already,
    Sudo,
}

/// How the test programs become root.
fn as_root() -> Result<AsRoot> {
    if packages::is_root() {
        return Ok(AsRoot::Already);
    }
    if !command::exists("sudo") {
        bail!(
            "the kernel tests attach eBPF programs and need root, and there is no sudo: run this as root"
        );
    }
    progress::step(
        "the kernel tests need root: the test programs run through sudo, nothing else does",
    );
    command::run(Command::new("sudo").arg("--validate"))?;
    Ok(AsRoot::Sudo)
}

/// Installs the programs that the tests use, or names the missing ones.
fn provide_programs() -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .into_iter()
        .filter(|(program, _)| !command::exists(program))
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    progress::step(&format!(
        "the tests use programs that are missing: {}",
        missing.join(", ")
    ));
    packages::install(&missing)
}

/// Runs the tests, passes their output on as it comes and counts.
fn watch(mut cargo: Command) -> Result<(Tally, Failures)> {
    // One pipe for both streams keeps Cargo's headings above the results they belong to.
    let (output, input) = io::pipe()?;
    cargo.stdout(input.try_clone()?).stderr(input);
    let mut child = cargo.spawn().with_context(|| command::line(&cargo))?;
    // The command holds the pipe's input: while it is open, reading never ends.
    drop(cargo);
    let mut output = BufReader::new(output);
    let (mut tally, mut failures) = (Tally::default(), Failures::default());
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        io::stdout().write_all(&line)?;
        let text = String::from_utf8_lossy(&line);
        tally.add(&text);
        failures.add(&text);
        line.clear();
    }
    Ok((tally.with_exit(child.wait()?.success()), failures))
}
