//! When a daemon on a host says that it captures, and when it does not start at all.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    net::{Ipv4Addr, TcpListener},
    process::Command,
    sync::Arc,
};

use culvert_tests::{
    App, Culvert, Sandbox,
    container::id,
    daemon::Settings,
    eventually,
    hosts::{Hosts, LAN},
    kernel::{has_ipv6, ingress_programs, take_off},
    netns::Netns,
    process::{app_binary, attempt, output},
    rules::{ALL, RELAY},
    sandbox::command_at,
};
use serde_json::Value;

/// Whether it captures, and its words.
fn asks(sandbox: &Sandbox, culvert: &Culvert<'_>) -> (bool, String) {
    let mut command = sandbox.culvert_command();
    let output = attempt(command.args(["ready", "--admin"]).arg(culvert.admin()));
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn a_gateway_is_ready_while_its_programs_are_on_the_interfaces() {
    let sandbox = Sandbox::new();
    let _hosts = Hosts::around(&sandbox);
    let rules = format!("[[gateway]]\nname = \"lan\"\ninterface = {LAN:?}\nvia = \"original\"\n");
    let culvert = sandbox.culvert(&rules);
    assert!(asks(&sandbox, &culvert).0);
    take_off(culvert.pid(), "gateway");
    let has_it = |name: &&str| ingress_programs(name).iter().any(|it| it == "gateway");
    let bare: Vec<_> = sandbox.within(|| LAN.into_iter().filter(|it| !has_it(it)).collect());
    let [bare] = bare[..] else {
        panic!("{bare:?}");
    };
    let (is_ready, said) = asks(&sandbox, &culvert);
    let wanted = format!("gateway is not attached to the interface {bare}\n");
    assert!(!is_ready && said.ends_with(&wanted), "{said}");
    // An interface that is gone takes nothing with it.
    sandbox.netns().ip(&format!("link del {bare}"));
    eventually("readiness", || asks(&sandbox, &culvert).0.then_some(()));
}

#[test]
fn filters_are_looked_for_as_well() {
    let sandbox = Sandbox::new();
    let _hosts = Hosts::around(&sandbox);
    let lan = LAN[0];
    let rules = format!("[[gateway]]\nname = \"lan\"\ninterface = \"{lan}\"\nvia = \"original\"\n");
    let culvert = sandbox.culvert_with(&Settings::daemon("ingress = \"clsact\""), &rules);
    assert!(asks(&sandbox, &culvert).0);
    sandbox.within(|| {
        let mut tc = Command::new("tc");
        let removed = attempt(tc.args(["filter", "del", "dev", lan, "ingress"]));
        assert!(removed.status.success(), "{removed:?}");
    });
    let (is_ready, said) = asks(&sandbox, &culvert);
    assert!(!is_ready && said.contains(lan), "{said}");
}

#[test]
fn a_container_that_is_not_captured_is_said_and_one_that_is_gone_is_not() {
    let one = id();
    let sandbox = Sandbox::new();
    let rules = format!(
        "{RELAY}[[forward]]\nname = \"boxes\"\nmatch = {{ container = \"{one}\" }}\nvia = \"relay\"\n"
    );
    let culvert = sandbox.culvert(&rules);
    assert!(asks(&sandbox, &culvert).0);
    let cgroup = Arc::new(sandbox.cgroup().child(&format!("docker-{one}.scope")));
    let mut command = command_at(&Arc::new(Netns::new()), &cgroup, "unshare");
    command.args(["--user", "--map-root-user", "--net"]);
    let app = App::start(command.arg(app_binary()));
    let said = eventually("a container that is not captured", || {
        let (is_ready, said) = asks(&sandbox, &culvert);
        (!is_ready).then_some(said)
    });
    assert!(
        said.contains(&format!(
            "container \"{one}\": its network namespace belongs to a user namespace"
        )),
        "{said}"
    );
    drop(app);
    eventually("readiness", || asks(&sandbox, &culvert).0.then_some(()));
}

#[test]
fn a_loopback_that_stays_down_is_said_once() {
    let one = id();
    let sandbox = Sandbox::new();
    let rules = format!(
        "{RELAY}[[forward]]\nname = \"boxes\"\nmatch = {{ container = \"{one}\" }}\nvia = \"relay\"\n"
    );
    let culvert = sandbox.culvert(&rules);
    let cgroup = Arc::new(sandbox.cgroup().child(&format!("docker-{one}.scope")));
    let mut command = command_at(&Arc::new(Netns::new()), &cgroup, "unshare");
    let app = App::start(command.arg("--net").arg(app_binary()));
    eventually("a namespace that is not listened in", || {
        let status = culvert.status();
        let problem = status["containers"][0]["problem"].as_str()?;
        problem.contains("loopback is down").then_some(())
    });
    let said = || culvert.log().matches("loopback is down").count();
    assert_eq!(
        (said(), asks(&sandbox, &culvert).0),
        (0, true),
        "it may come up"
    );
    eventually("a line of it", || (said() > 0).then_some(()));
    assert!(!asks(&sandbox, &culvert).0);
    let mut up = Command::new("nsenter");
    up.args(["--net", "--target", &app.pid().to_string()]);
    output(up.args(["ip", "link", "set", "lo", "up"]));
    eventually("readiness", || asks(&sandbox, &culvert).0.then_some(()));
    assert_eq!(said(), 1);
    let status = culvert.status();
    let listeners = ["listener_v4", "listener_v6"].map(|key| &status["containers"][0][key]);
    assert_eq!(
        listeners.map(Value::is_string),
        [true, has_ipv6()],
        "{status}"
    );
    drop(app);
}

#[test]
fn who_cannot_answer_probes_does_not_start() {
    let sandbox = Sandbox::new();
    let taken = sandbox.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let address = taken.local_addr().unwrap();
    let health = format!("health = \"{address}\"");
    let mut culvert = sandbox.launch(&Settings::daemon(&health), ALL);
    assert_eq!(culvert.wait().code(), Some(1));
    let log = culvert.log();
    assert!(
        log.contains("cannot answer probes (`health` in [daemon])"),
        "{log}"
    );
    assert!(
        log.contains(&address.to_string()) && !log.contains("running"),
        "{log}"
    );
}
