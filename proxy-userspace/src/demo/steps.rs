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
    let mut differences = Differences {
        destination: step.destination,
        found: Vec::new(),
    };
    differences.of_the_kernel(step.expected, observed);
    match &observed.seen {
        seen if step.expected == Expected::Refused => {
            let as_refused = *seen == Seen::NotConnected(refusal as i32);
            differences.unless(as_refused, || {
                format!("connect() should have failed with {refusal}, not {seen:?}")
            });
            differences.unless(observed.served.is_none(), || {
                "the origin was reached".to_owned()
            });
        }
        Seen::NotConnected(errno) => differences.unless(false, || {
            format!("connect() failed with {}", Errno::from_raw(*errno))
        }),
        Seen::Connected { peer, error, .. } => {
            differences.of_the_app(*peer, error.as_deref());
            differences.of_the_origin(step.expected, observed);
            differences.of_the_relay(step.expected, observed, app);
        }
    }
    differences.found
}

/// Collects what differs for one connection.
struct Differences {
    destination: SocketAddr,
    found: Vec<String>,
}

impl Differences {
    fn unless(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.found.push(format!("{}: {}", self.destination, what()));
        }
    }

    fn of_the_kernel(&mut self, expected: Expected, observed: &Observed) {
        let Some(verdicts) = &observed.verdicts else {
            return;
        };
        let expected = match expected {
            Expected::Direct => "direct",
            Expected::Refused => "refused",
            Expected::Relayed { .. } => "relayed",
        };
        self.unless(verdicts == &[expected], || {
            format!("the kernel should have counted it as {expected}, not as {verdicts:?}")
        });
    }

    fn of_the_app(&mut self, peer: SocketAddr, error: Option<&str>) {
        self.unless(peer == self.destination, || {
            format!("getpeername() said {peer}")
        });
        self.unless(error.is_none(), || {
            let error = error.unwrap_or_default();
            format!("the app did not get all bytes: {error}")
        });
    }

    fn of_the_origin(&mut self, expected: Expected, observed: &Observed) {
        let Some(served) = &observed.served else {
            return self.unless(false, || "the origin saw no such connection".to_owned());
        };
        self.unless(is_same(served.destination, self.destination), || {
            format!("it arrived at {}", served.destination)
        });
        self.unless(served.error.is_none(), || {
            let error = served.error.as_deref().unwrap_or_default();
            format!("the origin did not get all bytes: {error}")
        });
        let is_direct = expected == Expected::Direct;
        self.unless(observed.is_own_socket() == is_direct, || {
            let what = if is_direct { "something" } else { "nothing" };
            format!("{what} was in between")
        });
    }

    fn of_the_relay(&mut self, expected: Expected, observed: &Observed, app: u32) {
        let Expected::Relayed {
            rule,
            through_proxy,
        } = expected
        else {
            self.unless(observed.closed.is_none(), || "the relay had it".to_owned());
            return self.unless(observed.asked.is_none(), || {
                "the proxy was asked for it".to_owned()
            });
        };
        let is_here = |address: Option<SocketAddr>| {
            address.is_some_and(|address| is_same(address, self.destination))
        };
        let asked = is_here(observed.asked);
        let Some(closed) = &observed.closed else {
            return self.unless(false, || "there is no close record".to_owned());
        };
        let whole = payload::SIZE as u64;
        let right = is_here(closed.orig_dst)
            && closed.rule.as_deref() == Some(rule)
            && closed.pid == app
            && (closed.up, closed.down) == (whole, whole)
            && closed.reason == "done";
        self.unless(asked == through_proxy, || {
            format!("the proxy was asked for {:?}", observed.asked)
        });
        self.unless(right, || format!("its close record is {closed:?}"));
    }
}

/// Whether two addresses are the same, in whatever form.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    one.ip().to_canonical() == other.ip().to_canonical() && one.port() == other.port()
}

#[cfg(test)]
mod tests;
