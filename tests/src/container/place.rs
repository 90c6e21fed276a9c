//! Where a real engine runs.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use nix::sys::signal::Signal;

use crate::{
    App, Sandbox,
    cgroup::{self, Cgroup},
    eventually::{eventually, in_time},
    process::{Running, app_binary, output},
};

/// In the network of a sandbox, with files of its own: nothing of it is the machine's. When it goes it fails the test if the engine has left
/// anything.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) sandbox: &'a Sandbox,
    /// Of the engine itself.
    engine: Arc<Cgroup>,
    /// What containers have theirs below.
    containers: Cgroup,
    /// The links that were there before it.
    links: Vec<String>,
}

impl<'a> Place<'a> {
    pub(super) fn new(sandbox: &'a Sandbox) -> Self {
        sandbox.mounts().keep_apart();
        Self {
            sandbox,
            engine: Arc::new(sandbox.cgroup().child("engine")),
            containers: sandbox.cgroup().child("docker"),
            links: links(sandbox),
        }
    }

    /// A command of the engine's.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.sandbox.command_with_mounts(&self.engine, program);
        // Who runs the tests may have an engine of his own.
        for variable in ["DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"] {
            command.env_remove(variable);
        }
        command
    }

    /// Starts what runs as long as the engine does.
    pub(super) fn start(&self, command: &mut Command) -> Running {
        let log = File::create(self.log()).expect("a log");
        let other = log.try_clone().expect("a second descriptor");
        // Killed, it would leave what it has started.
        Running::start(command.stdout(other).stderr(log)).ended_by(Signal::SIGTERM)
    }

    fn log(&self) -> PathBuf {
        self.sandbox.directory().join("engine.log")
    }

    /// Runs a command to its end, and returns what it prints, without the end of the line.
    pub(super) fn run<'b>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = &'b str>,
    ) -> String {
        let printed = output(self.command(program).args(arguments));
        printed.trim_end().to_owned()
    }

    /// The cgroup that containers are to be made in, as engines are told it.
    pub(super) fn parent(&self) -> String {
        format!("/{}", self.containers.name())
    }

    /// An app that runs by a command for something else in a container.
    pub(super) fn app(mut command: Command) -> App {
        App::start(command.arg(APP))
    }

    /// Waits until the engine, which is expected to have ended, has left nothing; what it has, else.
    fn left(&self) -> Vec<String> {
        let left = || {
            let processes = self.engine.processes().into_iter().map(described);
            let cgroups = self.containers.children().into_iter();
            let cgroups = cgroups.map(|it| it.display().to_string());
            let links = links(self.sandbox).into_iter();
            let links = links.filter(|link| !self.links.contains(link));
            processes.chain(cgroups).chain(links).collect::<Vec<_>>()
        };
        match in_time(|| left().is_empty().then_some(())) {
            Some(()) => Vec::new(),
            None => left(),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let left = if thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            eprintln!("--- log of an engine\n{log}---");
            Vec::new()
        } else {
            self.left()
        };
        for cgroup in [self.engine.path(), self.containers.path()] {
            cgroup::end(cgroup);
        }
        // In hierarchies of the first version engines leave the directories above those of containers.
        let name = self.sandbox.cgroup().name();
        for hierarchy in first_hierarchies() {
            cgroup::end(&hierarchy.join(name));
        }
        assert!(left.is_empty(), "left by an engine: {left:#?}");
    }
}

/// The numbers and names of the pairs of links that begin in the network of a sandbox.
fn links(sandbox: &Sandbox) -> Vec<String> {
    let mut ip = Command::new("ip");
    let shown = sandbox.within(|| output(ip.args(["-o", "link", "show", "type", "veth"])));
    let name = |line: &str| line.split(": <").next().map(str::to_owned);
    shown.lines().filter_map(name).collect()
}

fn described(pid: u32) -> String {
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid} {}", command.replace('\0', " "))
}

/// Where the hierarchies of cgroups of the first version are mounted.
fn first_hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").expect("cannot read /proc/self/mounts");
    let mounts = table.lines().filter_map(|line| {
        let mut columns = line.split(' ');
        let place = columns.nth(1)?;
        (columns.next()? == "cgroup").then(|| PathBuf::from(place))
    });
    mounts.collect()
}

/// Where containers have the app of tests.
pub(super) const APP: &str = "/program";

/// What containers are shown of the host, read-only, and where: the app of tests and what it needs.
pub(super) fn shown() -> Vec<(PathBuf, &'static str)> {
    let libraries = ["/lib", "/lib64", "/usr/lib"];
    let libraries = libraries
        .iter()
        .filter_map(|place| Some((fs::canonicalize(place).ok()?, *place)));
    let mut shown: Vec<_> = libraries.collect();
    shown.push((app_binary(), APP));
    shown
}

/// The same, as Docker and Podman are told it.
pub(super) fn volumes() -> Vec<String> {
    let volume = |(of_host, place): (PathBuf, &str)| format!("{}:{place}:ro", of_host.display());
    let volumes = shown().into_iter().map(volume);
    volumes
        .flat_map(|volume| ["--volume".to_owned(), volume])
        .collect()
}

/// Waits until something is where daemons see it.
pub(super) fn await_file(sandbox: &Sandbox, path: &str) {
    eventually(path, || {
        let exists = sandbox.mounts().within(|| Path::new(path).exists());
        exists.then_some(())
    });
}
