//! One test's part of the machine.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    App, Culvert,
    cgroup::Cgroup,
    daemon::Settings,
    kernel::{Objects, has_ipv6},
    leak,
    mounts::Mounts,
    netns::Netns,
    peer::{NameServer, Server},
    process::app_binary,
    watchdog::Watched,
};

/// An address of this host that is no loopback address, where tests have their servers (RFC 5737).
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Another one.
pub const OTHER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// One that apps bind to.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 101);
/// As [`SERVER_V4`] (RFC 3849).
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// As [`OTHER_V4`].
pub const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// As [`CLIENT_V4`].
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, 1);
/// A port on which nobody listens in any sandbox.
pub const CLOSED_PORT: u16 = 9;

/// A network namespace, a mount namespace, a cgroup and a directory.
///
/// Declare it first: what runs in it borrows it and so ends before it. When it is dropped it fails the test if
/// anything is left. A test that has it for many minutes counts as one that hangs, and ends its process.
#[derive(Debug)]
pub struct Sandbox {
    netns: Arc<Netns>,
    mounts: Arc<Mounts>,
    daemon_cgroup: Arc<Cgroup>,
    app_cgroup: Arc<Cgroup>,
    cgroup: Arc<Cgroup>,
    directory: TempDir,
    objects: Mutex<Objects>,
    watched: Watched,
}

impl Sandbox {
    /// Makes one.
    ///
    /// Panics when the test does not run as root: a test that is skipped looks as if it had passed.
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "tests on the kernel need root: run them by `sudo cargo xtask test`"
        );
        let v4 = [SERVER_V4, OTHER_V4, CLIENT_V4].map(IpAddr::from);
        let v6 = [SERVER_V6, OTHER_V6, CLIENT_V6].map(IpAddr::from);
        let v6 = v6.into_iter().filter(|_| has_ipv6());
        let netns = Netns::with_addresses(v4.into_iter().chain(v6));
        let cgroup = Cgroup::new();
        Self {
            netns: Arc::new(netns),
            mounts: Arc::new(Mounts::new()),
            // Below the cgroup that is intercepted, so that the daemon must keep its own connections out.
            daemon_cgroup: Arc::new(cgroup.child("daemon")),
            app_cgroup: Arc::new(cgroup.child("app")),
            watched: Watched::new(cgroup.path().to_owned()),
            cgroup: Arc::new(cgroup),
            directory: TempDir::with_prefix("culvert-tests-").expect("a temporary directory"),
            objects: Mutex::default(),
        }
    }

    /// The test takes longer than a test may, which would else be taken for one that hangs.
    pub fn allow(&self, more: Duration) {
        self.watched.allow(more);
    }

    /// A name server that daemons ask. One that does not answer is given up soon.
    pub fn name_server(&self) -> NameServer {
        let file = self.directory().join("resolv.conf");
        let text = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
        fs::write(&file, text).expect("resolv.conf");
        self.mounts.replace("/etc/resolv.conf", &file);
        self.within(|| NameServer::start((Ipv4Addr::LOCALHOST, 53)))
    }

    /// The network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The mount namespace of daemons.
    pub fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// The cgroup that daemons attach to.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The cgroup below it that apps run in.
    pub fn app_cgroup(&self) -> &Cgroup {
        &self.app_cgroup
    }

    /// The cgroup below it that daemons run in.
    pub fn daemon_cgroup(&self) -> &Cgroup {
        &self.daemon_cgroup
    }

    /// A directory for files of the test; only root may look into it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a daemon with these rules and upstreams, in TOML, and waits until it intercepts.
    pub fn culvert(&self, rules: &str) -> Culvert<'_> {
        Culvert::start(self, &Settings::default(), rules)
    }

    /// Starts a daemon with other settings.
    pub fn culvert_with(&self, settings: &Settings, rules: &str) -> Culvert<'_> {
        Culvert::start(self, settings, rules)
    }

    /// Starts a daemon and does not wait for it.
    pub fn launch(&self, settings: &Settings, rules: &str) -> Culvert<'_> {
        Culvert::launch(self, settings, rules)
    }

    /// Starts a program that makes connections as it is told.
    pub fn app(&self) -> App {
        App::start(&mut self.command(app_binary()))
    }

    /// Has an app exchange a thousand bytes with an echo server.
    pub fn exchange(&self) {
        let server = self.within(|| Server::echo((SERVER_V4, 0)));
        let app = self.app();
        let socket = app.tcp(server.address());
        socket.connect(server.address()).expect("a connection");
        socket.exchange(1, 1000).expect("an exchange");
        socket.close();
    }

    /// A command that will run as an app: in this network namespace, and in the cgroup of apps.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_in(&self.app_cgroup, program)
    }

    /// A command that will run in this network namespace, and in a cgroup of the test's.
    pub fn command_in(&self, cgroup: &Arc<Cgroup>, program: impl AsRef<OsStr>) -> Command {
        command_at(&self.netns, cgroup, program)
    }

    /// A command that will run in this network namespace, but in no cgroup of the test's: nothing of it is
    /// intercepted.
    pub fn outsider(&self, program: impl AsRef<OsStr>) -> Command {
        Self::outsider_in(&self.netns, program)
    }

    /// As [`Sandbox::outsider`], in another network namespace.
    pub fn outsider_in(netns: &Arc<Netns>, program: impl AsRef<OsStr>) -> Command {
        let netns = Arc::clone(netns);
        before_exec(program, move || netns.enter())
    }

    /// A command that will run as an app in another network namespace.
    pub fn command_elsewhere(&self, netns: &Arc<Netns>, program: impl AsRef<OsStr>) -> Command {
        command_at(netns, &self.app_cgroup, program)
    }

    /// A culvert command that will run beside the daemons, with the same view of `/run` and `/sys/fs/bpf`.
    pub fn culvert_command(&self) -> Command {
        self.command_beside_daemons(crate::process::culvert_binary())
    }

    /// Has culvert remove what killed daemons left in force, and returns what it says.
    pub fn detach(&self) -> String {
        crate::process::output(self.culvert_command().arg("detach"))
    }

    /// As [`Sandbox::culvert_command`], in the cgroup of apps.
    pub fn culvert_command_among_apps(&self) -> Command {
        self.command_with_mounts(&self.app_cgroup, crate::process::culvert_binary())
    }

    /// Any command that will run where daemons do.
    pub fn command_beside_daemons(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_with_mounts(&self.daemon_cgroup, program)
    }

    /// As [`Sandbox::command_in`], with the same view of files as daemons.
    pub fn command_with_mounts(&self, cgroup: &Arc<Cgroup>, program: impl AsRef<OsStr>) -> Command {
        let (netns, mounts, cgroup) = (
            Arc::clone(&self.netns),
            Arc::clone(&self.mounts),
            Arc::clone(cgroup),
        );
        before_exec(program, move || {
            cgroup.enter()?;
            netns.enter()?;
            mounts.enter()
        })
    }

    /// Runs a closure in the network namespace, on a thread of its own; nothing of it is intercepted.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.within(work)
    }

    /// Notes objects that must be gone at the end.
    pub(crate) fn note(&self, objects: Objects) {
        self.objects.lock().expect("objects").merge(objects);
    }

    fn check(&self) {
        leak::check_objects(&self.objects.lock().expect("objects"));
        leak::check_files(&self.mounts);
        leak::check_routing(&self.netns);
        leak::check_filters(&self.netns);
        for cgroup in [&self.daemon_cgroup, &self.app_cgroup] {
            assert!(
                cgroup.children().is_empty(),
                "cgroups left: {:?}",
                cgroup.children()
            );
        }
        let processes = self.daemon_cgroup.processes();
        assert!(processes.is_empty(), "processes left: {processes:?}");
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // While a test fails, what is left is a consequence and no news.
        if !thread::panicking() {
            self.check();
        }
    }
}

/// A command that will run in a network namespace and a cgroup.
pub fn command_at(netns: &Arc<Netns>, cgroup: &Arc<Cgroup>, program: impl AsRef<OsStr>) -> Command {
    let (netns, cgroup) = (Arc::clone(netns), Arc::clone(cgroup));
    before_exec(program, move || {
        cgroup.enter()?;
        netns.enter()
    })
}

fn before_exec(
    program: impl AsRef<OsStr>,
    work: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) -> Command {
    let mut command = Command::new(program);
    // SAFETY: all that callers pass are single system calls on descriptors that are open already, which may be made
    // between fork and exec.
    unsafe { command.pre_exec(work) };
    command
}
