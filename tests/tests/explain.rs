//! What `culvert explain` says, against what becomes of real connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Output,
    sync::Arc,
};

use culvert_tests::{
    App, Culvert, Sandbox,
    app::Route,
    cgroup::Cgroup,
    daemon::Settings,
    netns::Netns,
    peer::Server,
    process::app_binary,
    rules::{RELAY, relayed},
    sandbox::{OTHER_V4, SERVER_V4, SERVER_V6},
    stranger::Stranger,
};
use nix::errno::Errno;
use serde_json::Value;

fn run(sandbox: &Sandbox, words: &[&str]) -> Output {
    let mut command = sandbox.culvert_command();
    command.arg("explain").args(words).output().unwrap()
}

fn explain(sandbox: &Sandbox, culvert: &Culvert<'_>, words: &[&str]) -> Value {
    let admin = culvert.admin().to_str().unwrap();
    let words = [words, &["--json", "--admin", admin]].concat();
    let output = run(sandbox, &words);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn explain_app(sandbox: &Sandbox, culvert: &Culvert<'_>, app: &App, to: SocketAddr) -> Value {
    let words = ["--pid", &app.pid().to_string(), &to.to_string()];
    explain(sandbox, culvert, &words)
}

/// Says of a connection what becomes of it, and has it made.
fn agrees(sandbox: &Sandbox, culvert: &Culvert<'_>, app: &App, to: SocketAddr) -> Value {
    let explanation = explain_app(sandbox, culvert, app, to);
    let expected = match explanation["verdict"].as_str().unwrap() {
        "direct" => Ok(Route::Direct),
        "relay" => Ok(Route::Relayed),
        "refuse" => Err(Errno::ECONNREFUSED),
        other => panic!("{other}"),
    };
    assert_eq!(app.probe(to), expected, "{to} {explanation:#}");
    explanation
}

/// The key by which a rule does not select, what that wants and what it sees.
fn reason<'a>(explanation: &'a Value, rule: &str) -> [&'a str; 3] {
    let rules = explanation["rules"].as_array().unwrap();
    let of_it = rules.iter().find(|found| found["name"] == rule).unwrap();
    assert_eq!(of_it["selects"], false);
    ["key", "wanted", "seen"].map(|part| of_it[part].as_str().unwrap())
}

/// A rule for each kind of selector.
fn rules(named: &Cgroup, copy: &Path, pid: u32) -> String {
    [
        RELAY.to_owned(),
        relayed("user", "uid = 4000, port = 80"),
        relayed("group", "gid = 4001, dest = \"2001:db8::/32\""),
        relayed("cgroup", &format!("cgroup = {:?}, port = 80", named.name())),
        relayed("exe", &format!("exe = \"{}\", dest = \"{OTHER_V4}\"", copy.display())),
        relayed("process", &format!("pid = {pid}")),
        format!(
            "[[forward]]\nname = \"refused\"\nmatch = {{ port = 81, dest = \"!{OTHER_V4}\" }}\nvia = \"refuse\"\n"
        ),
    ]
    .concat()
}

#[test]
fn what_is_said_of_a_connection_is_what_becomes_of_it() {
    let sandbox = Sandbox::new();
    let mirrors = [
        (SERVER_V4.into(), 80),
        (SERVER_V4.into(), 81),
        (OTHER_V4.into(), 80),
        (SERVER_V6.into(), 80),
        ("127.0.0.1".parse().unwrap(), 80),
    ]
    .map(|address: (IpAddr, u16)| sandbox.within(|| Server::mirror(address)));
    let named = Arc::new(sandbox.cgroup().child("named"));
    let copy = sandbox.directory().join("copy");
    fs::copy(app_binary(), &copy).unwrap();
    // The test's own directory is root's.
    let apps = [
        sandbox.app(),
        sandbox.app(),
        App::start(&mut sandbox.command_in(&named, app_binary())),
        App::start(&mut sandbox.command(&copy)),
        App::start(&mut sandbox.outsider(app_binary())),
        sandbox.app(),
    ];
    apps[1].become_user(4000, 4001);
    let culvert = sandbox.culvert(&rules(&named, &copy, apps[5].pid()));
    let mut verdicts = Vec::new();
    for app in &apps {
        for mirror in &mirrors {
            let explanation = agrees(&sandbox, &culvert, app, mirror.address());
            verdicts.push(explanation["rule"].as_str().unwrap_or("none").to_owned());
        }
    }
    for rule in ["user", "cgroup", "exe", "process", "refused", "none"] {
        assert!(verdicts.iter().any(|it| it == rule), "{rule}: {verdicts:?}");
    }
}

#[test]
fn each_rule_says_why_not_and_what_is_not_so_may_be_supposed() {
    let sandbox = Sandbox::new();
    let named = Arc::new(sandbox.cgroup().child("named"));
    let copy = sandbox.directory().join("copy");
    fs::copy(app_binary(), &copy).unwrap();
    let app = sandbox.app();
    let culvert = sandbox.culvert(&rules(&named, &copy, 1));
    let [web, other] = [SERVER_V4, OTHER_V4].map(|address| SocketAddr::from((address, 80)));
    let local = SocketAddr::from(([127, 0, 0, 1], 80));
    let none = explain_app(&sandbox, &culvert, &app, web);
    assert_eq!(reason(&none, "user"), ["uid", "4000", "0"]);
    let seen = format!("/{}", sandbox.app_cgroup().name());
    assert_eq!(reason(&none, "cgroup"), ["cgroup", named.name(), &seen]);
    assert_eq!(reason(&none, "exe")[..2], ["dest", &OTHER_V4.to_string()]);
    assert_eq!(reason(&none, "refused"), ["port", "81", "80"]);
    assert_eq!(reason(&none, "process")[0], "pid");
    let loopback = explain_app(&sandbox, &culvert, &app, local);
    assert_eq!(
        reason(&loopback, "user"),
        ["dest", "anything but loopback", "127.0.0.1"]
    );

    // What is not so may be supposed.
    let (pid, to) = (app.pid().to_string(), web.to_string());
    for (supposed, rule) in [
        (["--user", "4000"], "user"),
        (["--cgroup", named.name()], "cgroup"),
    ] {
        let words = [&supposed[..], &["--pid", &pid, &to]].concat();
        assert_eq!(explain(&sandbox, &culvert, &words)["rule"], rule);
    }
    let other = other.to_string();
    let copy = copy.to_str().unwrap();
    let words = ["--exe", copy, "--pid", &pid, &other];
    let supposed = explain(&sandbox, &culvert, &words);
    assert_eq!(supposed["rule"], "exe", "{supposed:#}");
    let listener = culvert.listener_v4().to_string();
    assert_eq!(supposed["listeners"], serde_json::json!([listener]));
    assert_eq!(supposed["on_relay_failure"], "direct");
    assert_eq!(supposed["path"], "auto");
    assert_eq!(supposed["via"], "relay: direct, connect 10s");
    let hooks = supposed["hooks"].as_array().unwrap();
    let ours: Vec<_> = hooks.iter().filter(|hook| hook["ours"] == true).collect();
    let named: Vec<_> = ours
        .iter()
        .map(|hook| hook["hook"].as_str().unwrap())
        .collect();
    assert_eq!(
        named,
        ["connect4", "tcp_events", "getpeername4", "getsockopt"]
    );
    let served = format!("/{}", sandbox.cgroup().name());
    assert!(ours.iter().all(|hook| hook["cgroup"] == served), "{ours:?}");
}

#[test]
fn hooks_are_listed_in_the_order_they_run_in() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    let rules = RELAY.to_owned() + &relayed("all", "port = 80");
    let outer = sandbox.culvert(&rules);
    let settings = Settings {
        cgroup: Some(sandbox.app_cgroup().name().to_owned()),
        ..Settings::default()
    };
    let inner = sandbox.culvert_with(&settings, &rules);
    let app = sandbox.app();
    let hooks = explain_app(&sandbox, &outer, &app, mirror.address());
    let hooks: Vec<_> = hooks["hooks"].as_array().unwrap().iter().collect();
    let holders = [&inner, &outer].map(|culvert| format!("culvert[{}]", culvert.pid()));
    let of_these = |hook: &&&Value| {
        let held_by = hook["held_by"][0].as_str();
        hook["hook"] == "connect4"
            && held_by.is_some_and(|held_by| holders.iter().any(|holder| holder == held_by))
    };
    let found: Vec<_> = hooks.iter().filter(of_these).collect();
    let found: Vec<_> = found.iter().map(|hook| &hook["held_by"][0]).collect();
    assert_eq!(found, holders.each_ref(), "{hooks:?}");
}

#[test]
fn programs_of_others_are_listed_where_they_run() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 80)));
    let culvert = sandbox.culvert(&(RELAY.to_owned() + &relayed("all", "port = 80")));
    let stranger = Stranger::refuses_connects(sandbox.app_cgroup(), 81);
    let app = sandbox.app();
    let said = explain_app(&sandbox, &culvert, &app, mirror.address());
    let connects = said["hooks"].as_array().unwrap().iter();
    let connects: Vec<_> = connects.filter(|hook| hook["hook"] == "connect4").collect();
    let of_app = format!("/{}", sandbox.app_cgroup().name());
    assert_eq!(connects[0]["cgroup"], of_app, "{said:#}");
    assert_eq!(connects[0]["ours"], false);
    let held_by = connects[0]["held_by"][0].as_str().unwrap();
    assert!(
        held_by.ends_with(&format!("[{}]", std::process::id())),
        "{held_by}"
    );
    assert!(
        connects[1..].iter().any(|hook| hook["ours"] == true),
        "{said:#}"
    );
    drop(stranger);
    let said = explain_app(&sandbox, &culvert, &app, mirror.address());
    let hooks = said["hooks"].as_array().unwrap();
    assert!(
        hooks.iter().all(|hook| hook["cgroup"] != of_app),
        "{said:#}"
    );
}

#[test]
fn the_fail_mode_holds_for_another_network_namespace() {
    let sandbox = Sandbox::new();
    let elsewhere = Arc::new(Netns::new());
    elsewhere.add_address(SERVER_V4.into());
    let server = elsewhere.within(|| Server::mirror((SERVER_V4, 80)));
    let culvert = sandbox.culvert(&(RELAY.to_owned() + &relayed("all", "port = 80")));
    let app = App::start(&mut sandbox.command_elsewhere(&elsewhere, app_binary()));
    let explanation = agrees(&sandbox, &culvert, &app, server.address());
    assert_eq!(
        (&explanation["rule"], &explanation["verdict"]),
        (&"all".into(), &"direct".into())
    );
    let rule = relayed("all", "port = 80") + "on_relay_failure = \"refuse\"\n";
    culvert.reload(&(RELAY.to_owned() + &rule));
    let explanation = agrees(&sandbox, &culvert, &app, server.address());
    assert_eq!(explanation["verdict"], "refuse");
    let why = explanation["why"].as_str().unwrap();
    assert!(why.contains("another network namespace"), "{why}");
}

#[test]
fn what_arrives_is_taken_by_the_rule_that_is_said() {
    let sandbox = Sandbox::new();
    let [wide, narrow, other] = [(SERVER_V4, 80), (SERVER_V4, 81), (OTHER_V4, 80)]
        .map(|address| sandbox.within(|| Server::echo(address)));
    let rules = format!(
        "[[reverse]]\nname = \"wide\"\nlisten = \"{SERVER_V4}:1-1000\"\nvia = \"original\"\n\
         [[reverse]]\nname = \"narrow\"\nlisten = \"{}\"\nvia = \"original\"\nmatch = {{ source = \"192.0.2.0/24\" }}\n\
         [[reverse]]\nname = \"strangers\"\nlisten = \"{}\"\nvia = \"original\"\nmatch = {{ source = \"!192.0.2.0/24\" }}\n",
        narrow.address(),
        other.address(),
    );
    let culvert = sandbox.culvert(&rules);
    let app = sandbox.app();
    for (server, expected) in [
        (&wide, Some("wide")),
        (&narrow, Some("narrow")),
        (&other, None),
    ] {
        let socket = app.tcp(server.address());
        socket.bind((SERVER_V4, 0).into()).unwrap();
        socket.connect(server.address()).unwrap();
        socket.exchange(1, 1000).unwrap();
        socket.close();
        let [source, to] = [SERVER_V4.to_string(), server.address().to_string()];
        let said = explain(&sandbox, &culvert, &["--inbound", &source, &to]);
        assert_eq!(said["rule"].as_str(), expected, "{said:#}");
        let verdict = if expected.is_some() {
            "relay"
        } else {
            "direct"
        };
        assert_eq!(said["verdict"], verdict);
        assert_eq!(said["hooks"][0]["hook"], "reverse", "{said:#}");
        assert_eq!(said["hooks"][0]["ours"], true, "{said:#}");
    }
    let mut taken: Vec<_> = culvert
        .await_records(2)
        .into_iter()
        .map(|it| it.rule)
        .collect();
    taken.sort();
    assert_eq!(taken, [Some("narrow".to_owned()), Some("wide".to_owned())]);
    let to = other.address().to_string();
    let said = explain(&sandbox, &culvert, &["--inbound", "192.0.2.1", &to]);
    assert_eq!(
        reason(&said, "strangers"),
        ["source", "!192.0.2.0/24", "192.0.2.1"]
    );
}

#[test]
fn a_file_can_be_asked_and_nobody_there_is_said() {
    let sandbox = Sandbox::new();
    let file = sandbox.directory().join("rules.toml");
    let rule = relayed("web", "port = 443") + "on_relay_failure = \"refuse\"\n";
    fs::write(&file, RELAY.to_owned() + &rule).unwrap();
    let to = format!("{SERVER_V4}:443");
    let output = run(&sandbox, &["--config", file.to_str().unwrap(), &to]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let first = "relay: rule \"web\" is the first that selects it\n";
    assert!(text.starts_with(first), "{text}");
    assert!(text.contains("\n  relay fails  refuse\n"), "{text}");
    let nowhere = sandbox.directory().join("nobody.sock");
    let output = run(&sandbox, &["--admin", nowhere.to_str().unwrap(), &to]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--config FILE"), "{error}");
}
