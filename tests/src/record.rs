//! Close records as the access log has them.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer};

/// Bytes, up and down, by the path they went.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct ByPath {
    /// Through a user-space buffer.
    pub copy: u64,
    /// Through a kernel pipe.
    pub splice: u64,
    /// Redirected in the kernel from socket to socket.
    pub sockmap: u64,
    /// From the app's own socket to upstream, past the relay.
    pub shortcut: u64,
    /// From upstream into the app's receive queue, past the relay.
    pub replies: u64,
}

/// One line of the access log. A line that lacks a field that is always there, or has one of another type, does not
/// parse and fails the test.
#[derive(Clone, Debug, Deserialize)]
pub struct CloseRecord {
    /// Milliseconds since 1970.
    pub closed_at_ms: u64,
    /// `forward` or `reverse`.
    pub role: String,
    /// Rule that selected the connection.
    pub rule: Option<String>,
    /// Process id of the app; this and what follows is nothing for connections that arrived.
    #[serde(deserialize_with = "or_nothing")]
    pub pid: u32,
    /// Its real user id.
    #[serde(deserialize_with = "or_nothing")]
    pub uid: u32,
    /// Its real group id.
    #[serde(deserialize_with = "or_nothing")]
    pub gid: u32,
    /// Name of the thread that connected.
    #[serde(deserialize_with = "or_nothing")]
    pub comm: String,
    /// Its executable.
    pub exe: Option<String>,
    /// Its cgroup, below the root of the hierarchy.
    pub cgroup: Option<String>,
    /// Address of its socket.
    pub client: SocketAddr,
    /// The trusted sender that told it.
    pub sender: Option<SocketAddr>,
    /// Where it wanted to connect.
    pub orig_dst: Option<SocketAddr>,
    /// The name that the client asked for.
    pub name: Option<String>,
    /// The protocols that it offered.
    pub alpn: Option<String>,
    /// Upstream of the rule.
    pub upstream: Option<String>,
    /// What the relay connected to.
    pub peer: Option<SocketAddr>,
    /// The endpoint of a group.
    pub endpoint: Option<String>,
    /// How many were tried.
    pub attempts: u32,
    /// What the endpoint was told that the connection is called.
    pub unique_id: Option<String>,
    /// How bytes were moved last.
    pub path: Option<String>,
    /// Why it was not on a better path.
    pub path_reason: Option<String>,
    /// Bytes from the app to the server.
    pub up: u64,
    /// Bytes from the server to the app.
    pub down: u64,
    /// All of them by the path they went.
    pub bytes: ByPath,
    /// Times that a direction was given to a better path than copying.
    pub promotions: u32,
    /// Times that one came back from there.
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

/// A field that is always there, and `null` where it means nothing.
fn or_nothing<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
