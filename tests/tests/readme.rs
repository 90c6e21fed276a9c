//! The README does what it says: every command in it is run here as it stands.
//!
//! What its machine has besides culvert is in a sandbox: a web server at 192.0.2.10:8000, proxies at the usual ports of
//! 127.0.0.1. Only one thing is added to its files: the cgroup to attach to, since a test must not attach to the root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    env, fs,
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
    thread,
};

use culvert_tests::{
    Sandbox,
    cgroup::Cgroup,
    eventually,
    hosts::{self, Hosts, LAN},
    peer::{HttpProxy, Server, Socks5},
    process::{Running, attempt, culvert_binary, output, run, write_private},
    record::CloseRecord,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");

/// What cannot be run by a test, since it runs the tests, makes what they need, or has the machine for itself.
const NOT_FROM_A_TEST: [&str; 12] = [
    "cargo xtask bench --json figures.json --html figures.html",
    "cargo xtask bench --quick",
    "cargo xtask bench --pin --only rr --only bulk-up-1 --compare figures.json",
    "cargo xtask bench --gateway --html gateway.html",
    "cargo xtask dist",
    "cargo xtask run",
    "cargo xtask test",
    "cargo xtask setup",
    "cargo xtask soak",
    "cargo xtask test half",
    "cargo xtask test --kernels",
    "cargo xtask lint",
];

const EXEC: &str =
    "sudo culvert exec --via socks5://127.0.0.1:1080 -- curl -sS http://192.0.2.10:8000/";
const WATCH: &str = "sudo culvert watch -- curl -sS http://192.0.2.10:8000/";
const SERVICE: &str = "sudo culvert run --config service.toml";
const USER: &str = "sudo culvert run --config user.toml";
const REFUSE: &str = "sudo culvert run --config refuse.toml";
const ROUTE: &str = "sudo ip route add local 198.51.100.0/24 dev lo";
const FRONT: &str = "sudo culvert run --config front.toml";
const SOURCE: &str = "sudo culvert run --config source.toml";
const GATEWAY: &str = "sudo culvert run --config gateway.toml";
const ROUTER: &str = "sudo culvert plan --config router.toml";
const NAMES: &str = "sudo culvert run --config names.toml";
const CHECK: &str = "sudo culvert check password.toml";
const PLAN: &str = "sudo culvert plan --config password.toml";
const SERVERS: &str = "sudo culvert run --config servers.toml";
const DRAIN: &str = "sudo culvert drain 10.0.0.1:8000 --timeout 5m --wait";
const RESTORE: &str = "sudo culvert restore 10.0.0.1:8000";
const PASSWORD: &str = "sudo culvert run --config password.toml";

/// Where the README has its web server.
const WEB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const WEB_PORT: u16 = 8000;
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// The contents of the fenced blocks of one language, in order.
fn blocks(language: &str) -> Vec<String> {
    let text = fs::read_to_string(README).unwrap();
    // Every second part lies between two fences.
    let fenced = text.split("\n```").skip(1).step_by(2);
    let of_language = fenced.filter_map(|block| {
        let (info, body) = block.split_once('\n')?;
        assert!(
            ["sh", "toml", "text"].contains(&info),
            "a block of {info:?}"
        );
        (info == language).then(|| body.to_owned())
    });
    of_language.collect()
}

/// All commands, without their comments.
fn commands() -> Vec<String> {
    let blocks = blocks("sh");
    let lines = blocks.iter().flat_map(|block| block.lines());
    lines
        .map(|line| line.split("  #").next().unwrap().trim().to_owned())
        .collect()
}

/// The file of a name: a block says its name in its first line.
fn file(name: &str) -> String {
    let heading = format!("# {name}\n");
    let blocks = blocks("toml");
    let found = blocks.iter().find(|block| block.starts_with(&heading));
    found.expect(name).clone()
}

#[test]
fn every_command_of_the_readme_is_run_by_a_test() {
    let mut known: Vec<&str> = NOT_FROM_A_TEST.to_vec();
    known.extend([
        EXEC, WATCH, SERVICE, USER, REFUSE, SERVERS, ROUTE, FRONT, SOURCE, NAMES, GATEWAY, ROUTER,
        DRAIN, RESTORE, CHECK, PLAN, PASSWORD,
    ]);
    known.sort_unstable();
    let mut commands = commands();
    commands.sort_unstable();
    assert_eq!(commands, known);
    assert_eq!(blocks("toml").len(), 10);
}

/// The machine of the README.
struct Machine {
    web: Server,
    sandbox: Sandbox,
}

impl Machine {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        for address in [
            WEB,
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(198, 51, 100, 1),
        ] {
            sandbox.netns().add_address(address.into());
        }
        let bin = sandbox.directory().join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(culvert_binary(), bin.join("culvert")).unwrap();
        // There is nobody to become: the test is root already.
        let sudo = bin.join("sudo");
        fs::write(&sudo, "#!/bin/sh\nexec \"$@\"\n").unwrap();
        fs::set_permissions(&sudo, fs::Permissions::from_mode(0o755)).unwrap();
        // The server answers at any of the addresses.
        let web = sandbox.within(|| Server::web((Ipv4Addr::UNSPECIFIED, WEB_PORT)));
        Self { web, sandbox }
    }

    /// Writes a file of the README, with the cgroup of the sandbox.
    fn write(&self, name: &str) {
        let text = file(name);
        let cgroup = format!("[daemon]\ncgroup = \"{}\"\n", self.sandbox.cgroup().name());
        let text = if text.contains("[daemon]\n") {
            text.replace("[daemon]\n", &cgroup)
        } else {
            format!("{text}\n{cgroup}")
        };
        write_private(&self.sandbox.directory().join(name), &text);
    }

    /// A command of the README.
    fn command(&self, command: &str) -> Command {
        let directory = self.sandbox.directory();
        let bin = directory.join("bin");
        let path = format!("{}:{}", bin.display(), env::var("PATH").unwrap());
        let mut shell = self.sandbox.command_beside_daemons("sh");
        shell
            // Entering the mount namespace of daemons goes to its root.
            .args([
                "-c",
                &format!("cd {} && exec {command}", directory.display()),
            ])
            .env("PATH", path)
            .env_remove("SUDO_UID");
        shell
    }

    /// Starts a daemon by a command of the README, and waits until it works.
    fn daemon(&self, command: &str) -> Daemon {
        let log = |name: &str| fs::File::create(self.sandbox.directory().join(name)).unwrap();
        let mut command = self.command(command);
        command
            .stdin(Stdio::null())
            .stdout(log("stdout"))
            .stderr(log("stderr"));
        let daemon = Daemon {
            child: command.spawn().unwrap(),
        };
        eventually("a running daemon", || {
            self.read("stderr").contains("running").then_some(())
        });
        daemon
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.sandbox.directory().join(name)).unwrap()
    }

    /// `curl` as an app, by its real path as rules name it.
    fn curl(&self, address: &str) -> Output {
        attempt(
            self.sandbox
                .command("/usr/bin/curl")
                .args(["-sS", &url(address)]),
        )
    }
}

struct Daemon {
    child: Child,
}

impl Daemon {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn url(address: &str) -> String {
    format!("http://{address}:{WEB_PORT}/")
}

fn assert_page(output: &Output) {
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "page\n",
        "{output:?}"
    );
}

#[test]
fn one_program_through_a_socks_proxy() {
    let machine = Machine::new();
    let proxy = machine.sandbox.within(|| Socks5::start((LOCALHOST, 1080)));
    assert_page(&attempt(&mut machine.command(EXEC)));
    assert_eq!(proxy.requests(), [(WEB, WEB_PORT).into()]);
}

#[test]
fn a_program_is_watched() {
    let machine = Machine::new();
    let output = attempt(&mut machine.command(WATCH));
    assert_page(&output);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("-> 192.0.2.10:8000\n"), "{told}");
}

#[test]
fn a_service_that_starts_after_the_daemon() {
    let machine = Machine::new();
    let proxy = machine.sandbox.within(|| Socks5::start((LOCALHOST, 1080)));
    machine.write("service.toml");
    let daemon = machine.daemon(SERVICE);
    assert_service_is_proxied(&machine, &proxy);
    assert!(daemon.end(Signal::SIGTERM).success());
}

#[test]
fn a_service_that_runs_already_and_a_daemon_that_is_killed() {
    let machine = Machine::new();
    let proxy = machine.sandbox.within(|| Socks5::start((LOCALHOST, 1080)));
    machine.write("service.toml");
    let slice = machine.sandbox.cgroup().child("system.slice");
    let service = Arc::new(slice.child("builder.service"));
    let daemon = machine.daemon(SERVICE);
    let build = || {
        attempt(
            machine
                .sandbox
                .command_in(&service, "curl")
                .args(["-sS", &url("192.0.2.10")]),
        )
    };
    assert_page(&build());
    assert_eq!(proxy.requests().len(), 1);

    daemon.end(Signal::SIGKILL);
    let refused = build();
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    assert_eq!(machine.web.clients().len(), 1);
    assert_page(&machine.curl("192.0.2.10"));
    output(&mut machine.command("sudo culvert detach"));
    eventually("builds that work again", || {
        build().status.success().then_some(())
    });
}

/// The watcher needs a moment to see a cgroup that was not there before.
fn assert_service_is_proxied(machine: &Machine, proxy: &Socks5) {
    assert_page(&machine.curl("192.0.2.10"));
    assert_eq!(proxy.requests(), []);
    let slice: Cgroup = machine.sandbox.cgroup().child("system.slice");
    let service = Arc::new(slice.child("builder.service"));
    eventually("a service behind the proxy", || {
        assert_page(&attempt(
            machine
                .sandbox
                .command_in(&service, "curl")
                .args(["-sS", &url("192.0.2.10")]),
        ));
        (!proxy.requests().is_empty()).then_some(())
    });
}

#[test]
fn a_user_except_for_what_stays_in_the_house() {
    let machine = Machine::new();
    let proxy = machine
        .sandbox
        .within(|| HttpProxy::start((LOCALHOST, 8080)));
    machine.write("user.toml");
    let daemon = machine.daemon(USER);
    let guest = |address: &str| {
        let mut command = machine.sandbox.command("setpriv");
        command.args([
            "--reuid=nobody",
            "--clear-groups",
            "curl",
            "-sS",
            &url(address),
        ]);
        assert_page(&attempt(&mut command));
    };
    guest("10.0.0.1");
    assert_page(&machine.curl("192.0.2.10"));
    assert_eq!(proxy.requests(), []);
    guest("192.0.2.10");
    assert_eq!(proxy.requests(), [(WEB, WEB_PORT).into()]);
    assert!(daemon.end(Signal::SIGTERM).success());
}

#[test]
fn in_front_of_a_service_that_stays_where_it_is() {
    let machine = Machine::new();
    output(&mut machine.command(ROUTE));
    machine.write("front.toml");
    let daemon = machine.daemon(FRONT);
    let addresses = ["192.0.2.10", "127.0.0.1", "198.51.100.77"];
    for address in addresses {
        assert_page(&machine.curl(address));
    }
    let status = output(&mut machine.command("culvert status"));
    assert!(status.contains("arrived_relayed 3"), "{status}");
    assert!(daemon.end(Signal::SIGTERM).success());
    assert_page(&machine.curl("198.51.100.77"));
}

#[test]
fn in_front_of_a_service_that_sees_who_connects() {
    let machine = Machine::new();
    machine.write("source.toml");
    let daemon = machine.daemon(SOURCE);
    assert_page(&machine.curl("192.0.2.10"));
    let clients = machine.web.clients();
    assert_eq!(clients.len(), 1);
    // This host's own, from which it connects to itself.
    assert_eq!(clients[0].ip(), WEB);
    let status = output(&mut machine.command("culvert status"));
    assert!(status.contains("arrived_relayed 1"), "{status}");
    assert!(daemon.end(Signal::SIGTERM).success());
}

#[test]
fn what_other_hosts_send_through_is_relayed() {
    let machine = Machine::new();
    let sandbox = &machine.sandbox;
    let hosts = Hosts::around(sandbox);
    // As the README has it: a network behind eth1.
    let router = sandbox.netns();
    router.ip(&format!("link set {} down", LAN[0]));
    router.ip(&format!("link set {} name eth1 up", LAN[0]));
    router.ip("addr add 192.168.7.1/24 dev eth1");
    let client = hosts.client(0);
    client.ip(&format!("addr add 192.168.7.2/24 dev {}", LAN[0]));
    client.ip("route replace default via 192.168.7.1");
    let [server, _] = hosts::server(0);
    let web = hosts.server(0).within(|| Server::web((server, 80)));
    machine.write("gateway.toml");
    let daemon = machine.daemon(GATEWAY);
    let mut curl = sandbox.command_elsewhere(client, "/usr/bin/curl");
    assert_page(&attempt(curl.args(["-sS", &format!("http://{server}/")])));
    let [router, _] = hosts::toward_server(0);
    assert_eq!(web.clients()[0].ip(), router);
    assert!(daemon.end(Signal::SIGTERM).success());
}

#[test]
fn what_the_fast_path_skips_is_told_before() {
    let machine = Machine::new();
    machine.write("router.toml");
    let router = machine.sandbox.netns();
    router.ip("link add eth0 type veth peer name eth1");
    for name in ["eth0", "eth1"] {
        router.sysctl(&format!("net.ipv4.conf.{name}.forwarding"), "1");
    }
    let plan = output(&mut machine.command(ROUTER));
    assert!(plan.contains("router on ingress of eth0 eth1"), "{plan}");
    assert!(plan.contains("netfilter (nftables"), "{plan}");
}

#[test]
fn servers_by_name() {
    let machine = Machine::new();
    machine.write("names.toml");
    let daemon = machine.daemon(NAMES);
    // An entry refuses the name; the other servers are none of the README's business.
    let mut curl = machine.sandbox.command("curl");
    let resolve = format!("old.example.com:443:{WEB}");
    curl.args(["-sS", "--resolve", &resolve, "https://old.example.com/"]);
    assert!(!attempt(&mut curl).status.success());
    let status = output(&mut machine.command("culvert status"));
    assert!(status.contains("names: named 1"), "{status}");
    assert!(status.contains("name_refused 1"), "{status}");
    assert!(daemon.end(Signal::SIGTERM).success());
}

#[test]
fn everything_refused_but_one_network() {
    let machine = Machine::new();
    machine.write("refuse.toml");
    let daemon = machine.daemon(REFUSE);
    assert_page(&machine.curl("192.0.2.10"));
    let refused = machine.curl("198.51.100.1");
    // curl's number for a connection that was refused.
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    let elsewhere = machine.sandbox.app();
    let address = (Ipv4Addr::new(198, 51, 100, 1), WEB_PORT).into();
    elsewhere.tcp(address).connect(address).unwrap();
    assert!(daemon.end(Signal::SIGTERM).success());
}

#[test]
fn several_servers_behind_one_address() {
    let machine = Machine::new();
    machine.write("servers.toml");
    let daemon = machine.daemon(SERVERS);
    for _ in 0..3 {
        assert_page(&machine.curl("203.0.113.80"));
    }
    for (command, says) in [(DRAIN, "drained"), (RESTORE, "restored")] {
        let output = machine.command(command).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            said.ends_with(&format!("web/10.0.0.1:8000: {says}\n")),
            "{said}"
        );
        assert_page(&machine.curl("203.0.113.80"));
    }
    assert!(daemon.end(Signal::SIGTERM).success());
}

/// Makes `/etc/culvert/corp.password` in the view of the daemons, and not on this machine.
fn write_password(sandbox: &Sandbox) {
    sandbox.mounts().within(|| {
        let own_etc = "mkdir /run/etc && cp -a /etc/. /run/etc && mount -t tmpfs tmpfs /etc && cp -a /run/etc/. /etc";
        run("sh", &["-c", &format!("{own_etc} && mkdir -p /etc/culvert")]);
        write_private(Path::new("/etc/culvert/corp.password"), "secret\n");
    });
}

#[test]
fn a_proxy_that_wants_a_password() {
    let machine = Machine::new();
    write_password(&machine.sandbox);
    let log = machine.sandbox.directory().join("microsocks");
    let mut microsocks = machine.sandbox.outsider("microsocks");
    microsocks
        .args([
            "-i",
            "127.0.0.1",
            "-p",
            "1080",
            "-u",
            "alice",
            "-P",
            "secret",
        ])
        .stderr(fs::File::create(&log).unwrap());
    let _proxy = Running::start(&mut microsocks);
    eventually("a listening proxy", || {
        machine
            .sandbox
            .within(|| TcpStream::connect((LOCALHOST, 1080)))
            .ok()
    });
    machine.write("password.toml");

    let summary = output(&mut machine.command(CHECK));
    assert!(
        summary.contains("corp") && summary.contains("127.0.0.1:1080"),
        "{summary}"
    );
    let plan = output(&mut machine.command(PLAN));
    assert!(plan.contains(machine.sandbox.cgroup().name()), "{plan}");
    for said in [&summary, &plan] {
        assert!(!said.contains("secret"), "{said}");
    }

    let daemon = machine.daemon(PASSWORD);
    assert_page(&machine.curl("192.0.2.10"));
    assert!(daemon.end(Signal::SIGTERM).success());
    let connected = fs::read_to_string(&log).unwrap();
    assert!(connected.contains("192.0.2.10:8000"), "{connected}");
    let records: Vec<CloseRecord> = machine
        .read("stdout")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(records[0].orig_dst, Some((WEB, WEB_PORT).into()));
    assert_eq!(records[0].upstream.as_deref(), Some("corp"));
}
