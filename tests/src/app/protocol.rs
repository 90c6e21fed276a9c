//! What a test tells an app, and what the app answers: one line of JSON each.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::stress::Flows;

/// The answer to a call, or the error number it ended with.
pub type Reply = Result<Answer, i32>;

/// One thing to do. Sockets are numbered by the app.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the arguments of system calls")]
pub enum Call {
    /// `socket()`; answers the socket.
    Open(Opening),
    /// `bind()`.
    Bind { socket: u32, address: SocketAddr },
    /// `SO_BINDTODEVICE`.
    BindDevice { socket: u32, device: String },
    /// `O_NONBLOCK`.
    SetNonBlocking { socket: u32, on: bool },
    /// Connects, in one of several ways.
    Connect {
        socket: u32,
        address: SocketAddr,
        how: How,
    },
    /// `connect()` to `AF_UNSPEC`.
    Disconnect(u32),
    /// Waits until the socket is writable, then takes its `SO_ERROR`.
    FinishConnect(u32),
    /// `getpeername()`; answers the address.
    PeerName(u32),
    /// `getsockname()`; answers the address.
    SockName(u32),
    /// `getsockopt()` with a buffer that holds these bytes; answers the bytes that are in it then.
    GetOption {
        socket: u32,
        level: i32,
        name: i32,
        buffer: Vec<u8>,
    },
    /// `setsockopt()`.
    SetOption {
        socket: u32,
        level: i32,
        name: i32,
        value: Vec<u8>,
    },
    /// Sends all bytes.
    Send { socket: u32, bytes: Vec<u8> },
    /// Sends a byte with `MSG_OOB`.
    SendUrgent { socket: u32, byte: u8 },
    /// Receives up to that many bytes, or to the end; answers the bytes.
    Receive { socket: u32, length: usize },
    /// Receives so much of a payload and verifies it.
    Verify { socket: u32, seed: u64, length: u64 },
    /// Sends a payload and verifies what an echo server sends back meanwhile.
    Exchange { socket: u32, seed: u64, length: u64 },
    /// Sends a message of a payload and waits until an echo server has sent it back, again and again; also on a socket that does
    /// not block.
    Converse {
        socket: u32,
        seed: u64,
        rounds: u64,
        length: usize,
    },
    /// Sends a payload until nothing more is taken for a while, or all is; answers the number of bytes.
    SendUntilBlocked { socket: u32, seed: u64, length: u64 },
    /// `shutdown(SHUT_WR)`.
    Shutdown(u32),
    /// Closes by a reset.
    Reset(u32),
    /// `close()`.
    Close(u32),
    /// `dup()`; answers the new socket.
    Duplicate(u32),
    /// Listens on a Unix socket at the path and passes the socket to the first who connects.
    Pass { socket: u32, path: PathBuf },
    /// Connects to a Unix socket at the path and takes a socket from there; answers the socket.
    Take(PathBuf),
    /// `setresgid()`, `setresuid()`, and no other groups.
    BecomeUser { uid: u32, gid: u32 },
    /// Connects to a mirror; answers the route.
    Probe(SocketAddr),
    /// Makes many connections; answers the outcomes.
    Storm(Storm),
    /// Does the apps' side of flows; answers what went wrong.
    Stress(Flows),
    /// Makes connections one after the other, each of which sends a payload and is closed at once.
    Deliver {
        address: SocketAddr,
        count: u32,
        length: u64,
    },
    /// Opens connections and keeps them.
    Hold { address: SocketAddr, count: u32 },
    /// Sends a payload on each connection that is kept and verifies what an echo server sends back, one after the other.
    ExchangeHeld { length: u64 },
    /// Listens, says its port to every client, and sends back what it receives; answers the address.
    Serve(SocketAddr),
    /// Makes many connections to servers that say their ports; answers the visits.
    Visit(Storm),
    /// Does it in a child that is forked for it. What the child changes is gone afterwards.
    InChild(Box<Call>),
    /// Does it in a thread that is started for it.
    InThread(Box<Call>),
}

impl Call {
    /// The same, by a child.
    #[must_use]
    pub fn in_child(self) -> Self {
        Self::InChild(Box::new(self))
    }

    /// The same, by a thread.
    #[must_use]
    pub fn in_thread(self) -> Self {
        Self::InThread(Box::new(self))
    }
}

/// What an app answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// A socket.
    Socket(u32),
    /// An address.
    Address(SocketAddr),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A number.
    Number(u64),
    /// Which way a connection went.
    Route(Route),
    /// What went wrong, a line each.
    Failures(Vec<String>),
    /// What became of connections.
    Visits(Vec<Visit>),
    /// How many connections ended how: error number (0 for none) and count.
    Outcomes(Vec<(i32, u64)>),
}

/// Arguments of `socket()`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Opening {
    /// First argument.
    pub family: Family,
    /// Second and third argument.
    pub kind: Kind,
}

/// Address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

impl Family {
    /// That of an address; an IPv4-mapped one is an IPv6 address.
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// Type and protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// `SOCK_STREAM`, `IPPROTO_TCP`.
    Tcp,
    /// `SOCK_STREAM`, `IPPROTO_MPTCP`.
    Mptcp,
    /// `SOCK_DGRAM`, `IPPROTO_UDP`.
    Udp,
}

/// How to connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// `connect()`.
    Connect,
    /// `sendto()` with `MSG_FASTOPEN` and these bytes.
    FastOpen(Vec<u8>),
    /// `IORING_OP_CONNECT`.
    IoUring,
}

/// Which way a connection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Route {
    /// The server sees the app's own socket.
    Direct,
    /// The server sees somebody else's.
    Relayed,
}

/// Many connections at once, each of which exchanges a payload with an echo server if it can.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Storm {
    /// Destinations, used in turn.
    pub addresses: Vec<SocketAddr>,
    /// Threads; they start together.
    pub threads: u32,
    /// Connections that each thread makes, one after the other.
    pub each: u32,
    /// Bytes that each connection sends and expects back. With 0 it is closed as soon as it is there.
    pub length: u64,
}

impl Storm {
    /// Small enough that it is over soon, large enough that some connections are in every stage at any time.
    pub fn short(addresses: &[SocketAddr]) -> Self {
        Self {
            addresses: addresses.to_vec(),
            threads: 4,
            each: 5,
            length: 4096,
        }
    }
}

/// What became of one connection to a server that says its port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Visit {
    /// Where it wanted to go.
    pub address: SocketAddr,
    /// Where it came from, if it was connected.
    pub local: Option<SocketAddr>,
    /// The port of the server that it came to, if it came so far.
    pub endpoint: Option<u16>,
    /// Before `connect()`, in milliseconds since 1970.
    pub begun_ms: u64,
    /// When it was over.
    pub ended_ms: u64,
    /// What went wrong.
    pub error: Option<String>,
    /// Whether that is bytes which are not those that were sent.
    pub is_wrong: bool,
}
