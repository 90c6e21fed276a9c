//! What a running daemon tells of itself: rules, connections, paths, counters. Made by `service`, shown by `culvert status`.

pub mod connections;
pub mod explanation;
pub mod interfaces;
pub mod readiness;
pub mod rules;
mod spaces;
pub mod upstreams;

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::interfaces::InterfaceStatus;
pub use spaces::SpaceStatus;

use crate::paint::{Paint, Tone, wrapped};

/// How a daemon is. The names of the fields are those of the JSON form and stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of the daemon, which may be older than the one that asks.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Since it intercepts.
    pub uptime_seconds: u64,
    /// The cgroup whose processes it serves.
    pub cgroup: String,
    /// Rules in force.
    pub rules: usize,
    /// Relayed connections.
    pub connections: Connections,
    /// The ways in which bytes are moved.
    pub paths: Vec<PathStatus>,
    /// Upstreams with several endpoints.
    #[serde(default)]
    pub groups: Vec<GroupStatus>,
    /// What gets no new connections, by `culvert drain`.
    #[serde(default)]
    pub drains: Vec<DrainStatus>,
    /// Network namespaces of containers that rules name.
    #[serde(default)]
    pub containers: Vec<SpaceStatus>,
    /// What `path = "auto"` takes, by the kind of connection; empty while nothing was measured.
    pub auto: Vec<AutoStatus>,
    /// Times that a direction of a connection, now closed, was given to a better path than copying.
    pub promotions: u64,
    /// Times that one came back from there.
    pub demotions: u64,
    /// Times that the kernel would have delivered bytes twice.
    pub repairs: u64,
    /// Close records, where they are written.
    #[serde(default)]
    pub access_log: Option<AccessLogStatus>,
    /// The interfaces whose packets programs see.
    #[serde(default)]
    pub interfaces: Vec<InterfaceStatus>,
    /// What the programs in the kernel counted.
    pub hooks: BTreeMap<String, u64>,
}

/// Relayed connections since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Open now.
    pub live: u64,
    /// Accepted.
    pub accepted: u64,
    /// Bytes from apps to servers, also of open ones.
    #[serde(default)]
    pub up: u64,
    /// And from servers to apps.
    #[serde(default)]
    pub down: u64,
    /// Times that a worker could not accept for lack of files or memory.
    pub accept_failures: u64,
    /// Times that a worker was at its connection limit.
    pub at_limit: u64,
    /// Of an upstream's own proxy, which a rule selected and which went direct.
    pub own_proxy: u64,
    /// Closed, by reason; those that occurred.
    pub closed: BTreeMap<String, u64>,
    /// Looked at for a name, by what came of it; what occurred.
    #[serde(default)]
    pub names: BTreeMap<String, u64>,
}

/// What became of close records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessLogStatus {
    /// Written, or about to be.
    pub written: u64,
    /// Left out by `sample`.
    pub sampled_out: u64,
    /// Left out by `rate`.
    pub over_rate: u64,
    /// Lost, since the file could not keep up.
    pub dropped: u64,
}

impl AccessLogStatus {
    /// Each number, and what it is called.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 4] {
        [
            ("written", self.written),
            ("sampled_out", self.sampled_out),
            ("over_rate", self.over_rate),
            ("dropped", self.dropped),
        ]
    }
}

/// An upstream with several endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name in the configuration.
    pub name: String,
    /// How an endpoint is chosen.
    pub balance: String,
    /// Connections that are open.
    pub live: u32,
    /// Connections that wait.
    pub waiting: u32,
    /// Connections that waited.
    pub queued: u64,
    /// Connections that were reset because as many waited as may.
    pub queue_full: u64,
    /// Connections that were reset because they waited for too long.
    pub queue_timeouts: u64,
    /// Connections that were reset because their source had as many as it may.
    pub source_limit: u64,
    /// Attempts beyond a connection's first.
    pub retries: u64,
    /// Times that a name could not be resolved.
    pub unresolved: u64,
    /// Its endpoints.
    pub endpoints: Vec<EndpointStatus>,
}

/// An endpoint of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Where it is.
    pub address: String,
    /// The entry in the configuration that it comes from.
    pub source: String,
    /// `up`, `down`, `ejected`, or `leaving`: no part of the group any more, with connections that may finish.
    pub state: String,
    /// Its part of the connections; at 0 it takes none while another one is up.
    pub weight: u32,
    /// Whether it is drained, by `culvert drain`.
    #[serde(default)]
    pub drained: bool,
    /// Connections that are open.
    pub live: u32,
    /// Connections that were made.
    pub connections: u64,
    /// Connections that the kernel sent there without the relay.
    #[serde(default)]
    pub rewritten: u64,
    /// Connections that could not be made.
    pub failures: u64,
    /// Checks that failed.
    pub failed_checks: u64,
    /// Changes of its state.
    pub changes: u64,
    /// How long it takes to accept a connection, as `p2c` counts it; 0 while that is not known.
    pub latency_us: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

impl EndpointStatus {
    /// Its state, and whether it is drained.
    pub(crate) fn condition(&self) -> String {
        if self.drained {
            format!("{}, drained", self.state)
        } else {
            self.state.clone()
        }
    }

    /// What is wrong with it now.
    pub(crate) fn trouble(&self) -> Option<&str> {
        let error = self.last_error.as_deref();
        error.filter(|_| self.state != "up")
    }
}

/// What gets no new connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// As the daemon calls it: `GROUP/ENDPOINT`, the name of a rule, or `RULE/LISTEN`.
    pub target: String,
    /// Connections that are left.
    pub live: u64,
    /// When those will be reset; 0 from then on.
    pub left_ms: u64,
    /// Whether none is left, and none can come that had begun before.
    pub done: bool,
}

impl DrainStatus {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { target, live, .. } = self;
        match self.left_ms.div_ceil(1000) {
            _ if self.done => format!("{target}: drained"),
            // Some may be on their way.
            0 => format!("{target}: draining, {live} connections left"),
            seconds => {
                let left = humantime::format_duration(Duration::from_secs(seconds));
                format!("{target}: draining, {live} connections left, reset in {left}")
            }
        }
    }
}

/// One way in which bytes are moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// As in `path = "…"`.
    pub path: String,
    /// Whether rules may use it here; `None`: no rule has asked, so it was not tested.
    pub usable: Option<bool>,
    /// The self-test that fails here, or what else is in the way.
    pub failed: Option<String>,
    /// Bytes of closed connections that went this way, up and down.
    pub bytes: u64,
    /// Those, and the ones of open connections.
    #[serde(default)]
    pub moved: u64,
}

/// What `path = "auto"` takes for one kind of connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AutoStatus {
    /// What connections are used for.
    pub kind: String,
    /// The path.
    pub path: String,
    /// How much work each path does in the time in which copying does one of it.
    pub relative: BTreeMap<String, f64>,
}

impl Status {
    /// For people.
    #[must_use]
    pub(crate) fn text(&self, paint: Paint) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        _ = self.write(&mut text, paint);
        text
    }

    fn write(&self, text: &mut String, paint: Paint) -> std::fmt::Result {
        let uptime = humantime::format_duration(Duration::from_secs(self.uptime_seconds));
        writeln!(
            text,
            "culvert {}, process {}, for {uptime}",
            self.version, self.pid
        )?;
        writeln!(text, "  {} rules, for {}", self.rules, self.cgroup)?;
        self.write_connections(text, paint)?;
        self.write_groups(text, paint)?;
        self.write_drains(text, paint)?;
        spaces::write(&self.containers, text, paint)?;
        self.write_paths(text, paint)?;
        self.write_interfaces(text, paint)?;
        writeln!(text, "\n{}", paint.text(Tone::Strong, "Hooks"))?;
        writeln!(text, "  {}", wrapped(2, &listed(&self.hooks)))
    }

    fn write_connections(&self, text: &mut String, paint: Paint) -> std::fmt::Result {
        let connections = &self.connections;
        writeln!(text, "\n{}", paint.text(Tone::Strong, "Connections"))?;
        writeln!(
            text,
            "  {} open, {} accepted; {} bytes up, {} down",
            connections.live, connections.accepted, connections.up, connections.down
        )?;
        let closed = listed(&connections.closed);
        writeln!(text, "  closed: {}", wrapped(10, &closed))?;
        if !connections.names.is_empty() {
            let names = listed(&connections.names);
            writeln!(text, "  names: {}", wrapped(9, &names))?;
        }
        if let Some(log) = &self.access_log {
            let records = listed(&counted(log.counts().into_iter()));
            writeln!(text, "  records: {}", wrapped(11, &records))?;
        }
        for (count, what) in [
            (
                connections.accept_failures,
                "times there were no files or memory to accept one",
            ),
            (
                connections.at_limit,
                "times a worker was at its limit of connections",
            ),
            (
                connections.own_proxy,
                "of an upstream's own proxy went direct",
            ),
        ] {
            if count > 0 {
                let count = paint.text(Tone::Doubtful, count);
                writeln!(text, "  {count} {what}")?;
            }
        }
        Ok(())
    }

    fn write_groups(&self, text: &mut String, paint: Paint) -> std::fmt::Result {
        for group in &self.groups {
            let title = format!("Group {}", group.name);
            writeln!(text, "\n{}", paint.text(Tone::Strong, title))?;
            writeln!(
                text,
                "  {}; {} open, {} waiting, {} retries",
                group.balance, group.live, group.waiting, group.retries
            )?;
            for (count, what) in [
                (group.queue_full, "reset: the queue was full"),
                (group.queue_timeouts, "reset: waited for too long"),
                (group.source_limit, "reset: too many of one source"),
                (group.unresolved, "times a name could not be resolved"),
            ] {
                if count > 0 {
                    writeln!(text, "  {} {what}", paint.text(Tone::Doubtful, count))?;
                }
            }
            for one in &group.endpoints {
                let tone = match one.state.as_str() {
                    "up" => Tone::Good,
                    "leaving" => Tone::Faint,
                    _ => Tone::Doubtful,
                };
                let state = paint.text(tone, format!("{:8}", one.state));
                let (live, made, failed) = (one.live, one.connections, one.failures);
                write!(
                    text,
                    "  {state}  {} weight {}: {live} open, {made} made, {failed} failed",
                    one.address, one.weight
                )?;
                if one.rewritten > 0 {
                    write!(text, ", {} rewritten", one.rewritten)?;
                }
                if one.drained {
                    write!(text, ", {}", paint.text(Tone::Doubtful, "drained"))?;
                }
                match one.trouble() {
                    Some(error) => writeln!(text, "; {error}")?,
                    None => writeln!(text)?,
                }
            }
        }
        Ok(())
    }

    fn write_drains(&self, text: &mut String, paint: Paint) -> std::fmt::Result {
        if !self.drains.is_empty() {
            writeln!(text, "\n{}", paint.text(Tone::Strong, "Drained"))?;
        }
        self.drains
            .iter()
            .try_for_each(|drain| writeln!(text, "  {}", drain.text()))
    }

    fn write_paths(&self, text: &mut String, paint: Paint) -> std::fmt::Result {
        writeln!(text, "\n{}", paint.text(Tone::Strong, "Paths"))?;
        for path in &self.paths {
            let (tone, state) = match path.usable {
                Some(true) => (Tone::Good, "on"),
                Some(false) => (Tone::Doubtful, "off"),
                None => (Tone::Faint, "untested"),
            };
            let state = paint.text(tone, format!("{state:8}"));
            write!(text, "  {:8}  {state}  {} bytes", path.path, path.bytes)?;
            match &path.failed {
                Some(failed) => writeln!(text, "; {failed}")?,
                None => writeln!(text)?,
            }
        }
        for auto in &self.auto {
            let relative: Vec<_> = auto
                .relative
                .iter()
                .map(|(path, gain)| format!("{path} {gain:.2}"))
                .collect();
            writeln!(
                text,
                "  auto for {}: {} ({})",
                auto.kind,
                auto.path,
                relative.join(", ")
            )?;
        }
        writeln!(
            text,
            "  {} promotions, {} demotions, {} repairs",
            self.promotions, self.demotions, self.repairs
        )
    }
}

/// Counters by name.
pub(crate) fn counted<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    counts
        .map(|(what, count)| (what.to_owned(), count))
        .collect()
}

/// `a 1, b 2`, without what is 0.
fn listed(counts: &BTreeMap<String, u64>) -> String {
    let counts: Vec<_> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(what, count)| format!("{what} {count}"))
        .collect();
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            version: "1.2.3".into(),
            pid: 7,
            uptime_seconds: 90,
            cgroup: "/".into(),
            rules: 2,
            connections: Connections {
                live: 1,
                accepted: 3,
                up: 7,
                at_limit: 4,
                closed: [("done".into(), 2), ("shutdown".into(), 0)].into(),
                names: [("named".into(), 5)].into(),
                ..Connections::default()
            },
            paths: vec![
                PathStatus {
                    path: "copy".into(),
                    usable: Some(true),
                    bytes: 10,
                    ..PathStatus::default()
                },
                PathStatus {
                    path: "sockmap".into(),
                    usable: Some(false),
                    failed: Some("the test of overlap fails on this kernel".into()),
                    ..PathStatus::default()
                },
            ],
            auto: vec![AutoStatus {
                kind: "bulk".into(),
                path: "splice".into(),
                relative: [("splice".into(), 1.25)].into(),
            }],
            hooks: [("relayed".into(), 3), ("direct".into(), 0)].into(),
            ..Status::default()
        }
    }

    #[test]
    fn people_read_what_matters() {
        let text = status().text(Paint::plain());
        for line in [
            "culvert 1.2.3, process 7, for 1m 30s",
            "  1 open, 3 accepted; 7 bytes up, 0 down",
            "  closed: done 2",
            "  names: named 5",
            "  4 times a worker was at its limit of connections",
            "  copy      on        10 bytes",
            "  sockmap   off       0 bytes; the test of overlap fails on this kernel",
            "  auto for bulk: splice (splice 1.25)",
            "  relayed 3",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line:?} in\n{text}"
            );
        }
    }

    #[test]
    fn json_comes_back_as_it_went() {
        let json = serde_json::to_string(&status()).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status());
    }
}
