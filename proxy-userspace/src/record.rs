//! The close record: one line for every connection that the relay took, and the log it goes to.
//!
//! Knows nothing of sockets. Writing never blocks a worker: lines go through a bounded queue to a thread of their
//! own, and when that cannot keep up lines are dropped and counted.

mod quota;

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

pub use self::quota::Quota;
use crate::close::CloseReason;

/// Everything that is known of a connection once it is over.
#[derive(Debug, Serialize)]
pub struct CloseRecord<'a> {
    /// When it was closed, milliseconds since 1970.
    #[serde(serialize_with = "unix_millis", rename = "closed_at_ms")]
    pub closed_at: SystemTime,
    /// What the daemon was to it.
    #[serde(serialize_with = "role")]
    pub role: Role,
    /// Rule that selected it; absent when it was not intercepted.
    pub rule: Option<&'a str>,
    /// Process id of the app, in the initial pid namespace. This and what follows is absent for connections that arrived.
    pub pid: Option<u32>,
    /// Real user id of the app.
    pub uid: Option<u32>,
    /// Real group id of the app.
    pub gid: Option<u32>,
    /// `comm` of the thread that connected.
    pub comm: Option<&'a str>,
    /// Its executable; absent when the process was gone already.
    pub exe: Option<&'a Path>,
    /// Its cgroup, below the root of the hierarchy; absent when the process was gone already.
    pub cgroup: Option<&'a Path>,
    /// Address of the app's socket, or of the client's as far as it is known.
    pub client: SocketAddr,
    /// The trusted sender that said so in a PROXY header.
    pub sender: Option<SocketAddr>,
    /// Where the app or the client wanted to connect.
    pub orig_dst: Option<SocketAddr>,
    /// The name that the client asked for in TLS or HTTP; absent where no rule asks for names.
    pub name: Option<&'a str>,
    /// The protocols that it offered in TLS, with commas between them.
    pub alpn: Option<&'a str>,
    /// Upstream of the rule.
    pub upstream: Option<&'a str>,
    /// What was connected to: the destination itself, or the first proxy.
    pub peer: Option<SocketAddr>,
    /// The endpoint of a group, as the configuration writes it; where none could be reached, the last that was tried.
    pub endpoint: Option<&'a str>,
    /// How many were tried.
    pub attempts: u32,
    /// What the endpoint was told that the connection is called (`send_proxy = "v2"`).
    pub unique_id: Option<&'a str>,
    /// How bytes were moved last.
    pub path: Option<&'static str>,
    /// Why it was not on a better path; absent when it was on the best that is known.
    pub path_reason: Option<&'static str>,
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
    /// From `connect()` until the relay accepted, microseconds; 0 for connections that arrived.
    #[serde(serialize_with = "micros", rename = "intercept_us")]
    pub intercept: Duration,
    /// TCP connect to the destination or the first proxy, microseconds.
    #[serde(serialize_with = "micros", rename = "connect_us")]
    pub connect: Duration,
    /// Handshakes with proxies, microseconds.
    #[serde(serialize_with = "micros", rename = "handshake_us")]
    pub handshake: Duration,
    /// From `connect()`, or since it was accepted where it arrived, until the end, microseconds.
    #[serde(serialize_with = "micros", rename = "total_us")]
    pub total: Duration,
    /// Why it ended.
    #[serde(serialize_with = "label")]
    pub reason: CloseReason,
    /// The error behind the reason.
    pub error: Option<&'a str>,
}

/// What the daemon was to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A process of this host opened it.
    Forward,
    /// It arrived at this host.
    Reverse,
    /// It passed through this host.
    Gateway,
}

impl Role {
    /// The stable name in records.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reverse => "reverse",
            Self::Gateway => "gateway",
        }
    }
}

/// Bytes, up and down, by the path they went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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

fn unix_millis<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn micros<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is serde's"
)]
fn role<S: serde::Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(role.label())
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is serde's"
)]
fn label<S: serde::Serializer>(reason: &CloseReason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.label())
}

/// How a record is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// One line for people.
    Text,
}

/// Where close records go. Clones write to the same place.
#[derive(Clone, Debug)]
pub struct AccessLog {
    writer: NonBlocking,
    format: Format,
    dropped: ErrorCounter,
    queued: Arc<AtomicU64>,
    quota: Arc<Quota>,
}

/// Keeps the writing thread alive; dropping it writes out what is queued.
#[must_use]
pub struct AccessLogGuard(#[expect(dead_code, reason = "held for its Drop")] WorkerGuard);

/// Lines that may wait for the writing thread.
const QUEUED_LINES: usize = 16_384;

impl AccessLog {
    /// Starts the writing thread.
    pub fn new(target: impl io::Write + Send + 'static, format: Format) -> (Self, AccessLogGuard) {
        let (writer, guard) = NonBlockingBuilder::default()
            .buffered_lines_limit(QUEUED_LINES)
            .lossy(true)
            .thread_name("access-log")
            .finish(target);
        let dropped = writer.error_counter();
        let log = Self {
            writer,
            format,
            dropped,
            queued: Arc::default(),
            quota: Arc::default(),
        };
        (log, AccessLogGuard(guard))
    }

    /// Leaves out what is not within a quota.
    #[must_use]
    pub fn within(self, quota: Quota) -> Self {
        let quota = Arc::new(quota);
        Self { quota, ..self }
    }

    /// Whether a connection that ended for this reason is to be recorded, which is asked once.
    #[must_use]
    pub fn wants(&self, reason: CloseReason) -> bool {
        self.quota.admits(reason)
    }

    /// Queues a record.
    pub fn write(&self, record: &CloseRecord<'_>) {
        let mut line = match self.format {
            Format::Json => serde_json::to_string(record).unwrap_or_default(),
            Format::Text => record.to_string(),
        };
        line.push('\n');
        // The queue's writer cannot fail; what it drops it counts.
        let _ = io::Write::write_all(&mut self.writer.clone(), line.as_bytes());
        self.queued.fetch_add(1, Relaxed);
    }

    /// Lines that were written, or are about to be.
    #[must_use]
    pub fn written(&self) -> u64 {
        let dropped = self.dropped() as u64;
        self.queued.load(Relaxed).saturating_sub(dropped)
    }

    /// Which records are left out, and how many were.
    #[must_use]
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Lines that were dropped because the target could not keep up.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.dropped.dropped_lines()
    }
}

impl std::fmt::Display for CloseRecord<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.pid, self.uid, self.comm) {
            (Some(pid), Some(uid), Some(comm)) => {
                let exe = self.exe.map_or_else(|| comm.into(), Path::to_string_lossy);
                write!(f, "{exe}[{pid}] uid {uid}")?;
            }
            _ => write!(f, "{}", self.client)?,
        }
        if let Some(sender) = self.sender {
            write!(f, " by {sender}")?;
        }
        if let Some(orig_dst) = self.orig_dst {
            write!(f, " -> {orig_dst}")?;
        }
        if let Some(name) = self.name {
            write!(f, " name {name}")?;
        }
        if let (Some(rule), Some(upstream)) = (self.rule, self.upstream) {
            write!(f, " rule {rule} via {upstream}")?;
        }
        if let Some(endpoint) = self.endpoint {
            write!(f, " at {endpoint}")?;
        }
        if self.attempts > 1 {
            write!(f, " in {} attempts", self.attempts)?;
        }
        if let Some(path) = self.path {
            write!(f, " {path}")?;
        }
        if let Some(reason) = self.path_reason {
            write!(f, " ({reason})")?;
        }
        write!(
            f,
            " up {} down {} in {:.3?}: {}",
            self.up, self.down, self.total, self.reason
        )?;
        self.error.map_or(Ok(()), |error| write!(f, " ({error})"))
    }
}

/// The text of a `comm`, which the kernel pads with zeros and which need not be UTF-8.
#[must_use]
pub fn comm_text(comm: &[u8; 16]) -> Arc<str> {
    let text = comm.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into()
}
