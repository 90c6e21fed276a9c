//! The sockmap path through a real daemon: what the kernel moves by itself arrives, also where packets are lost.

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
    peer::Server,
    record::CloseRecord,
    rules::ALL,
    sandbox::{SERVER_V4, SERVER_V6},
};

/// Connections to echo servers of both families, all at once, by a rule that asks for the path. One packet in so many is
/// lost, if any.
fn storm(sandbox: &Sandbox, connections: u32, length: u64, loss: Option<u32>) -> Vec<CloseRecord> {
    let servers = [
        sandbox.within(|| Server::echo((SERVER_V4, 0))),
        sandbox.within(|| Server::echo((SERVER_V6, 0))),
    ];
    let culvert = sandbox.culvert(&format!("{ALL}path = \"sockmap\"\n"));
    // Not before the path has been tried.
    if let Some(packets) = loss {
        sandbox.netns().lose_one_packet_in(packets);
    }
    let outcomes = sandbox.app().storm(&Storm {
        addresses: servers.iter().map(Server::address).collect(),
        threads: connections,
        each: 1,
        length,
    });
    assert_eq!(
        outcomes,
        [(0, u64::from(connections))].into(),
        "error numbers, and InvalidData for a byte that differs"
    );
    let records = culvert.await_records(connections as usize);
    for record in &records {
        assert_eq!((record.up, record.down), (length, length), "{record:?}");
        assert_eq!(record.reason, "done");
    }
    records
}

#[test]
fn many_at_once_and_the_kernel_moves_them() {
    let sandbox = Sandbox::new();
    let records = storm(&sandbox, 100, 1024 * 1024, None);
    // On a busy machine a sender may be so far ahead that the relay never finds its socket empty, which it copies then.
    let moved = records
        .iter()
        .filter(|record| record.bytes.sockmap > 0)
        .count();
    assert!(moved > 0, "none by the kernel");
    let by_path = |record: &CloseRecord| record.path.as_deref() == Some("sockmap");
    assert!(records.iter().any(by_path), "{records:?}");
}

#[test]
fn lost_packets_cost_no_byte() {
    let sandbox = Sandbox::new();
    let records = storm(&sandbox, 8, 16 * 1024 * 1024, Some(300));
    let sum = |of: fn(&CloseRecord) -> u64| records.iter().map(of).sum::<u64>();
    println!(
        "{} bytes by the kernel, {} repairs, {} demotions",
        sum(|record| record.bytes.sockmap),
        sum(|record| record.repairs.into()),
        sum(|record| record.demotions.into()),
    );
    assert!(sum(|record| record.bytes.sockmap) > 0);
}
