//! What the app does, what has to become of it, and whether that is what was observed. Pure.

use std::net::{Ipv6Addr, SocketAddr};

use nix::errno::Errno;
use serde::Deserialize;

use super::{app::Seen, payload, servers::Served};

/// The configuration that is demonstrated.
pub(super) const CONFIG: &str = r#"[upstream.tunnel]
url = "socks5://192.0.2.1:1080"

[upstream.relay]
url = "direct://"

[[forward]]
name = "intranet"
match = { dest = "192.0.2.10" }
via = "direct"

[[forward]]
name = "blocked"
match = { dest = "192.0.2.66" }
via = "refuse"

[[forward]]
name = "abroad"
match = { dest = ["192.0.2.30", "2001:db8::30"] }
via = "tunnel"
path = "splice"

[[forward]]
name = "watched"
match = { dest = ["192.0.2.20", "2001:db8::20"] }
via = "relay"
"#;

/// The IPv6 addresses in it.
pub(super) const V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x20),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x30),
];

/// What has to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The app's own socket goes there.
    Direct,
    /// `connect()` fails.
    Refused,
    /// It goes through the relay.
    Relayed {
        /// The rule that says so.
        rule: &'static str,
        /// Whether it goes through the SOCKS5 proxy as well.
        through_proxy: bool,
    },
}

/// One connection of the app.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Where it wants to go.
    pub(super) destination: SocketAddr,
    /// What has to become of it.
    pub(super) expected: Expected,
}

/// All of them, in order.
pub(super) fn steps(ipv6: bool) -> Vec<Step> {
    let abroad = Expected::Relayed {
        rule: "abroad",
        through_proxy: true,
    };
    let watched = Expected::Relayed {
        rule: "watched",
        through_proxy: false,
    };
    let steps = [
        ("192.0.2.10:8080", Expected::Direct),
        ("192.0.2.20:8080", watched),
        ("[2001:db8::20]:8080", watched),
        ("[::ffff:192.0.2.20]:8080", watched),
        ("192.0.2.30:8080", abroad),
        ("[2001:db8::30]:8080", abroad),
        ("192.0.2.66:8080", Expected::Refused),
        ("192.0.2.99:8080", Expected::Direct),
    ];
    steps
        .into_iter()
        .filter_map(|(destination, expected)| Some((destination.parse().ok()?, expected)))
        .filter(|(destination, _): &(SocketAddr, _)| ipv6 || destination.is_ipv4())
        .map(|(destination, expected)| Step {
            destination,
            expected,
        })
        .collect()
}

/// What the app does once everything is detached.
pub(super) fn last_step() -> Option<Step> {
    let relayed = |step: &Step| matches!(step.expected, Expected::Relayed { .. });
    let step = steps(false).into_iter().rfind(relayed)?;
    Some(Step {
        expected: Expected::Direct,
        ..step
    })
}

/// A close record, as the access log has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Closed {
    pub(super) rule: Option<String>,
    pub(super) pid: u32,
    pub(super) orig_dst: Option<SocketAddr>,
    pub(super) upstream: Option<String>,
    pub(super) path: Option<String>,
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) intercept_us: u64,
    pub(super) connect_us: u64,
    pub(super) handshake_us: u64,
    pub(super) reason: String,
}

/// What was observed of one connection, from all sides.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// By the app.
    pub(super) seen: Seen,
    /// By the kernel: the verdicts that it counted meanwhile. `None` when nothing is attached.
    pub(super) verdicts: Option<Vec<&'static str>>,
    /// By the origin.
    pub(super) served: Option<Served>,
    /// By the SOCKS5 proxy: what it was asked for.
    pub(super) asked: Option<SocketAddr>,
    /// By the relay.
    pub(super) closed: Option<Closed>,
}

impl Observed {
    /// Whether the origin talked to the app's own socket.
    pub(super) fn is_own_socket(&self) -> bool {
        match (&self.seen, &self.served) {
            (Seen::Connected { local, .. }, Some(served)) => is_same(*local, served.client),
            _ => false,
        }
    }
}

/// What differs between what has to be and what was observed. `app` is its process id, `refusal` what `connect()` of a
/// refused connection has to fail with.
pub(super) fn differences(
    step: &Step,
    observed: &Observed,
    app: u32,
    refusal: Errno,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |holds: bool, what: &str| {
        if !holds {
            found.push(format!("{}: {what}", step.destination));
        }
    };
    if let Some(verdicts) = &observed.verdicts {
        let expected = match step.expected {
            Expected::Direct => "direct",
            Expected::Refused => "refused",
            Expected::Relayed { .. } => "relayed",
        };
        check(
            verdicts == &[expected],
            &format!("the kernel should have counted it as {expected}, not as {verdicts:?}"),
        );
    }
    if step.expected == Expected::Refused {
        let as_refused = observed.seen == Seen::NotConnected(refusal as i32);
        check(
            as_refused,
            &format!(
                "connect() should have failed with {refusal}, not {:?}",
                observed.seen
            ),
        );
        check(observed.served.is_none(), "the origin was reached");
        return found;
    }
    match &observed.seen {
        Seen::NotConnected(errno) => {
            check(
                false,
                &format!("connect() failed with {}", Errno::from_raw(*errno)),
            );
            return found;
        }
        Seen::Connected { peer, error, .. } => {
            check(
                *peer == step.destination,
                &format!("getpeername() said {peer}"),
            );
            if let Some(error) = error {
                check(false, &format!("the app did not get all bytes: {error}"));
            }
        }
    }
    match &observed.served {
        None => check(false, "the origin saw no such connection"),
        Some(served) => {
            let arrived = is_same(served.destination, step.destination);
            check(arrived, &format!("it arrived at {}", served.destination));
            if let Some(error) = &served.error {
                check(false, &format!("the origin did not get all bytes: {error}"));
            }
        }
    }
    let is_direct = step.expected == Expected::Direct;
    check(
        observed.is_own_socket() == is_direct,
        if is_direct {
            "something was in between"
        } else {
            "nothing was in between"
        },
    );
    found.extend(differences_of_the_relay(step, observed, app));
    found
}

fn differences_of_the_relay(step: &Step, observed: &Observed, app: u32) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |holds: bool, what: &str| {
        if !holds {
            found.push(format!("{}: {what}", step.destination));
        }
    };
    let Expected::Relayed {
        rule,
        through_proxy,
    } = step.expected
    else {
        check(observed.closed.is_none(), "the relay had it");
        check(observed.asked.is_none(), "the proxy was asked for it");
        return found;
    };
    let asked = observed
        .asked
        .is_some_and(|asked| is_same(asked, step.destination));
    check(
        asked == through_proxy,
        &format!("the proxy was asked for {:?}", observed.asked),
    );
    let Some(closed) = &observed.closed else {
        check(false, "there is no close record");
        return found;
    };
    let destination = closed
        .orig_dst
        .is_some_and(|orig_dst| is_same(orig_dst, step.destination));
    let whole = payload::SIZE as u64;
    let right = destination
        && closed.rule.as_deref() == Some(rule)
        && closed.pid == app
        && (closed.up, closed.down) == (whole, whole)
        && closed.reason == "done";
    check(right, &format!("its close record is {closed:?}"));
    found
}

/// Whether two addresses are the same, in whatever form.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    one.ip().to_canonical() == other.ip().to_canonical() && one.port() == other.port()
}

#[cfg(test)]
mod tests;
