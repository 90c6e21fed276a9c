//! The shortcut both ways, seen by apps: what they rely on holds for replies that come straight into their receive queue,
//! and what does not is pinned here.

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
    process::{in_steps, output},
    record::CloseRecord,
    sandbox::SERVER_V4,
};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP, SIGTERM};

const SCRIPT: &str = concat!(
    include_str!("shortcut/app.py"),
    include_str!("both_ways/app.py"),
    include_str!("shortcut/main.py")
);

const RULES: &str = r#"
    [upstream.relay]
    url = "direct://"
    [[forward]]
    name = "all"
    match = { dest = "0.0.0.0/0" }
    via = "relay"
    path = "shortcut-both-ways"
"#;

/// A scenario of the script, to be run as an app.
fn app(sandbox: &Sandbox, scenario: &str) -> Command {
    let mut command = sandbox.command("python3");
    command.args(["-c", SCRIPT, scenario, &SERVER_V4.to_string()]);
    command
}

/// Runs a scenario with one connection and returns its record.
fn run(scenario: &str) -> CloseRecord {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(RULES);
    output(&mut app(&sandbox, scenario));
    culvert.the_record()
}

/// Runs a scenario in which every reply goes past the relay.
fn all_past_the_relay(scenario: &str) {
    let record = run(scenario);
    assert_eq!(record.path_reason, None, "{record:?}");
    assert_eq!(record.path.as_deref(), Some("shortcut-both-ways"));
    assert_eq!(record.bytes.replies, record.down, "{record:?}");
    assert!(record.down > 0, "{record:?}");
}

/// Runs a scenario in which some replies go past the relay, and returns its record.
fn some_past_the_relay(scenario: &str) -> CloseRecord {
    let record = run(scenario);
    assert!(record.bytes.replies > 0, "{record:?}");
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

scenarios!(all_past_the_relay:
    half_close send_after_the_end app_resets server_resets owner_exits owner_is_killed waiting_and_peeking
    edges vectors_and_nothing held_back shared dialogue exchanges one_by_one peeked levels
    answer_and_close_to_a_sleeper handed_over splice_finds_nothing unread_bytes_send_no_reset receive_queue_length
);

scenarios!(some_past_the_relay:
    server_half_closes_first slow_server_by_level slow_server_by_edge threads urgent turns_blocking large_and_small
    low_water_mark low_water_mark_late pipelined asks_and_never_reads files
);

#[test]
fn streams_are_the_relay_s() {
    for scenario in ["download", "slow_app"] {
        let record = some_past_the_relay(scenario);
        assert!(record.bytes.replies < 200_000, "{record:?}");
    }
}

/// Runs a scenario with that many connections, on nearly all of which a reply went past the relay: the kernel may refuse a
/// socket, and then replies are copied.
fn many(scenario: &str, connections: usize) {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(RULES);
    output(&mut app(&sandbox, scenario));
    let records = culvert.await_records(connections);
    let past = records.iter().filter(|record| record.bytes.replies > 0);
    assert!(past.count() > connections * 9 / 10, "{records:?}");
    assert_eq!(culvert.maps().lanes(), []);
}

#[test]
fn answer_and_close() {
    many("answer_and_close", 200);
}

#[test]
fn answer_and_reset() {
    many("answer_and_reset", 50);
}

#[test]
fn both_half_close() {
    many("both_half_close", 50);
}

#[test]
fn a_thousand_at_once() {
    many("many", 1000);
}

#[test]
fn lost_packets_cost_no_byte() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(RULES);
    sandbox.netns().lose_one_packet_in(300);
    for scenario in ["large_and_small", "exchanges", "download"] {
        output(&mut app(&sandbox, scenario));
    }
    for record in culvert.await_records(3) {
        println!("{} repairs: {record:?}", record.repairs);
        assert!(record.bytes.replies > 0, "{record:?}");
    }
}

#[test]
fn a_killed_relay_ends_no_connection_orderly() {
    let sandbox = Sandbox::new();
    let mut culvert = sandbox.culvert(RULES);
    let mut command = app(&sandbox, "crash_with_answers_unread");
    in_steps(&mut command, &mut [&mut || culvert.kill()]);
}

#[test]
fn a_stopped_relay_stops_no_exchange() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(RULES);
    let mut stop = || culvert.signal(SIGSTOP);
    let mut go_on = || culvert.signal(SIGCONT);
    let mut command = app(&sandbox, "without_the_relay");
    in_steps(&mut command, &mut [&mut stop, &mut go_on]);
    let record = culvert.the_record();
    assert_eq!(record.bytes.replies, record.down);
}

#[test]
fn a_daemon_that_ends_waits_until_answers_are_read() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(RULES);
    let mut end = || culvert.signal(SIGTERM);
    in_steps(&mut app(&sandbox, "late_reader"), &mut [&mut end]);
    assert_eq!(culvert.the_record().reason, "done");
}

#[test]
fn a_socket_used_again_is_another_connection() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(RULES);
    output(&mut app(&sandbox, "reconnect"));
    let records = culvert.await_records(2);
    assert!(records[0].bytes.replies > 0, "{records:?}");
    assert_eq!(records[1].path_reason.as_deref(), Some("reused"));
    assert_eq!(records[1].bytes.replies, 0);
}
