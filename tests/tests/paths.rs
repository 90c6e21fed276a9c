//! Every path on whatever kernel this is: it carries bytes whole, or it is off for a reason that can be seen without culvert.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{fmt::Write as _, net::SocketAddr};

use culvert_tests::{
    App, Culvert, Payload, Sandbox,
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
}

enum Traffic {
    /// A megabyte both ways at once, and then so much as is taken while the relay stands still.
    Bulk,
    /// Questions and answers on a socket that does not block.
    Messages,
}

const PATHS: [Path; 5] = [
    Path {
        name: "copy",
        moved: |bytes| bytes.copy,
        traffic: Traffic::Bulk,
        reads_kernel: false,
        since: (5, 10),
        reason: "",
    },
    Path {
        name: "splice",
        moved: |bytes| bytes.splice,
        traffic: Traffic::Bulk,
        reads_kernel: false,
        since: (5, 10),
        reason: "",
    },
    Path {
        name: "sockmap",
        moved: |bytes| bytes.sockmap,
        traffic: Traffic::Messages,
        reads_kernel: true,
        since: (5, 10),
        reason: "self_test",
    },
    Path {
        name: "shortcut-without-fionread",
        moved: |bytes| bytes.shortcut,
        traffic: Traffic::Messages,
        reads_kernel: true,
        since: (5, 10),
        reason: "kernel",
    },
    Path {
        name: "shortcut-both-ways",
        moved: |bytes| bytes.replies,
        traffic: Traffic::Messages,
        reads_kernel: true,
        since: (6, 4),
        reason: "replies",
    },
];

const BULK: u64 = 1 << 20;
const PILE: u64 = 256 << 10;
const ROUNDS: u64 = 40;
const MESSAGE: usize = 200;

impl Path {
    fn is_there(&self) -> bool {
        !self.reads_kernel || (tells_types() && !is_confidential())
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
                let received = socket.receive(usize::try_from(sent).unwrap()).unwrap();
                assert_eq!(received.len() as u64, sent);
                assert_eq!(Payload { seed }.first_difference(0, &received), None);
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

    fn check(&self, record: &CloseRecord) {
        let moved = (self.moved)(&record.bytes);
        if self.is_there() && version() >= self.since {
            assert!(moved > 0, "{record:?}");
        } else if moved == 0 {
            let reason = record.path_reason.as_deref();
            let expected = if self.is_there() {
                self.reason
            } else {
                self.reason_without_memory()
            };
            assert_eq!(reason, Some(expected), "{record:?}");
        } else {
            assert!(self.is_there(), "how can it know what is where? {record:?}");
        }
    }

    /// What records say where hooks cannot read the kernel's memory: then there is no shortcut either.
    fn reason_without_memory(&self) -> &'static str {
        if self.name == "shortcut-both-ways" {
            "kernel"
        } else {
            self.reason
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
    for (path, sent) in PATHS.iter().zip(sent) {
        let record = record_of(&records, path.name);
        assert_eq!((record.up, record.down), (sent, sent), "{record:?}");
        assert_eq!(record.reason, "done", "{record:?}");
        path.check(record);
    }
}
