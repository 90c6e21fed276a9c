//! The choice of the path, through a real daemon: what close records and the log say of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use culvert_tests::{
    Sandbox,
    app::protocol::Storm,
    daemon::{Culvert, Settings},
    eventually,
    peer::Server,
    record::CloseRecord,
    rules::ALL,
    sandbox::SERVER_V4,
};

/// A daemon that measures at its start.
fn measuring<'a>(sandbox: &'a Sandbox, rules: &str) -> Culvert<'a> {
    sandbox.culvert_with(&Settings::daemon("calibrate = \"start\""), rules)
}

/// One connection that echoes so many bytes, and its record.
fn echo(sandbox: &Sandbox, culvert: &Culvert<'_>, length: u64) -> CloseRecord {
    let before = culvert.records().len();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let outcomes = sandbox.app().storm(&Storm {
        addresses: vec![server.address()],
        threads: 1,
        each: 1,
        length,
    });
    assert_eq!(outcomes, [(0, 1)].into());
    let record = culvert.await_records(before + 1).remove(before);
    let bytes = record.bytes;
    assert_eq!(
        bytes.copy + bytes.splice + bytes.sockmap + bytes.shortcut + bytes.replies,
        record.up + record.down,
        "{record:?}"
    );
    assert_eq!((record.up, record.down), (length, length));
    record
}

/// Times that the daemon has measured.
fn measurements(culvert: &Culvert<'_>) -> usize {
    culvert.log().matches("measured the paths").count()
}

#[test]
fn a_short_connection_is_copied() {
    let sandbox = Sandbox::new();
    let culvert = measuring(&sandbox, ALL);
    let record = echo(&sandbox, &culvert, 1000);
    assert_eq!(record.path.as_deref(), Some("copy"));
    assert_eq!(record.path_reason.as_deref(), Some("short"));
    assert_eq!((record.bytes.copy, record.promotions), (2000, 0));
}

#[test]
fn a_long_connection_is_where_the_measurement_wants_it() {
    let sandbox = Sandbox::new();
    let culvert = measuring(&sandbox, ALL);
    eventually("a measurement", || {
        (measurements(&culvert) == 1).then_some(())
    });
    let record = echo(&sandbox, &culvert, 16 << 20);
    match record.path.as_deref() {
        // What is best differs from kernel to kernel.
        Some("copy") => {
            let reason = record.path_reason.as_deref();
            assert!(
                matches!(reason, Some("measured" | "self_test")),
                "{record:?}"
            );
            assert_eq!(record.promotions, record.demotions, "{record:?}");
        }
        Some("splice" | "sockmap") => assert!(record.promotions > 0, "{record:?}"),
        _ => panic!("{record:?}"),
    }
}

#[test]
fn rules_that_choose_need_no_measurement_and_say_so() {
    let sandbox = Sandbox::new();
    let culvert = measuring(&sandbox, &format!("{ALL}path = \"copy\"\n"));
    let record = echo(&sandbox, &culvert, 1 << 20);
    assert_eq!(record.path.as_deref(), Some("copy"));
    assert_eq!(record.path_reason.as_deref(), Some("rule"));
    assert_eq!(measurements(&culvert), 0);
}

#[test]
fn the_daemon_measures_past_its_own_hooks() {
    let sandbox = Sandbox::new();
    // The rule relays loopback connections, too.
    let culvert = measuring(&sandbox, ALL);
    eventually("a measurement", || {
        (measurements(&culvert) == 1).then_some(())
    });
    assert_eq!(culvert.counter("relayed"), 0);
    assert!(!culvert.log().contains("WARN"), "{}", culvert.log());
}

#[test]
fn nothing_is_measured_before_it_is_worth_it() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    let record = echo(&sandbox, &culvert, 1 << 20);
    assert_eq!(record.path_reason.as_deref(), Some("unmeasured"));
    assert_eq!(measurements(&culvert), 0);
    echo(&sandbox, &culvert, 16 << 20);
    eventually("a measurement", || {
        (measurements(&culvert) == 1).then_some(())
    });
}

#[test]
fn a_reload_measures_again() {
    let sandbox = Sandbox::new();
    let culvert = measuring(&sandbox, ALL);
    for times in 1..3 {
        eventually("a measurement", || {
            (measurements(&culvert) == times).then_some(())
        });
        culvert.reload(ALL);
    }
}
