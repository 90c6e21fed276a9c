//! Containers made by hand, the way a runtime makes them: a root file system of their own that cannot be written to, with only what is
//! put there; namespaces for mounts, processes, host name and cgroups; the network of the pod; few capabilities.
//!
//! What a container needs is a [`Spec`], which the program `src/bin/culvert-test-runtime` carries out and then waits for.

mod containerd;
mod cri;
mod docker;
pub mod engine;
mod image;
mod network;
mod place;
mod podman;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub use self::network::{app_of_other_users, id, inside, network};
pub use self::{containerd::Containerd, docker::Docker, podman::Podman};
use crate::{
    App, Sandbox,
    cgroup::{Cgroup, mount},
    eventually,
    kernel::Objects,
    netns::Netns,
    process::{app_binary, attempt, culvert_binary, program_beside},
};

/// Numbers of capabilities (`linux/capability.h`).
pub mod capability {
    /// `CAP_NET_ADMIN`.
    pub const NET_ADMIN: u8 = 12;
    /// `CAP_SYS_PTRACE`.
    pub const SYS_PTRACE: u8 = 19;
    /// `CAP_SYS_ADMIN`.
    pub const SYS_ADMIN: u8 = 21;
    /// `CAP_PERFMON`.
    pub const PERFMON: u8 = 38;
    /// `CAP_BPF`.
    pub const BPF: u8 = 39;
    /// What a sidecar needs.
    pub const SIDECAR: [u8; 3] = [NET_ADMIN, PERFMON, BPF];
}

/// Where a container has its configuration.
pub const CONFIG: &str = "/etc/culvert/culvert.toml";
/// Where a container has the host's cgroup hierarchy.
pub const HOST_CGROUPS: &str = "/host/cgroup";

/// What a container sees of the cgroup hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// Its own cgroup as the root.
    Own,
    /// The same, and the host's hierarchy elsewhere, read-only.
    Mounted,
    /// The whole hierarchy, read-only, from the host's cgroup namespace.
    Host,
}

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The `cgroup.procs` of its cgroup.
    pub cgroup: PathBuf,
    /// Where the host has the hierarchy.
    pub hierarchy: PathBuf,
    /// What it sees of that.
    pub view: View,
    /// The directory that becomes its root.
    pub root: PathBuf,
    /// What of the host is mounted in it, read-only, and where.
    pub mounts: Vec<(PathBuf, String)>,
    /// Where it may write.
    pub writable: Option<String>,
    /// The process whose process namespace it shares.
    pub processes_of: Option<u32>,
    /// Whether it is in a user namespace.
    pub user_namespace: bool,
    /// What it keeps of root's capabilities.
    pub capabilities: Vec<u8>,
    /// What runs in it.
    pub command: Vec<String>,
    /// The file for the number that its first process has on the host.
    pub pid_file: PathBuf,
}

/// Containers that share a network, in a cgroup of a pod's.
#[derive(Debug)]
pub struct Pod<'a> {
    sandbox: &'a Sandbox,
    cgroup: Cgroup,
    _above: Cgroup,
}

impl<'a> Pod<'a> {
    /// Makes one whose network is a sandbox's.
    pub fn new(sandbox: &'a Sandbox) -> Self {
        let above = sandbox.cgroup().child("kubepods");
        let cgroup = above.child("pod0d1c2b3a-4e5f-6071-8293-a4b5c6d7e8f9");
        Self {
            sandbox,
            cgroup,
            _above: above,
        }
    }

    /// The path of its cgroup in the hierarchy.
    pub fn cgroup(&self) -> &str {
        self.cgroup.name()
    }

    /// What a container is made of that runs apps of the test's: it has the host's libraries and the capabilities of none.
    pub fn app(&self, name: &str) -> Container<'a> {
        Container::of_app(self.sandbox, None, self.cgroup.child(name))
    }

    /// What a container is made of that has nothing but culvert and its configuration.
    pub fn sidecar(&self, name: &str, rules: &str) -> Container<'a> {
        let command = ["/program", "sidecar", "--config", CONFIG];
        let mut container = Container::new(
            self.sandbox,
            None,
            self.cgroup.child(name),
            &culvert_binary(),
            command.map(Into::into).into(),
        );
        container.write_rules(rules);
        let config = container.directory.path().join("culvert.toml");
        container.mount(&config, CONFIG);
        container.spec.capabilities = capability::SIDECAR.into();
        container.spec.view = View::Mounted;
        container.spec.writable = Some("/run".to_owned());
        container
    }
}

/// What a container is made of. Started again it is another container of the same cgroup path.
#[derive(Debug)]
pub struct Container<'a> {
    sandbox: &'a Sandbox,
    /// Its network, where that is not the sandbox's.
    netns: Option<Arc<Netns>>,
    /// May be changed before it is started.
    pub spec: Spec,
    _cgroup: Cgroup,
    directory: TempDir,
}

impl<'a> Container<'a> {
    /// What a container is made of that runs apps of the test's in a network of its own, as Docker makes it with systemd.
    pub fn alone(sandbox: &'a Sandbox, id: &str, netns: &Arc<Netns>) -> Self {
        let cgroup = sandbox.cgroup().child(&format!("docker-{id}.scope"));
        Self::of_app(sandbox, Some(Arc::clone(netns)), cgroup)
    }

    fn of_app(sandbox: &'a Sandbox, netns: Option<Arc<Netns>>, cgroup: Cgroup) -> Self {
        let command = vec!["/program".into()];
        let mut container = Self::new(sandbox, netns, cgroup, &app_binary(), command);
        for libraries in ["/lib", "/lib64", "/usr"] {
            if let Ok(place) = fs::canonicalize(libraries) {
                container.mount(&place, libraries);
            }
        }
        container
    }

    fn new(
        sandbox: &'a Sandbox,
        netns: Option<Arc<Netns>>,
        cgroup: Cgroup,
        program: &Path,
        command: Vec<String>,
    ) -> Self {
        let directory = TempDir::with_prefix("culvert-tests-").expect("a temporary directory");
        let root = directory.path().join("root");
        for place in ["proc", "sys", "run", "host/cgroup"] {
            fs::create_dir_all(root.join(place)).expect("cannot make a root file system");
        }
        let mut container = Self {
            sandbox,
            netns,
            spec: Spec {
                cgroup: cgroup.path().join("cgroup.procs"),
                hierarchy: mount(),
                view: View::Own,
                root,
                mounts: Vec::new(),
                writable: None,
                processes_of: None,
                user_namespace: false,
                capabilities: Vec::new(),
                command,
                pid_file: directory.path().join("pid"),
            },
            _cgroup: cgroup,
            directory,
        };
        container.mount(program, "/program");
        container
    }

    /// Shows it a file or directory of the host.
    fn mount(&mut self, of_host: &Path, place: &str) {
        let inside = self.spec.root.join(place.trim_start_matches('/'));
        if of_host.is_dir() {
            fs::create_dir_all(&inside).expect("cannot make a mount point");
        } else {
            let above = inside.parent().expect("a directory");
            fs::create_dir_all(above).expect("cannot make a mount point");
            fs::write(&inside, "").expect("cannot make a mount point");
        }
        self.spec
            .mounts
            .push((of_host.to_owned(), place.to_owned()));
    }

    /// Writes another configuration for a sidecar.
    pub fn write_rules(&self, rules: &str) {
        fs::write(self.directory.path().join("culvert.toml"), rules)
            .expect("cannot write a configuration");
    }

    fn command(&self) -> Command {
        // Of a container before this one.
        let _ = fs::remove_file(&self.spec.pid_file);
        let runtime = program_beside("culvert-test-runtime");
        let mut command = match &self.netns {
            None => self.sandbox.outsider(runtime),
            Some(netns) => Sandbox::outsider_in(netns, runtime),
        };
        command.arg(serde_json::to_string(&self.spec).expect("a container as JSON"));
        command.env_remove("RUST_LOG");
        command
    }

    /// The number that its first process has on the host.
    pub fn pid(&self) -> u32 {
        eventually("a container", || {
            fs::read_to_string(&self.spec.pid_file).ok()?.parse().ok()
        })
    }

    /// Starts it as an app.
    pub fn start_app(&self) -> App {
        App::start(&mut self.command())
    }

    /// Runs it to its end, and returns its exit code and what it said.
    pub fn run(&self) -> (Option<i32>, String) {
        let mut sidecar = self.start();
        (sidecar.wait().code(), sidecar.log())
    }

    /// Starts it as a sidecar, and does not wait for it.
    pub fn start(&self) -> Sidecar<'_> {
        let log = self.directory.path().join("log");
        let output = fs::File::create(&log).expect("cannot make a log");
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second descriptor"))
            .stderr(output);
        let child = command.spawn().expect("cannot start a container");
        Sidecar {
            container: self,
            child,
            pid: self.pid(),
            log,
        }
    }
}

/// A running sidecar, killed when dropped.
#[derive(Debug)]
pub struct Sidecar<'a> {
    container: &'a Container<'a>,
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Sidecar<'_> {
    /// What its process is on the host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its admin socket, as the host sees it.
    pub fn admin(&self) -> PathBuf {
        format!("/proc/{}/root/run/culvert/admin.sock", self.pid).into()
    }

    /// Waits until it says itself that it captures.
    pub fn await_ready(&self) {
        eventually("a sidecar that is ready", || {
            let ended = fs::metadata(format!("/proc/{}", self.pid)).is_err();
            assert!(!ended, "the sidecar has ended: {}", self.log());
            self.asks_ready().0.then_some(())
        });
        self.container.sandbox.note(Objects::of(self.pid));
    }

    /// Whether it says that it captures, and the words.
    pub fn asks_ready(&self) -> (bool, String) {
        let mut command = Command::new(culvert_binary());
        command.args(["ready", "--admin"]).arg(self.admin());
        let output = attempt(&mut command);
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Has it read its configuration anew, and waits until it has.
    pub fn reload(&self) {
        let reloads = || self.log().matches("reloaded").count();
        let before = reloads();
        self.signal(Signal::SIGHUP);
        eventually("a reload", || (reloads() > before).then_some(()));
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("cannot signal the sidecar");
    }

    /// Sends its process a signal, and waits until the container has ended.
    pub fn end_by(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    fn wait(&mut self) -> ExitStatus {
        eventually("the end of a sidecar", || {
            self.child.try_wait().expect("cannot wait for a container")
        })
    }
}

impl Drop for Sidecar<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of a sidecar\n{}---", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The capabilities that a process may use, of `/proc/PID/status`.
pub fn capabilities(pid: u32) -> Vec<u8> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapPrm:\t"))
        .expect("its capabilities");
    let mask = u64::from_str_radix(mask, 16).expect("a number");
    (0..64).filter(|number| mask >> number & 1 == 1).collect()
}
