//! A relay rests while the kernel moves the bytes: nothing wakes it that goes past it, and everything else does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{fs, process::Command};

use culvert_tests::{
    Culvert, Sandbox, daemon::Settings, process::output, rules::ALL, sandbox::SERVER_V4,
};

const SCRIPT: &str = concat!(
    include_str!("shortcut/app.py"),
    include_str!("both_ways/app.py"),
    include_str!("shortcut/main.py")
);

/// The paths on which it can.
const PATHS: [&str; 2] = ["sockmap", "shortcut-both-ways"];

/// Runs a scenario of the script by every path.
fn by_every_path(settings: &Settings, scenario: &str, look: impl Fn(&Culvert<'_>, Command)) {
    for path in PATHS {
        println!("{path}");
        let sandbox = Sandbox::new();
        let culvert = sandbox.culvert_with(settings, &format!("{ALL}path = \"{path}\"\n"));
        let mut app = sandbox.command("python3");
        app.args(["-c", SCRIPT, scenario, &SERVER_V4.to_string()]);
        look(&culvert, app);
    }
}

#[test]
fn whatever_the_kernel_leaves_to_it_wakes_it() {
    by_every_path(&Settings::default(), "woken", |culvert, mut app| {
        output(&mut app);
        for record in culvert.await_records(8) {
            let past = record.bytes.sockmap + record.bytes.replies;
            assert!(past > 0, "{record:?}");
        }
    });
}

#[test]
fn a_silent_connection_ends_while_its_relay_rests() {
    let settings = Settings::daemon("idle_timeout = \"1s\"");
    by_every_path(&settings, "forgotten", |culvert, mut app| {
        output(&mut app);
        assert_eq!(culvert.the_record().reason, "idle_timeout");
    });
}

#[test]
fn what_goes_past_the_relay_is_no_silence() {
    let settings = Settings::daemon("idle_timeout = \"1s\"");
    by_every_path(&settings, "told_slowly", |culvert, mut app| {
        output(&mut app);
        let record = culvert.the_record();
        assert_eq!(record.reason, "done", "{record:?}");
        assert!(
            record.bytes.sockmap + record.bytes.replies > 0,
            "{record:?}"
        );
    });
}

#[test]
fn small_exchanges_leave_it_asleep() {
    const EXCHANGES: u64 = 3000;
    by_every_path(&Settings::default(), "exchanges", |culvert, mut app| {
        let before = waits(culvert.pid());
        output(&mut app);
        let waits = waits(culvert.pid()) - before;
        assert!(waits < EXCHANGES / 3, "{waits} times");
    });
}

/// How often the threads of a process went to sleep.
fn waits(process: u32) -> u64 {
    let mut waits = 0;
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        waits += count.unwrap().trim().parse::<u64>().unwrap();
    }
    waits
}
