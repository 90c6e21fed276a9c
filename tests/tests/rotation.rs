//! An access log that is moved away while it is written.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use culvert_tests::{
    Culvert, Sandbox,
    app::protocol::Storm,
    daemon::Settings,
    eventually,
    peer::Server,
    rules::ALL,
    sandbox::{CLOSED_PORT, SERVER_V4},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const ROTATIONS: usize = 6;

/// Lines of a file, each of which must be a whole record.
fn lines(file: &Path) -> usize {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line");
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["rule"], "all", "{line}");
    }
    text.lines().count()
}

fn told(culvert: &Culvert<'_>, what: &str, times: usize) {
    eventually(what, || {
        (culvert.log().matches(what).count() >= times).then_some(())
    });
}

/// Moves the log away and returns where it is, once nothing is written there any more.
fn rotate(culvert: &Culvert<'_>, number: usize) -> (PathBuf, usize) {
    let old = culvert.access_log().with_extension(number.to_string());
    fs::rename(culvert.access_log(), &old).unwrap();
    culvert.signal(Signal::SIGUSR1);
    told(culvert, "access log opened again", number);
    let count = lines(&old);
    (old, count)
}

#[test]
fn no_record_is_lost_torn_or_late_while_the_log_is_rotated() {
    const THREADS: u32 = 4;
    const EACH: u32 = 500;
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let culvert = sandbox.culvert(ALL);
    let app = sandbox.app();
    let storm = Storm {
        addresses: vec![server.address()],
        threads: THREADS,
        each: EACH,
        length: 64,
    };
    let all = (THREADS * EACH) as usize;
    let rotated: Vec<_> = thread::scope(|scope| {
        let storm = scope.spawn(|| app.storm(&storm));
        let rotated = (1..=ROTATIONS).map(|number| rotate(&culvert, number));
        let rotated = rotated.collect();
        assert_eq!(storm.join().unwrap(), [(0, all as u64)].into());
        rotated
    });
    let before: usize = rotated.iter().map(|(_, count)| count).sum();
    culvert.await_records(all - before);
    for (file, count) in &rotated {
        assert_eq!(lines(file), *count, "written to after it was moved");
    }
    assert_eq!(lines(culvert.access_log()) + before, all);
}

#[test]
fn a_log_that_cannot_be_opened_again_is_written_on() {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let culvert = sandbox.culvert(ALL);
    let old = culvert.access_log().with_extension("old");
    fs::rename(culvert.access_log(), &old).unwrap();
    fs::create_dir(culvert.access_log()).unwrap();
    culvert.signal(Signal::SIGUSR1);
    told(&culvert, "cannot open the access log", 1);
    let app = sandbox.app();
    let socket = app.tcp(server.address());
    socket.connect(server.address()).unwrap();
    socket.close();
    eventually("a record in the old file", || {
        (lines(&old) == 1).then_some(())
    });
    // And it still can be, later.
    fs::remove_dir(culvert.access_log()).unwrap();
    culvert.signal(Signal::SIGUSR1);
    told(&culvert, "access log opened again", 1);
}

#[test]
fn without_a_log_the_signal_is_none_of_its_business() {
    let sandbox = Sandbox::new();
    let settings = Settings {
        without_access_log: true,
        ..Settings::default()
    };
    let culvert = sandbox.culvert_with(&settings, ALL);
    culvert.signal(Signal::SIGUSR1);
    culvert.reload(ALL);
}

/// The close records of a storm, and what the status says of them.
fn recorded(access_log: &str, refused: bool) -> (Vec<Value>, Value) {
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let file = sandbox.directory().join("bounded");
    let settings = Settings {
        without_access_log: true,
        ..Settings::daemon(&format!(
            "access_log = {{ path = \"{}\", {access_log} }}",
            file.display()
        ))
    };
    let culvert = sandbox.culvert_with(&settings, ALL);
    let mut addresses = vec![server.address()];
    if refused {
        addresses.push((SERVER_V4, CLOSED_PORT).into());
    }
    let each = 200 / u32::try_from(addresses.len()).unwrap();
    sandbox.app().storm(&Storm {
        addresses,
        threads: 1,
        each: 200,
        length: 64,
    });
    let closed = |status: &Value| {
        let closed = status["connections"]["closed"].as_object().unwrap();
        closed
            .values()
            .map(|count| count.as_u64().unwrap())
            .sum::<u64>()
    };
    let status = eventually("200 connections that have ended", || {
        let status = culvert.status();
        (closed(&status) == 200).then_some(status)
    });
    assert_eq!(status["connections"]["closed"]["done"], each);
    let written = status["access_log"]["written"].as_u64().unwrap();
    let records = eventually("what is said to be written", || {
        let text = fs::read_to_string(&file).unwrap();
        (text.lines().count() as u64 == written).then_some(text)
    });
    let records = records
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    (records.collect(), status["access_log"].clone())
}

#[test]
fn a_sample_leaves_out_only_what_ended_well_and_counts_it() {
    let (records, status) = recorded("sample = 10", true);
    let (done, failed): (Vec<_>, Vec<_>) = records
        .iter()
        .partition(|record| record["reason"] == "done");
    assert_eq!((done.len(), failed.len()), (10, 100));
    assert_eq!(
        status,
        json!({ "written": 110, "sampled_out": 90, "over_rate": 0, "dropped": 0 })
    );
}

#[test]
fn a_rate_is_not_exceeded_and_what_is_left_out_is_counted() {
    let (records, status) = recorded("rate = 7", false);
    let over = status["over_rate"].as_u64().unwrap();
    assert_eq!(over + records.len() as u64, 200, "{status}");
    // Seconds are those since the daemon began, which no record tells; two of those fall into one of any others.
    let times = records
        .iter()
        .map(|record| record["closed_at_ms"].as_u64().unwrap());
    let mut seconds = std::collections::BTreeMap::new();
    for time in times {
        *seconds.entry(time / 1000).or_insert(0) += 1;
    }
    assert!(
        seconds.values().all(|records| *records <= 14),
        "{seconds:?}"
    );
    assert!(over > 0, "a storm takes less than half a minute");
}
