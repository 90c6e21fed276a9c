//! A short run of the stress program: everything a flow can do, with packets lost, promoted at every threshold around which
//! something changes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use culvert_tests::{
    Sandbox,
    stress::{Report, Stress, plan::Shape},
};

/// Of every run here, so that one that fails can be repeated: `culvert-stress --seed`.
const SEED: u64 = 1;

/// Flows by the sockmap path, with packets lost: what there is to say of them.
fn flows(loss: u32, promote: &str, count: u64) -> Report {
    let sandbox = Sandbox::new();
    let shape = Shape {
        seed: SEED,
        least: 1,
        most: 2 << 20,
        resets: 10,
    };
    let daemon = format!("promote = {promote}\n");
    let mut stress = Stress::start(&sandbox, "sockmap", &daemon, shape);
    sandbox.netns().lose_one_packet_in(loss);
    let report = stress.run(0..count, 32);
    println!("{promote}, one packet in {loss} lost: {report}");
    assert_eq!(report.failures, [""; 0], "seed {SEED}");
    assert!(report.resets > 0, "{report}");
    report
}

#[test]
fn promoted_after_any_number_of_bytes() {
    let mut in_kernel = 0;
    for bytes in [0, 1, 2, 4095, 4096, 65_535, 65_536, 65_537, 1 << 20] {
        let promote = format!("{{ bytes = \"{bytes}B\", reads = 4294967295 }}");
        in_kernel += flows(300, &promote, 100).in_kernel;
    }
    // On a busy machine the kernel may have no part in those of one threshold.
    assert!(in_kernel > 0);
}

#[test]
fn promoted_after_any_number_of_reads() {
    let mut in_kernel = 0;
    for reads in [1, 2, 8] {
        let promote = format!("{{ bytes = \"1TiB\", reads = {reads} }}");
        in_kernel += flows(300, &promote, 100).in_kernel;
    }
    // As above.
    assert!(in_kernel > 0);
}

#[test]
fn with_many_packets_lost() {
    let report = flows(30, "{ bytes = \"0B\", reads = 0 }", 100);
    assert!(report.demotions > 0, "{report}");
}
