//! The `[daemon]` section: limits and outputs of the whole daemon.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use super::{
    duration,
    environment::{Environment, System},
    raw::{Table, Value},
    report::{Finding, Findings},
    selector, size,
};
use crate::{
    admin,
    relay::Worth,
    rule::{Calibrate, IngressHook},
};

/// What concerns the daemon as a whole. Without a `[daemon]` section everything has its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// The cgroup below which connections are intercepted, below the root of the hierarchy; empty for the root.
    pub cgroup: String,
    /// Threads that relay, each with its own listeners.
    pub workers: NonZeroUsize,
    /// How long connections may go on after the daemon was told to stop.
    pub drain_timeout: Duration,
    /// Limit for a TCP connect, where the upstream has none of its own.
    pub connect_timeout: Duration,
    /// Limit for all proxy handshakes of a connection together, where the upstream has none of its own.
    pub handshake_timeout: Duration,
    /// A connection without a byte either way for so long is closed.
    pub idle_timeout: Option<Duration>,
    /// Relayed connections at a time. The limit of open files (`RLIMIT_NOFILE`) may allow fewer.
    pub max_connections: u32,
    /// Intercepted connections that the relay has not accepted yet, at a time.
    pub max_pending: u32,
    /// The kernel holds the relay for hung when it has not heard from it for so long.
    pub heartbeat_timeout: Duration,
    /// When the kernel is to move the bytes of a connection whose rule asks for it.
    pub promote: Worth,
    /// When the paths are measured for `path = "auto"`.
    pub calibrate: Calibrate,
    /// How programs are attached to the ingress of interfaces.
    pub ingress: IngressHook,
    /// Where close records go.
    pub access_log: Option<AccessLog>,
    /// The socket at which it answers questions.
    pub admin: Option<PathBuf>,
    /// Where Prometheus gets its numbers.
    pub metrics: Option<SocketAddr>,
    /// Where browsers get the page that shows what it does.
    pub dashboard: Option<SocketAddr>,
    /// Where probes are told whether connections are captured.
    pub health: Option<SocketAddr>,
}

/// Where close records go, and how they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// The file they are appended to.
    pub target: LogTarget,
    /// How a record is written.
    pub format: LogFormat,
    /// One of so many connections that ended as they should has its record written, and all others.
    pub sample: NonZeroU32,
    /// Most records in a second.
    pub rate: Option<NonZeroU32>,
}

impl AccessLog {
    /// With all records.
    #[must_use]
    pub fn whole(target: LogTarget, format: LogFormat) -> Self {
        Self {
            target,
            format,
            sample: NonZeroU32::MIN,
            rate: None,
        }
    }
}

/// Where a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, by absolute path.
    File(PathBuf),
}

/// How a close record is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// One line for people.
    Text,
}

/// The connect and the handshake timeout where nothing else is said.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Threads: far beyond the largest machine, but listeners and runtimes for each stay affordable.
const WORKERS: u32 = 1024;
/// Connections: each takes two files and the kernel allows a process 2^20 by default.
const CONNECTIONS: u32 = 1 << 20;

/// Bytes before a promotion: beyond any connection.
const MOST_BYTES: u64 = 1 << 40;

/// What `calibrate` may be.
pub(super) const CALIBRATE: [(&str, Calibrate); 2] = [
    ("start", Calibrate::AtStart),
    ("demand", Calibrate::OnDemand),
];

/// What `ingress` may be.
pub(super) const INGRESS: [(&str, IngressHook); 2] =
    [("auto", IngressHook::Auto), ("clsact", IngressHook::Clsact)];

/// Room for twice what the accept queues of a worker hold: an IPv4 and an IPv6 one of up to 4096 connections each.
fn pending(workers: NonZeroUsize) -> u32 {
    const PER_WORKER: u32 = 2 * 2 * 4096;
    u32::try_from(workers.get())
        .unwrap_or(u32::MAX)
        .saturating_mul(PER_WORKER)
        .min(CONNECTIONS)
}

impl Default for Daemon {
    /// What holds without a `[daemon]` section, on this machine.
    fn default() -> Self {
        Self::defaults(&System)
    }
}

impl Daemon {
    pub(super) fn defaults(environment: &dyn Environment) -> Self {
        Self {
            cgroup: String::new(),
            workers: environment.cores(),
            drain_timeout: Duration::from_secs(30),
            connect_timeout: TIMEOUT,
            handshake_timeout: TIMEOUT,
            idle_timeout: None,
            max_connections: 65536,
            max_pending: pending(environment.cores()),
            heartbeat_timeout: Duration::from_secs(3),
            promote: Worth::default(),
            calibrate: Calibrate::default(),
            ingress: IngressHook::default(),
            access_log: None,
            admin: Some(admin::DEFAULT_PLACE.into()),
            metrics: None,
            dashboard: None,
            health: None,
        }
    }

    /// Reads the section. What is wrong in it keeps its default, so that the other sections can be checked.
    pub(super) fn read(
        value: Value<'_>,
        environment: &dyn Environment,
        findings: &mut Findings,
    ) -> Self {
        let mut daemon = Self::defaults(environment);
        let Some(mut table) = value.table("`[daemon]`", "the section `[daemon]`", findings) else {
            return daemon;
        };
        if let Some(value) = table.get("cgroup")
            && let Some(text) = value.text("user.slice", findings)
        {
            let path = selector::cgroup_path(text);
            set(&mut daemon.cgroup, findings.keep(path, &value.span()));
        }
        if let Some(value) = table.get("workers") {
            let workers = value.number(1..=WORKERS, findings);
            let workers = workers.and_then(|count| NonZeroUsize::new(usize::try_from(count).ok()?));
            set(&mut daemon.workers, workers);
        }
        if let Some(value) = table.get("max_connections") {
            let most = value.number(1..=CONNECTIONS, findings);
            set(&mut daemon.max_connections, most);
        }
        if let Some(value) = table.get("max_pending") {
            let most = value.number(1..=CONNECTIONS, findings);
            set(&mut daemon.max_pending, most);
        }
        if let Some(value) = table.get("promote") {
            daemon.promote = promote(value, findings);
        }
        if let Some(value) = table.get("access_log") {
            daemon.access_log = access_log(value, findings);
        }
        if let Some(value) = table.get("calibrate") {
            let when = value.choice(&CALIBRATE, findings);
            set(&mut daemon.calibrate, when);
        }
        if let Some(value) = table.get("ingress") {
            let hook = value.choice(&INGRESS, findings);
            set(&mut daemon.ingress, hook);
        }
        if let Some(value) = table.get("admin") {
            daemon.admin = admin_socket(value, findings);
        }
        if let Some(value) = table.get("metrics") {
            daemon.metrics = served_at(value, "127.0.0.1:9464", findings);
        }
        if let Some(value) = table.get("dashboard") {
            daemon.dashboard = served_at(value, "127.0.0.1:9465", findings);
        }
        if let Some(value) = table.get("health") {
            daemon.health = served_at(value, "127.0.0.1:9466", findings);
        }
        daemon.read_timeouts(&mut table, findings);
        table.finish(findings);
        daemon
    }

    fn read_timeouts(&mut self, table: &mut Table<'_>, findings: &mut Findings) {
        // Below some beats of the heart the relay of a busy machine would seem hung.
        let heartbeat = Duration::from_millis(500)..=Duration::from_mins(10);
        let timeouts = [
            (
                "drain_timeout",
                Duration::ZERO..=duration::YEAR,
                &mut self.drain_timeout,
            ),
            ("connect_timeout", duration::ANY, &mut self.connect_timeout),
            (
                "handshake_timeout",
                duration::ANY,
                &mut self.handshake_timeout,
            ),
            ("heartbeat_timeout", heartbeat, &mut self.heartbeat_timeout),
        ];
        for (key, bounds, timeout) in timeouts {
            if let Some(value) = table.get(key) {
                set(timeout, duration::read(value, bounds, findings));
            }
        }
        if let Some(value) = table.get("idle_timeout") {
            self.idle_timeout = match value.as_str() {
                Some("off") => None,
                _ => duration::read(value, duration::ANY, findings),
            };
        }
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn promote(value: Value<'_>, findings: &mut Findings) -> Worth {
    let mut worth = Worth::default();
    let wanted = "a table such as `{ bytes = \"64KiB\", reads = 8 }`";
    let Some(mut table) = value.table("`promote`", wanted, findings) else {
        return worth;
    };
    if let Some(value) = table.get("bytes") {
        set(
            &mut worth.bytes,
            size::read(value, 0..=MOST_BYTES, findings),
        );
    }
    if let Some(value) = table.get("reads") {
        set(&mut worth.reads, value.number(0..=u32::MAX, findings));
    }
    table.finish(findings);
    worth
}

fn access_log(value: Value<'_>, findings: &mut Findings) -> Option<AccessLog> {
    const EXAMPLE: &str = r#"path = "-""#;
    let wanted = format!("a table such as `{{ {EXAMPLE} }}`");
    let mut table = value.table("`access_log`", &wanted, findings)?;
    let target = table
        .require("path", EXAMPLE, findings)
        .and_then(|path| log_target(path, findings));
    let format = match table.get("format") {
        None => Some(LogFormat::default()),
        Some(format) => format.choice(
            &[("json", LogFormat::Json), ("text", LogFormat::Text)],
            findings,
        ),
    };
    let mut number = |key| match table.get(key) {
        None => Some(None),
        Some(value) => {
            let number = value.number(1..=u32::MAX, findings)?;
            Some(NonZeroU32::new(number))
        }
    };
    let (sample, rate) = (number("sample"), number("rate"));
    table.finish(findings);
    Some(AccessLog {
        sample: sample?.unwrap_or(NonZeroU32::MIN),
        rate: rate?,
        ..AccessLog::whole(target?, format?)
    })
}

fn admin_socket(value: Value<'_>, findings: &mut Findings) -> Option<PathBuf> {
    let text = value.text(admin::DEFAULT_PLACE, findings)?;
    if text == "off" {
        return None;
    }
    let path = selector::absolute_path(text).map_err(|finding| finding.help("`off` for none"));
    findings.keep(path, &value.span())
}

/// A port alone is one of loopback: who else may ask is to be said.
fn served_at(
    value: Value<'_>,
    example: &'static str,
    findings: &mut Findings,
) -> Option<SocketAddr> {
    let text = value.text(example, findings)?;
    if text == "off" {
        return None;
    }
    let port = text.parse::<u16>().ok();
    let loopback = port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let address = loopback.or_else(|| text.parse().ok());
    let address = address.filter(|address| address.port() != 0);
    let address = address.ok_or_else(|| {
        Finding::error(format!("{text:?} is no address and port")).help(format!(
            "such as {example:?}, or {:?} for loopback; `off` for none",
            example.rsplit(':').next().unwrap_or_default()
        ))
    });
    findings.keep(address, &value.span())
}

fn log_target(value: Value<'_>, findings: &mut Findings) -> Option<LogTarget> {
    let text = value.text("/var/log/culvert/access.json", findings)?;
    if text == "-" {
        return Some(LogTarget::Stdout);
    }
    let path =
        selector::absolute_path(text).map_err(|finding| finding.help("`-` is standard output"));
    findings.keep(path, &value.span()).map(LogTarget::File)
}
