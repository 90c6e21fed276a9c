//! The shortcut, seen by apps: whatever they do with their socket comes out as it would without it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::process::Command;

use culvert_tests::{
    Sandbox,
    daemon::Settings,
    peer::HttpProxy,
    process::{in_steps, output},
    record::CloseRecord,
    rules::all_via,
    sandbox::SERVER_V4,
};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};

const SCRIPT: &str = concat!(
    include_str!("shortcut/app.py"),
    include_str!("shortcut/main.py")
);
/// For kernels with and without `FIONREAD` on the shortcut; only tests of `FIONREAD` itself must tell them apart.
const WAIVED: &str = "shortcut-without-fionread";

fn rules(path: &str) -> String {
    format!(
        r#"
        [upstream.relay]
        url = "direct://"
        [[forward]]
        name = "all"
        match = {{ dest = "0.0.0.0/0" }}
        via = "relay"
        path = "{path}"
        "#
    )
}

/// A scenario of the script, to be run as an app.
fn app(sandbox: &Sandbox, scenario: &str) -> Command {
    let mut command = sandbox.command("python3");
    command.args(["-c", SCRIPT, scenario, &SERVER_V4.to_string()]);
    command
}

/// Runs a scenario with one connection and returns what it printed and the record of the connection.
fn run(path: &str, scenario: &str) -> (String, CloseRecord) {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(&rules(path));
    let printed = output(&mut app(&sandbox, scenario));
    (printed.trim().to_owned(), culvert.the_record())
}

/// Runs a scenario in which every byte after the first message must take the shortcut.
fn all_on_shortcut(scenario: &str) {
    let (printed, record) = run(WAIVED, scenario);
    assert_eq!(record.path_reason, None, "{record:?}");
    assert_eq!(record.path.as_deref(), Some("shortcut"));
    assert_sent(&record, printed.parse().unwrap());
}

/// Checks how many bytes took the shortcut. The relay may have been ready for the first message already.
fn assert_sent(record: &CloseRecord, expected: u64) {
    const FIRST_MESSAGE: u64 = 7;
    assert!(
        [expected, expected + FIRST_MESSAGE].contains(&record.bytes.shortcut),
        "{expected} bytes: {record:?}"
    );
}

/// Runs a scenario in which some bytes take the shortcut.
fn some_on_shortcut(scenario: &str) -> CloseRecord {
    let (_, record) = run(WAIVED, scenario);
    assert!(record.bytes.shortcut > 0, "{record:?}");
    record
}

macro_rules! scenarios {
    ($run:ident: $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                $run(stringify!($name));
            }
        )*
    };
}

scenarios!(all_on_shortcut:
    half_close server_half_closes_first send_after_the_end app_resets server_resets close_with_unread_bytes
    owner_exits owner_is_killed waiting_and_peeking edges low_water_mark files vectors_and_nothing held_back
    urgent shared turns_blocking
);

scenarios!(some_on_shortcut: slow_server_by_level slow_server_by_edge threads dialogue);

#[test]
fn a_stream_leaves_the_shortcut() {
    for scenario in ["upload", "small_pieces"] {
        let record = some_on_shortcut(scenario);
        assert_eq!(record.path_reason.as_deref(), Some("stream"), "{record:?}");
        assert_eq!(record.path.as_deref(), Some("copy"));
        assert!(record.up > 2 * record.bytes.shortcut, "{record:?}");
    }
}

#[test]
fn blocking_sockets_stay_off() {
    for scenario in ["waitall", "timeouts", "interrupted"] {
        let (_, record) = run(WAIVED, scenario);
        assert_eq!(record.path_reason.as_deref(), Some("blocking"));
        assert_eq!(record.bytes.shortcut, 0);
    }
}

#[test]
fn fast_open() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(&rules(WAIVED));
    output(&mut app(&sandbox, "fast_open"));
    for record in culvert.await_records(2) {
        assert_eq!(record.up, 11);
        assert!([6, 11].contains(&record.bytes.shortcut), "{record:?}");
    }
}

#[test]
fn sockets_that_the_kernel_would_serve_wrong_stay_off() {
    for scenario in ["zerocopy", "mptcp"] {
        let (_, record) = run(WAIVED, scenario);
        assert_eq!(record.path_reason.as_deref(), Some(scenario));
        assert_eq!(record.bytes.shortcut, 0);
    }
}

#[test]
fn bytes_waiting_are_told_right_unless_the_rule_waives_it() {
    let (_, record) = run("shortcut", "bytes_waiting");
    // A kernel that tells it wrong keeps the connection on the copy path, and this says so.
    assert!(
        matches!(record.path_reason.as_deref(), None | Some("fionread")),
        "{record:?}"
    );
}

#[test]
fn other_paths_take_no_shortcut() {
    for (path, reason) in [("auto", "short"), ("copy", "rule"), ("splice", "rule")] {
        let (_, record) = run(path, "half_close");
        assert_eq!(record.bytes.shortcut, 0);
        assert_eq!(record.path_reason.as_deref(), Some(reason));
    }
}

#[test]
fn a_choice_may_include_it() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(&(rules("auto") + "allow_shortcut = true\n"));
    output(&mut app(&sandbox, "half_close"));
    output(&mut app(&sandbox, "upload"));
    let [messages, stream] = &culvert.await_records(2)[..] else {
        panic!("two records");
    };
    let reason = |record: &CloseRecord| record.path_reason.clone();
    if reason(messages).as_deref() == Some("fionread") {
        // This kernel tells apps wrong how much waits, which the rule does not waive.
        assert_eq!(messages.bytes.shortcut, 0);
        return;
    }
    assert_eq!(messages.path.as_deref(), Some("shortcut"));
    assert_eq!(reason(messages), None);
    assert_ne!(stream.path.as_deref(), Some("shortcut"), "{stream:?}");
    assert_eq!(reason(stream).as_deref(), Some("stream"));
    assert!(stream.bytes.shortcut > 0, "{stream:?}");
}

#[test]
fn a_socket_used_again_is_another_connection() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(&rules(WAIVED));
    output(&mut app(&sandbox, "reconnect"));
    let records = culvert.await_records(2);
    assert_sent(&records[0], 5);
    assert_eq!(records[1].path_reason.as_deref(), Some("reused"));
    assert_eq!((records[1].up, records[1].bytes.shortcut), (13, 0));
}

#[test]
fn a_rule_may_ask_for_it_later() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(&rules("copy"));
    culvert.reload(&rules(WAIVED));
    output(&mut app(&sandbox, "half_close"));
    assert_sent(&culvert.the_record(), 8);
}

#[test]
fn through_a_proxy() {
    let sandbox = Sandbox::new();
    let proxy = sandbox.within(|| HttpProxy::start((SERVER_V4, 0)));
    let rules = all_via("http", proxy.address()) + &format!("path = \"{WAIVED}\"\n");
    let culvert = sandbox.culvert(&rules);
    output(&mut app(&sandbox, "half_close"));
    assert_sent(&culvert.the_record(), 8);
}

#[test]
fn bytes_past_the_relay_are_no_silence() {
    let sandbox = Sandbox::new();
    let settings = Settings::daemon("idle_timeout = \"1s\"");
    let culvert = sandbox.culvert_with(&settings, &rules(WAIVED));
    output(&mut app(&sandbox, "one_way"));
    let record = culvert.the_record();
    assert_sent(&record, 10);
    assert_eq!(record.reason, "done");
}

#[test]
fn a_thousand_at_once() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(&rules(WAIVED));
    output(&mut app(&sandbox, "many"));
    for record in culvert.await_records(1000) {
        assert_sent(&record, 1 + 64 + 3000);
    }
    assert_eq!(culvert.maps().lanes(), []);
}

#[test]
fn a_stopped_relay_does_not_stop_the_app() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(&rules(WAIVED));
    let mut stop = || culvert.signal(SIGSTOP);
    let mut go_on = || culvert.signal(SIGCONT);
    in_steps(&mut app(&sandbox, "pause"), &mut [&mut stop, &mut go_on]);
    assert_sent(&culvert.the_record(), 13);
}

#[test]
fn a_killed_relay_resets_both_sides() {
    let sandbox = Sandbox::new();
    let mut culvert = sandbox.culvert(&rules(WAIVED));
    // That no program and no map is left is checked where the sandbox ends.
    in_steps(&mut app(&sandbox, "crash"), &mut [&mut || culvert.kill()]);
}
