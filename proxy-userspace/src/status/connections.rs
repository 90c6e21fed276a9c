//! What a daemon tells of single connections, and how that is shown.

use serde::{Deserialize, Serialize};

use crate::paint::{Paint, Table, Tone, delay, size, span};

/// Connections that are open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// How many there are that were asked for; more than are listed where the limit says so.
    pub matching: u64,
    /// Those, in the order that was asked for.
    pub connections: Vec<ConnectionStatus>,
}

/// A connection that is open. The names of the fields stay; those of close records mean the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// What it is called, by which it can be ended.
    pub id: u64,
    /// Since `connect()`, or since it was accepted where it arrived.
    pub age_ms: u64,
    /// `forward`, `reverse` or `gateway`.
    pub role: String,
    /// Name of the rule that selected it.
    pub rule: String,
    /// Address of the app's socket, or of the client's as far as it is known.
    pub client: String,
    /// Process id of the app; this and what follows is absent for connections that arrived.
    pub pid: Option<u32>,
    /// Its real user id.
    pub uid: Option<u32>,
    /// `comm` of the thread that connected.
    pub comm: Option<String>,
    /// Where it wanted to connect.
    pub to: String,
    /// The name that the client asked for, where the rule asks for names.
    pub name: Option<String>,
    /// Where it was brought to; absent while it is not there yet.
    pub upstream: Option<String>,
    /// What was connected to.
    pub peer: Option<String>,
    /// The endpoint of a group.
    pub endpoint: Option<String>,
    /// How its bytes are moved.
    pub path: Option<String>,
    /// Why it is not on a better path.
    pub path_reason: Option<String>,
    /// Bytes from the app to the server.
    pub up: u64,
    /// Bytes from the server to the app.
    pub down: u64,
    /// Bytes a second, up, since somebody looked last.
    pub up_rate: u64,
    /// And down.
    pub down_rate: u64,
    /// How long ago that was; 0 while that is too short to tell.
    pub rate_ms: u64,
    /// Round trip to the app or client, microseconds, as the kernel measures it; absent while it is not brought anywhere.
    pub downstream_rtt_us: Option<u64>,
    /// Round trip to what was connected to; absent for a Unix socket.
    pub upstream_rtt_us: Option<u64>,
    /// Bytes on their way to the server that wait here: not read yet, or not taken by its side yet.
    pub up_backlog: Option<u64>,
    /// And bytes on their way to the app.
    pub down_backlog: Option<u64>,
    /// Times that a direction was given to a better path than copying.
    pub promotions: u32,
    /// Times that one came back from there.
    pub demotions: u32,
}

/// Which connection is to be ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// See [`ConnectionStatus::id`].
    pub id: u64,
}

/// In which order connections are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// As they came.
    #[default]
    Id,
    /// The fastest first.
    Rate,
    /// Those that have moved most first.
    Bytes,
    /// The oldest first.
    Age,
    /// Those with the longest way first.
    Rtt,
}

impl Sort {
    /// All with their names.
    pub const ALL: [(&'static str, Self); 5] = [
        ("rate", Self::Rate),
        ("bytes", Self::Bytes),
        ("age", Self::Age),
        ("rtt", Self::Rtt),
        ("id", Self::Id),
    ];
    /// Their names, for whoever wrote another one.
    pub const NAMES: &'static str = "rate, bytes, age, rtt or id";

    /// Its name.
    #[must_use]
    pub fn label(self) -> &'static str {
        let mut named = Self::ALL.into_iter();
        named
            .find(|(_, sort)| *sort == self)
            .map_or("id", |(name, _)| name)
    }

    /// The one that is named so.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut named = Self::ALL.into_iter();
        named
            .find(|(known, _)| *known == name)
            .map(|(_, sort)| sort)
    }

    /// The one behind it, and behind the last the first.
    #[must_use]
    pub fn next(self) -> Self {
        let mut following = Self::ALL.into_iter().cycle();
        following.find(|(_, sort)| *sort == self);
        following.next().map_or(self, |(_, sort)| sort)
    }
}

impl ConnectionStatus {
    /// Who opened it.
    pub(crate) fn opener(&self) -> String {
        match (&self.comm, self.pid) {
            (Some(comm), Some(pid)) => format!("{comm}[{pid}]"),
            _ => self.client.clone(),
        }
    }

    /// Where it was brought to.
    pub(crate) fn way(&self) -> Option<String> {
        let upstream = self.upstream.as_ref()?;
        Some(match &self.endpoint {
            Some(endpoint) => format!("{upstream} {endpoint}"),
            None => upstream.clone(),
        })
    }

    /// Round trip from the app to the server and back, microseconds, as far as it is known.
    #[must_use]
    pub fn rtt_us(&self) -> Option<u64> {
        let known = [self.downstream_rtt_us, self.upstream_rtt_us];
        known.into_iter().flatten().reduce(u64::saturating_add)
    }

    /// Bytes that wait here, both ways.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        let known = [self.up_backlog, self.down_backlog];
        known.into_iter().flatten().fold(0, u64::saturating_add)
    }
}

impl List {
    /// For people.
    #[must_use]
    pub(crate) fn text(&self, paint: Paint) -> String {
        let mut table = Table::new(&[
            "id", "age", "client", "to", "rule", "via", "path", "up", "down", "up/s", "down/s",
            "rtt", "backlog",
        ])
        .right(&[0, 1, 7, 8, 9, 10, 11, 12]);
        for one in &self.connections {
            let to = one
                .name
                .as_ref()
                .map_or_else(|| one.to.clone(), |name| format!("{name} ({})", one.to));
            let path = match (&one.path, &one.path_reason) {
                (Some(path), Some(reason)) => format!("{path} ({reason})"),
                (Some(path), None) => path.clone(),
                (None, _) => String::new(),
            };
            table.row([
                one.id.to_string(),
                span(one.age_ms),
                one.opener(),
                to,
                one.rule.clone(),
                one.way().unwrap_or_else(|| "…".to_owned()),
                path,
                size(one.up),
                size(one.down),
                size(one.up_rate),
                size(one.down_rate),
                one.rtt_us().map(delay).unwrap_or_default(),
                size(one.backlog()),
            ]);
        }
        let mut text = table.text(paint);
        let shown = self.connections.len() as u64;
        let count = if shown < self.matching {
            format!("{shown} of {} connections", self.matching)
        } else {
            format!("{} connections", self.matching)
        };
        text.push_str(&paint.text(Tone::Faint, count).to_string());
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_a_line() {
        let list = List {
            matching: 7,
            connections: vec![ConnectionStatus {
                id: 12,
                age_ms: 61_000,
                rule: "all".into(),
                comm: Some("curl".into()),
                pid: Some(99),
                to: "192.0.2.1:443".into(),
                name: Some("example.com".into()),
                upstream: Some("web".into()),
                endpoint: Some("10.0.0.1:80".into()),
                path: Some("copy".into()),
                path_reason: Some("short".into()),
                up: 1536,
                down_rate: 10,
                downstream_rtt_us: Some(40),
                upstream_rtt_us: Some(1210),
                up_backlog: Some(1),
                down_backlog: Some(2048),
                ..ConnectionStatus::default()
            }],
        };
        let text = list.text(Paint::plain());
        let mut lines = text.lines();
        let (heads, line) = (lines.next().unwrap(), lines.next().unwrap());
        assert!(heads.contains("down/s"), "{text}");
        for part in [
            "12",
            "1m 1s",
            "curl[99]",
            "example.com (192.0.2.1:443)",
            "web 10.0.0.1:80",
            "copy (short)",
            "1.5K",
            " 10",
            "1.2ms",
            "2.0K",
        ] {
            assert!(line.contains(part), "{part:?} in\n{text}");
        }
        assert_eq!(lines.next(), Some("1 of 7 connections"));
    }
}
