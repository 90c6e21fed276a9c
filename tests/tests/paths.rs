//! Every path on whatever kernel this is: it carries bytes whole, or it is off for a reason that can be seen without culvert.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr};

use culvert_tests::{
    App, Culvert, Sandbox, doctor, fionread,
    kernel::{is_confidential, tells_types, version},
    peer::Server,
    record::{ByPath, CloseRecord},
    rules::RELAY,
    sandbox::SERVER_V4,
};

/// A path, what goes by it, and what it takes.
struct Path {
    name: &'static str,
    /// The bytes of a record that went by it.
    moved: fn(&ByPath) -> u64,
    traffic: Traffic,
    /// Programs of it read the kernel's memory where its type information says.
    reads_kernel: bool,
    /// Kernels from this one on have it, and of older ones those that were given it later.
    since: (u32, u32),
    /// What records say where it is off.
    reason: &'static str,
    /// What the doctor calls it, if it looks at it.
    check: Option<&'static str>,
}

enum Traffic {
    /// More than any buffer of the relay both ways at once, and then so much as is taken while the relay stands still.
    Bulk,
    /// Questions and answers on a socket that does not block.
    Messages,
}

const PATHS: [Path; 6] = [
    Path {
        name: "copy",
        moved: |bytes| bytes.copy,
        traffic: Traffic::Bulk,
        reads_kernel: false,
        since: (5, 10),
        reason: "",
        check: None,
    },
    Path {
        name: "splice",
        moved: |bytes| bytes.splice,
        traffic: Traffic::Bulk,
        reads_kernel: false,
        since: (5, 10),
        reason: "",
        check: None,
    },
    Path {
        name: "sockmap",
        moved: |bytes| bytes.sockmap,
        traffic: Traffic::Messages,
        reads_kernel: true,
        since: (5, 10),
        reason: "self_test",
        check: Some("sockmap"),
    },
    Path {
        name: SHORTCUT,
        moved: |bytes| bytes.shortcut,
        traffic: Traffic::Messages,
        reads_kernel: true,
        since: (5, 10),
        reason: "kernel",
        check: Some("shortcut"),
    },
    Path {
        name: "shortcut-without-fionread",
        moved: |bytes| bytes.shortcut,
        traffic: Traffic::Messages,
        reads_kernel: true,
        since: (5, 10),
        reason: "kernel",
        check: None,
    },
    Path {
        name: "shortcut-both-ways",
        moved: |bytes| bytes.replies,
        traffic: Traffic::Messages,
        reads_kernel: true,
        since: (6, 4),
        reason: "replies",
        check: Some("shortcut_both_ways"),
    },
];

/// Apps on it are to be told how many bytes wait for them.
const SHORTCUT: &str = "shortcut";

const BULK: u64 = 512 << 10;
const PILE: u64 = 256 << 10;
const ROUNDS: u64 = 40;
const MESSAGE: usize = 200;

impl Path {
    /// Why it must be off on this kernel, as records say it, as far as that can be seen without culvert.
    fn obstacle(&self) -> Option<&'static str> {
        let can_read = tells_types() && !is_confidential();
        if self.reads_kernel && !can_read {
            // Without the one way there is no other.
            let is_both = self.name == "shortcut-both-ways";
            return Some(if is_both { "kernel" } else { self.reason });
        }
        (self.name == SHORTCUT && !fionread::is_right()).then_some("fionread")
    }

    /// Sends what it is good for and hears it back: how many bytes.
    fn carry(&self, culvert: &Culvert<'_>, app: &App, seed: u64, address: SocketAddr) -> u64 {
        let socket = app.tcp(address);
        let sent = match self.traffic {
            Traffic::Bulk => {
                socket.connect(address).unwrap();
                socket.exchange(seed, BULK).unwrap();
                culvert.freeze();
                let sent = socket.send_until_blocked(seed, PILE).unwrap();
                culvert.thaw();
                socket.verify(seed, sent).unwrap();
                BULK + sent
            }
            Traffic::Messages => {
                socket.set_nonblocking(true);
                // It is under way.
                let _in_progress = socket.connect(address);
                socket.finish_connect().unwrap();
                socket.converse(seed, ROUNDS, MESSAGE).unwrap();
                ROUNDS * MESSAGE as u64
            }
        };
        socket.close();
        sent
    }

    fn check(&self, record: &CloseRecord, doctor: &BTreeMap<String, String>) {
        let moved = (self.moved)(&record.bytes);
        let reason = record.path_reason.as_deref();
        match self.obstacle() {
            Some(obstacle) => assert_eq!((moved, reason), (0, Some(obstacle)), "{record:?}"),
            None if moved > 0 => {}
            None => {
                assert!(version() < self.since, "{record:?}");
                assert_eq!(reason, Some(self.reason), "{record:?}");
            }
        }
        if let Some(check) = self.check {
            assert_eq!(doctor[check] == "ok", moved > 0, "{check}: {record:?}");
        }
    }
}

fn record_of<'a>(records: &'a [CloseRecord], name: &str) -> &'a CloseRecord {
    let of_rule = |record: &&CloseRecord| record.rule.as_deref() == Some(name);
    records.iter().find(of_rule).unwrap()
}

#[test]
fn each_carries_bytes_whole_or_is_off_for_a_reason() {
    let sandbox = Sandbox::new();
    let servers = PATHS.map(|_| sandbox.within(|| Server::echo((SERVER_V4, 0))));
    let mut rules = RELAY.to_owned();
    for (path, server) in PATHS.iter().zip(&servers) {
        let (name, address) = (path.name, server.address());
        write!(
            rules,
            "[[forward]]\nname = \"{name}\"\nmatch = {{ dest = \"{}\", port = {} }}\nvia = \"relay\"\npath = \"{name}\"\n",
            address.ip(),
            address.port()
        )
        .unwrap();
    }
    let culvert: Culvert<'_> = sandbox.culvert(&rules);
    let app = sandbox.app();
    let sent: Vec<_> = (1..)
        .zip(PATHS.iter().zip(&servers))
        .map(|(seed, (path, server))| path.carry(&culvert, &app, seed, server.address()))
        .collect();
    let records = culvert.await_records(PATHS.len());
    let doctor = doctor::statuses();
    for (path, sent) in PATHS.iter().zip(sent) {
        let record = record_of(&records, path.name);
        assert_eq!((record.up, record.down), (sent, sent), "{record:?}");
        assert_eq!(record.reason, "done", "{record:?}");
        path.check(record, &doctor);
    }
}
