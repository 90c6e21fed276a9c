//! The commands that say something and change nothing: `demo`, `doctor`, `plan`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use culvert_tests::{
    Sandbox, cgroup,
    daemon::Settings,
    eventually,
    hosts::Hosts,
    process::{attempt, culvert_binary, run, write_private},
    rules::{RELAY, relayed},
};
use serde_json::Value;

const REFUSE: &str = r#"
[[forward]]
name = "closed"
match = { dest = "192.0.2.99" }
via = "refuse"
on_relay_failure = "refuse"
"#;

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn culvert(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    attempt(sandbox.culvert_command().args(arguments))
}

/// As [`culvert`], without any capability.
fn powerless(arguments: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(culvert_binary());
    attempt(command.args(arguments))
}

#[test]
fn the_demonstration_is_as_expected_and_leaves_nothing() {
    // When it goes, the sandbox looks for cgroups and processes that are left in it.
    let sandbox = Sandbox::new();
    let output = culvert(&sandbox, &["demo"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", stderr(&output));
    assert_eq!(text.matches('✓').count(), 9, "{text}");
    for part in [
        "192.0.2.66:8080           refused",
        "[::ffff:192.0.2.20]:8080  relayed",
        "[2001:db8::30]:8080       relayed   relay, SOCKS5 proxy",
        "seen 8  direct 2  refused 1  relayed 5",
        "Nothing is left: 6 programs, 6 links",
        "9 connections, 128 MiB verified",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains('\x1b'), "colours in a file: {text}");
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_demonstration_that_goes_otherwise_fails_and_says_what_differed() {
    let sandbox = Sandbox::new();
    // A second culvert, above the demonstration's cgroup, refuses what the demonstration does not.
    let _other = sandbox.culvert(REFUSE);
    let output = culvert(&sandbox, &["demo"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("192.0.2.99:8080: connect() failed with ECONNREFUSED"),
        "{text}"
    );
    assert_eq!(text.matches('✓').count(), 8, "the others are right: {text}");
}

#[test]
fn a_killed_demonstration_leaves_no_cgroup_and_no_app() {
    let sandbox = Sandbox::new();
    let mut demo = sandbox
        .culvert_command()
        .arg("demo")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let app = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.starts_with("App "))
        .unwrap();
    demo.kill().unwrap();
    demo.wait().unwrap();
    // "App        process 12, alone in cgroup /a/b; it knows of no proxy"
    let (_, path) = app.split_once("cgroup /").unwrap();
    let (path, _) = path.split_once(';').unwrap();
    let directory = cgroup::mount().join(path);
    // A cgroup can be removed only when the app that was in it is dead.
    eventually("the removal of the cgroup", || {
        (!directory.exists()).then_some(())
    });
}

#[test]
fn without_privileges_the_demonstration_says_which_it_needs() {
    let output = powerless(&["demo"]);
    assert_eq!(output.status.code(), Some(3));
    for part in [
        "CAP_BPF",
        "CAP_NET_ADMIN",
        "CAP_SYS_ADMIN",
        "run it as root",
    ] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}

/// The checks of `doctor --json` by their ids, each with its status, and the whole.
fn doctor(output: &Output) -> (BTreeMap<String, String>, Value) {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap().iter().map(|check| {
        let text = |key: &str| check[key].as_str().unwrap().to_owned();
        assert!(!text("found").is_empty(), "{check}");
        (text("id"), text("status"))
    });
    (checks.collect(), report)
}

#[test]
fn the_doctor_finds_this_machine_fit_and_tries_every_program() {
    let sandbox = Sandbox::new();
    let output = culvert(&sandbox, &["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let (checks, report) = doctor(&output);
    assert_eq!(report["forward_proxy"], true);
    let programs = checks.iter().filter(|(id, _)| id.starts_with("program_"));
    let programs: Vec<_> = programs.collect();
    assert_eq!(
        programs.len(),
        proxy_common::names::PROGRAMS.len(),
        "{checks:?}"
    );
    assert!(
        programs.iter().all(|(_, status)| *status == "ok"),
        "{checks:?}"
    );
    // The verifier gives up after a million; what it goes through is time at every start.
    for program in report["programs"].as_array().unwrap() {
        let verified = program["verified_instructions"].as_u64();
        assert!(verified.is_none_or(|count| count < 100_000), "{program}");
    }
    for id in [
        "kernel",
        "cgroup2",
        "btf",
        "netns_cookie",
        "loopback",
        "ipv6",
        "io_uring",
        "mptcp",
        "cap_bpf",
        "cap_net_admin",
        "refusal",
        "shortcut",
        "task_selectors",
        "bpffs",
        "stale_pins",
        "other_programs",
        "open_files",
        "locked_memory",
        "somaxconn",
    ] {
        assert!(checks.contains_key(id), "no {id} in {checks:?}");
    }
    let text = stdout(&culvert(&sandbox, &["doctor"]));
    assert!(text.contains("Forward proxying works here"), "{text}");
}

#[test]
fn the_doctor_says_what_it_could_not_check_without_privileges() {
    let output = powerless(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let (checks, report) = doctor(&output);
    assert_eq!(report["forward_proxy"], false);
    assert_eq!(checks["cap_bpf"], "missing");
    assert_eq!(checks["cap_net_admin"], "missing");
    assert_eq!(checks["cap_perfmon"], "missing");
    assert_eq!(checks["programs"], "unchecked");
    assert_eq!(checks["other_programs"], "unchecked");
    let text = stdout(&powerless(&["doctor"]));
    assert!(
        text.contains("Forward proxying does not work here: 3 missing"),
        "{text}"
    );
}

#[test]
fn the_doctor_names_programs_of_others_with_their_cgroup_and_process() {
    let sandbox = Sandbox::new();
    let other = sandbox.culvert(REFUSE);
    let (checks, report) = doctor(&culvert(&sandbox, &["doctor", "--json"]));
    assert_eq!(checks["other_programs"], "warning");
    let cgroup = format!("/{}", sandbox.cgroup().name());
    let here = report["other_programs"].as_array().unwrap().iter();
    let here: Vec<_> = here.filter(|it| it["cgroup"] == cgroup.as_str()).collect();
    let hooks: Vec<_> = here.iter().map(|it| it["hook"].as_str().unwrap()).collect();
    // The guard of the rule comes after the program that decides.
    assert_eq!(
        hooks,
        [
            "connect4",
            "connect4",
            "connect6",
            "connect6",
            "getpeername4",
            "getpeername6",
            "getsockopt",
            "tcp_events"
        ]
    );
    let names: Vec<_> = here.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["connect4", "guard4"]);
    assert_eq!(
        (&here[0]["position"], &here[1]["position"]),
        (&1.into(), &2.into())
    );
    assert_eq!(here[0]["held_by"][0]["pid"], other.pid());
}

#[test]
fn the_doctor_finds_what_a_killed_daemon_left_until_it_is_detached() {
    let sandbox = Sandbox::new();
    let stale = || doctor(&culvert(&sandbox, &["doctor", "--json"])).0["stale_pins"].clone();
    let mut daemon = sandbox.culvert(REFUSE);
    assert_eq!(stale(), "ok", "of a running daemon");
    daemon.kill();
    assert_eq!(stale(), "warning");
    assert!(culvert(&sandbox, &["detach"]).status.success());
    assert_eq!(stale(), "ok");
}

/// All that a daemon would change, as it is now.
fn state(sandbox: &Sandbox) -> Vec<String> {
    let cgroup = sandbox.cgroup().path();
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let (mounts, pins) = sandbox.mounts().within(|| {
        let mounts = read("/proc/thread-self/mountinfo");
        let places = ["/run", "/sys/fs/bpf"];
        (mounts, places.map(|place| below(Path::new(place))).concat())
    });
    let listeners = sandbox
        .within(|| ["tcp", "tcp6"].map(|table| read(&format!("/proc/thread-self/net/{table}"))));
    let attached = run("bpftool", &["cgroup", "tree", cgroup.to_str().unwrap()]);
    let mut state = vec![mounts, listeners.concat(), attached];
    state.extend(pins);
    state.extend(
        below(cgroup)
            .into_iter()
            .filter(|path| Path::new(path).is_dir()),
    );
    state
}

fn below(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.path()) {
        found.push(path.display().to_string());
        if path.is_dir() {
            found.extend(below(&path));
        }
    }
    found.sort();
    found
}

fn plan(sandbox: &Sandbox, text: &str) -> Output {
    let file = sandbox.directory().join("plan.toml");
    let daemon = format!("[daemon]\ncgroup = {:?}\n", sandbox.cgroup().name());
    write_private(&file, &(daemon + text));
    culvert(sandbox, &["plan", "--config", file.to_str().unwrap()])
}

#[test]
fn a_plan_tells_what_would_be_done_and_does_nothing() {
    let sandbox = Sandbox::new();
    let named = sandbox.cgroup().child("named");
    let rules = RELAY.to_owned()
        + &relayed("here", &format!("cgroup = {:?}", named.name()))
        + &relayed(
            "later",
            "cgroup = \"late.service\", exe = \"/bin/sh\", pid = 1",
        )
        + &relayed("root", "uid = \"root\"")
        + REFUSE;
    let before = state(&sandbox);
    let output = plan(&sandbox, &rules);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", stderr(&output));
    assert_eq!(state(&sandbox), before, "what a plan must not change");

    let id = |path: &Path| fs::metadata(path).unwrap().ino();
    for part in [
        format!(
            "{}: id {}",
            sandbox.cgroup().path().display(),
            id(sandbox.cgroup().path())
        ),
        format!("/{}, id {}", named.name(), id(named.path())),
        "cgroup late.service".to_owned(),
        "there is none yet; waits for it".to_owned(),
        format!("inode {} on device", id(Path::new("/bin/sh"))),
        "task_fork task_exit".to_owned(),
        "guard4 guard6, pinned".to_owned(),
        "127.0.0.1 and [::1]".to_owned(),
        "ACTIONS      4 of 256".to_owned(),
        "Nothing is missing".to_owned(),
    ] {
        assert!(text.contains(&part), "{part:?} is not in {text}");
    }
    let uid = text
        .lines()
        .find(|line| line.trim_start().starts_with("uid 0 "));
    assert!(uid.is_some_and(|line| line.ends_with(" root")), "{text}");
}

#[test]
fn a_plan_tells_of_a_daemon_that_is_there_already_and_of_what_a_killed_one_left() {
    let sandbox = Sandbox::new();
    let mut daemon = sandbox.culvert(REFUSE);
    let output = plan(&sandbox, REFUSE);
    assert_eq!(output.status.code(), Some(3));
    let served = format!("process {} serves", daemon.pid());
    assert!(stdout(&output).contains(&served), "{}", stdout(&output));
    daemon.kill();
    let output = plan(&sandbox, REFUSE);
    let left = format!("/culvert/{} of a killed daemon", daemon.pid());
    assert!(stdout(&output).contains(&left), "{}", stdout(&output));
    assert_eq!(output.status.code(), Some(0));
    assert!(culvert(&sandbox, &["detach"]).status.success());
}

#[test]
fn a_plan_for_a_wrong_file_says_where_it_is_wrong() {
    let sandbox = Sandbox::new();
    let output = plan(&sandbox, "[[forward]]\nname = \"x\"\nvia = \"nobody\"\n");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("plan.toml:5:7"),
        "{}",
        stderr(&output)
    );
    assert_eq!(stdout(&output), "");
}

#[test]
fn a_plan_names_what_is_missing_for_just_this_file() {
    let sandbox = Sandbox::new();
    let absent = plan(&sandbox, REFUSE).status.code();
    assert_eq!(absent, Some(0));
    let file = sandbox.directory().join("missing.toml");
    let daemon = "[daemon]\ncgroup = \"nobody/made/this\"\n";
    let exe = "[[forward]]\nname = \"x\"\nmatch = { exe = \"/bin/sh\" }\nvia = \"refuse\"\n";
    let of = |text: &str| {
        write_private(&file, text);
        let file = file.to_str().unwrap();
        let output = powerless(&["plan", "--config", file]);
        assert_eq!(output.status.code(), Some(3));
        let text = stdout(&output);
        let (_, missing) = text.split_once("Missing for this configuration").unwrap();
        missing.to_owned()
    };
    let missing = of(exe);
    for part in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"] {
        assert!(missing.contains(part), "{part} is not in {missing}");
    }
    let missing = of(&(daemon.to_owned() + &exe.replace("exe = \"/bin/sh\"", "port = 80")));
    assert!(
        missing.contains("the cgroup /nobody/made/this"),
        "{missing}"
    );
}

/// By the same words, of both.
#[test]
fn plan_and_doctor_name_what_would_keep_a_gateway_from_its_packets() {
    const RULE: &str = "[[gateway]]\nname = \"lan\"\ninterface = \"lan0\"\nvia = \"original\"\n";
    let sandbox = Sandbox::new();
    let router = sandbox.netns();
    let _hosts = Hosts::around(&sandbox);
    let words = |text: String| text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let planned = || {
        let output = plan(&sandbox, RULE);
        (output.status.code(), words(stdout(&output)))
    };
    let examined = |id: &str| {
        let (checks, report) = doctor(&culvert(&sandbox, &["doctor", "--json"]));
        let mut all = report["checks"].as_array().unwrap().iter();
        let check = all.find(|check| check["id"] == id).unwrap();
        (
            checks[id].clone(),
            check["found"].as_str().unwrap().to_owned(),
        )
    };
    for name in ["all", "lan0"] {
        router.sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0");
    }
    let (code, text) = planned();
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("rp_filter"), "{text}");
    for id in ["forwarding", "routing_rules", "rp_filter"] {
        assert_eq!(examined(id).0, "ok", "{id}");
    }

    router.sysctl("net.ipv4.conf.lan0.rp_filter", "1");
    let (code, text) = planned();
    assert_eq!(code, Some(0), "{text}");
    let strict = "what comes in there by another way than answers would leave by is dropped";
    assert!(
        text.contains(&format!("strict on lan0: {strict}")),
        "{text}"
    );
    let (status, found) = examined("rp_filter");
    assert_eq!(status, "warning");
    assert!(
        found.contains(&format!("strict on lan0: {strict}")),
        "{found}"
    );
    router.sysctl("net.ipv4.conf.lan0.rp_filter", "0");

    for (rule, why) in [
        (
            "fwmark 0x63756c00 lookup 77 priority 5000",
            "is about culvert's mark",
        ),
        (
            "from 10.1.0.0/24 lookup 77 priority 1",
            "is asked before culvert's",
        ),
    ] {
        router.ip(&format!("rule add {rule}"));
        let (code, text) = planned();
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains(why), "{text}");
        let (status, found) = examined("routing_rules");
        assert_eq!(status, "warning");
        assert!(found.contains(why), "{found}");
        let mut refused = sandbox.launch(&Settings::default(), RULE);
        assert!(!refused.wait().success());
        assert!(words(refused.log()).contains(why), "{}", refused.log());
        router.ip(&format!("rule del {rule}"));
    }

    router.sysctl("net.ipv4.ip_forward", "0");
    assert_eq!(planned().0, Some(0), "IPv6 passes");
    assert_eq!(examined("forwarding").0, "warning");
    router.sysctl("net.ipv6.conf.all.forwarding", "0");
    let (code, text) = planned();
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("forwarding on lan0"), "{text}");
}
