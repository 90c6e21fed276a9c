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
    Culvert, Sandbox, app::protocol::Storm, daemon::Settings, eventually, peer::Server, rules::ALL,
    sandbox::SERVER_V4,
};
use nix::sys::signal::Signal;
use serde_json::Value;

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
