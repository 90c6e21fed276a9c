//! Close records as the access log has them.

use std::net::SocketAddr;

use serde::Deserialize;

/// One line of the access log. A line that lacks a field that is always there, or has one of another type, does not
/// parse and fails the test.
#[derive(Clone, Debug, Deserialize)]
pub struct CloseRecord {
    /// Milliseconds since 1970.
    pub closed_at_ms: u64,
    /// Rule that selected the connection.
    pub rule: Option<String>,
    /// Process id of the app.
    pub pid: u32,
    /// Its real user id.
    pub uid: u32,
    /// Its real group id.
    pub gid: u32,
    /// Name of the thread that connected.
    pub comm: String,
    /// Its executable.
    pub exe: Option<String>,
    /// Its cgroup, below the root of the hierarchy.
    pub cgroup: Option<String>,
    /// Address of its socket.
    pub client: SocketAddr,
    /// Where it wanted to connect.
    pub orig_dst: Option<SocketAddr>,
    /// Upstream of the rule.
    pub upstream: Option<String>,
    /// What the relay connected to.
    pub peer: Option<SocketAddr>,
    /// How bytes were moved.
    pub path: Option<String>,
    /// Why it was not on the shortcut.
    pub no_shortcut: Option<String>,
    /// Bytes from the app to the server.
    pub up: u64,
    /// Those of them that took the shortcut.
    pub up_shortcut: u64,
    /// Bytes from the server to the app.
    pub down: u64,
    /// Those of them that went past the relay.
    pub down_shortcut: u64,
    /// Bytes of both that the kernel moved by itself.
    pub in_kernel: u64,
    /// Times that the kernel gave a direction back to the relay.
    pub demotions: u32,
    /// Times that the kernel would have delivered bytes twice.
    pub repairs: u32,
    /// From `connect()` until the relay accepted, microseconds.
    pub intercept_us: u64,
    /// TCP connect to the server or first proxy, microseconds.
    pub connect_us: u64,
    /// Handshakes with proxies, microseconds.
    pub handshake_us: u64,
    /// From `connect()` until the end, microseconds.
    pub total_us: u64,
    /// Why it ended.
    pub reason: String,
    /// The error behind the reason.
    pub error: Option<String>,
}
