//! One connection, as it is told: the names of the fields stay.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};
use proxy_common::{Sighting, outcome};
use serde::Serialize;

use super::outlook::Outlook;
use crate::{
    paint::{Paint, Tone, delay},
    record::comm_text,
};

/// A connection whose outcome is known.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    /// `connection`.
    pub(super) event: &'static str,
    /// When `connect()` was called, milliseconds since 1970.
    pub(super) at_ms: u64,
    /// Who called it, in the initial pid namespace.
    pub(super) pid: u32,
    /// `comm` of the thread.
    pub(super) comm: String,
    /// Its real user id.
    pub(super) uid: u32,
    /// Its real group id.
    pub(super) gid: u32,
    /// Its cgroup, as a path in the hierarchy; absent where that is gone.
    pub(super) cgroup: Option<&'a Path>,
    /// `tcp` or `udp`.
    pub(super) protocol: &'static str,
    /// Its own address; absent where no packet was sent.
    pub(super) source: Option<SocketAddr>,
    /// Where it wanted to connect.
    pub(super) destination: SocketAddr,
    /// Where another hook has sent the connection instead.
    pub(super) redirected_to: Option<SocketAddr>,
    /// See [`called`].
    pub(super) outcome: &'static str,
    /// The error of one that failed.
    pub(super) error: Option<String>,
    /// Why no packet was sent, as far as that can be guessed.
    pub(super) likely_error: Option<String>,
    /// From `connect()` until the outcome, microseconds; absent where no packet was sent.
    pub(super) latency_us: Option<u64>,
    /// What a configuration would do about it.
    #[serde(flatten)]
    pub(super) outlook: Option<&'a Outlook>,
}

impl<'a> Line<'a> {
    pub(super) fn new(
        sighting: &Sighting,
        cgroup: Option<&'a Path>,
        likely_error: Option<Errno>,
        outlook: Option<&'a Outlook>,
    ) -> Self {
        let destination = sighting.dest.with_port(sighting.dest_port);
        let peer = sighting.peer.with_port(sighting.peer_port);
        let source = sighting.source.with_port(sighting.source_port);
        let was_sent = sighting.source_port.get() != 0;
        let latency = Duration::from_nanos(sighting.ended_ns.saturating_sub(sighting.begun_ns));
        Self {
            event: "connection",
            at_ms: wall_clock_millis(sighting.begun_ns),
            pid: pid(sighting),
            comm: comm_text(&sighting.comm).to_string(),
            uid: sighting.uid,
            gid: sighting.gid,
            cgroup,
            protocol: protocol(sighting),
            source: was_sent.then_some(source),
            destination,
            redirected_to: (was_sent && peer != destination).then_some(peer),
            outcome: called(sighting),
            error: error(sighting).map(|error| format!("{error:?}")),
            likely_error: likely_error.map(|error| format!("{error:?}")),
            latency_us: was_sent.then_some(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)),
            outlook,
        }
    }

    /// For people. `shows_cgroup`: of all that are watched.
    pub(super) fn text(&self, paint: Paint, shows_cgroup: bool) -> String {
        let tone = match self.outcome {
            "established" => Tone::Good,
            "abandoned" | "addressed" => Tone::Doubtful,
            _ => Tone::Bad,
        };
        let time = UNIX_EPOCH + Duration::from_millis(self.at_ms);
        // Writing to a string cannot fail.
        let mut text = String::new();
        _ = write!(
            text,
            "{} {} {:>6} {}[{}] uid {} {} ",
            humantime::format_rfc3339_millis(time),
            paint.text(tone, format_args!("{:11}", self.outcome)),
            self.latency_us.map_or_else(|| "-".to_owned(), delay),
            harmless(&self.comm),
            self.pid,
            self.uid,
            self.protocol,
        );
        if let Some(source) = self.source {
            _ = write!(text, "{source} ");
        }
        _ = write!(text, "-> {}", self.destination);
        if let Some(peer) = self.redirected_to {
            _ = write!(text, " redirected to {peer}");
        }
        if let Some(error) = &self.error {
            _ = write!(text, " ({error})");
        }
        if let Some(error) = &self.likely_error {
            _ = write!(text, " (probably {error})");
        }
        if let Some(cgroup) = self.cgroup.filter(|_| shows_cgroup) {
            _ = write!(text, " cgroup {}", harmless(&cgroup.to_string_lossy()));
        }
        if let Some(outlook) = self.outlook {
            _ = write!(text, ": {outlook}");
        }
        text
    }
}

/// What became of a connection, in one word that stays.
pub(super) fn called(sighting: &Sighting) -> &'static str {
    match (sighting.outcome, error(sighting)) {
        (outcome::ESTABLISHED, _) => "established",
        (outcome::ADDRESSED, _) => "addressed",
        (outcome::UNSENT, _) => "unsent",
        (outcome::FAILED, Some(Errno::ECONNREFUSED)) => "refused",
        (outcome::FAILED, Some(Errno::ETIMEDOUT)) => "timed-out",
        (outcome::FAILED, Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH)) => "unreachable",
        (outcome::FAILED, None) => "abandoned",
        _ => "failed",
    }
}

/// Whether a connection was not made.
pub(super) fn has_failed(sighting: &Sighting) -> bool {
    ![outcome::ESTABLISHED, outcome::ADDRESSED].contains(&sighting.outcome)
}

/// Where it wanted to connect.
pub(super) fn destination(sighting: &Sighting) -> SocketAddr {
    sighting.dest.with_port(sighting.dest_port)
}

pub(super) const fn protocol(sighting: &Sighting) -> &'static str {
    if sighting.protocol == UDP {
        "udp"
    } else {
        "tcp"
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const UDP: u16 = libc::IPPROTO_UDP as u16;

/// The process that a thread belongs to.
pub(super) const fn pid(sighting: &Sighting) -> u32 {
    (sighting.thread >> 32) as u32
}

/// What came from elsewhere may not write anything but letters.
pub(super) fn harmless(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.escape_default().to_string()
    } else {
        text.to_owned()
    }
}

fn error(sighting: &Sighting) -> Option<Errno> {
    let number = i32::try_from(sighting.error).ok()?;
    (number != 0).then(|| Errno::from_raw(number))
}

/// A time of the kernel's, for people and other machines.
fn wall_clock_millis(monotonic_ns: u64) -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    let ago = now
        .unwrap_or_default()
        .saturating_sub(Duration::from_nanos(monotonic_ns));
    let at = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .saturating_sub(ago);
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proxy_common::BePort;

    use super::*;

    fn refused() -> Sighting {
        let dest: IpAddr = [192, 0, 2, 1].into();
        let source: IpAddr = [192, 0, 2, 2].into();
        Sighting {
            begun_ns: 1,
            ended_ns: 59_001,
            thread: 7 << 32 | 8,
            dest: dest.into(),
            dest_port: BePort::new(80),
            peer: dest.into(),
            peer_port: BePort::new(80),
            source: source.into(),
            source_port: BePort::new(40_000),
            uid: 1000,
            gid: 1001,
            outcome: outcome::FAILED,
            error: libc::ECONNREFUSED.unsigned_abs(),
            comm: *b"a\nb\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ..Sighting::default()
        }
    }

    #[test]
    fn the_keys_stay() {
        let outlook = Outlook {
            verdict: "relay".into(),
            rule: Some("web".into()),
            via: None,
        };
        let line = Line {
            at_ms: 5,
            ..Line::new(&refused(), Some(Path::new("/a")), None, Some(&outlook))
        };
        let json: serde_json::Value = serde_json::to_value(&line).unwrap();
        let expected = serde_json::json!({
            "event": "connection", "at_ms": 5, "pid": 7, "comm": "a\nb", "uid": 1000, "gid": 1001, "cgroup": "/a",
            "protocol": "tcp", "source": "192.0.2.2:40000", "destination": "192.0.2.1:80", "redirected_to": null,
            "outcome": "refused", "error": "ECONNREFUSED", "likely_error": null, "latency_us": 59,
            "verdict": "relay", "rule": "web", "via": null,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_line_is_one_line() {
        let line = Line {
            at_ms: 0,
            ..Line::new(&refused(), Some(Path::new("/a\x1bb")), None, None)
        };
        assert_eq!(
            line.text(Paint::plain(), true),
            "1970-01-01T00:00:00.000Z refused       59us a\\nb[7] uid 1000 tcp 192.0.2.2:40000 -> 192.0.2.1:80 \
             (ECONNREFUSED) cgroup /a\\u{1b}b"
        );
    }

    #[test]
    fn what_sent_no_packet_has_no_source_and_no_latency() {
        let unsent = Sighting {
            outcome: outcome::UNSENT,
            error: 0,
            source_port: BePort(0),
            ..refused()
        };
        let line = Line::new(&unsent, None, Some(Errno::ENETUNREACH), None);
        assert_eq!(line.outcome, "unsent");
        assert_eq!((line.source, line.latency_us), (None, None));
        assert!(
            line.text(Paint::plain(), true)
                .ends_with("uid 1000 tcp -> 192.0.2.1:80 (probably ENETUNREACH)")
        );
    }

    #[test]
    fn outcomes_have_names() {
        let of = |outcome, error: i32| {
            called(&Sighting {
                outcome,
                error: error.unsigned_abs(),
                ..refused()
            })
        };
        assert_eq!(of(outcome::ESTABLISHED, 0), "established");
        assert_eq!(of(outcome::FAILED, libc::ETIMEDOUT), "timed-out");
        assert_eq!(of(outcome::FAILED, libc::EHOSTUNREACH), "unreachable");
        assert_eq!(of(outcome::FAILED, libc::ENETUNREACH), "unreachable");
        assert_eq!(of(outcome::FAILED, libc::EPROTO), "failed");
        assert_eq!(of(outcome::FAILED, 0), "abandoned");
        assert_eq!(of(outcome::UNTOLD, 0), "failed");
        assert_eq!(of(outcome::ADDRESSED, 0), "addressed");
    }
}
