//! What a daemon tells of its upstreams, and how that is shown.

use serde::{Deserialize, Serialize};

use super::GroupStatus;
use crate::paint::{Paint, Table, Tone, delay};

/// The upstreams in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstreams {
    /// By name.
    pub upstreams: Vec<UpstreamStatus>,
}

/// An upstream. The names of the fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its name in the configuration.
    pub name: String,
    /// The proxies on the way, or how an endpoint is chosen, as `culvert check` writes it.
    pub way: String,
    /// Connections by way of it that the relay has open.
    pub live: u64,
    /// Where it has several endpoints: how they are.
    pub group: Option<GroupStatus>,
}

impl Upstreams {
    /// For people.
    #[must_use]
    pub(crate) fn text(&self, paint: Paint) -> String {
        if self.upstreams.is_empty() {
            return "no upstreams\n".to_owned();
        }
        let mut table = Table::new(&["upstream", "open", "way"]).right(&[1]);
        for upstream in &self.upstreams {
            table.row([
                upstream.name.clone(),
                upstream.live.to_string(),
                upstream.way.clone(),
            ]);
        }
        let mut text = table.text(paint);
        for group in self.upstreams.iter().filter_map(|one| one.group.as_ref()) {
            text.push_str(&endpoints(group, paint));
        }
        text
    }
}

/// The endpoints of a group.
fn endpoints(group: &GroupStatus, paint: Paint) -> String {
    let title = paint.text(Tone::Strong, format!("Group {}", group.name));
    let mut table = Table::new(&[
        "endpoint",
        "state",
        "weight",
        "open",
        "made",
        "failed",
        "rewritten",
        "latency",
        "error",
    ])
    .right(&[2, 3, 4, 5, 6, 7]);
    for one in &group.endpoints {
        let latency = match one.latency_us {
            0 => "-".to_owned(),
            micros => delay(micros),
        };
        table.row([
            one.address.clone(),
            one.condition(),
            one.weight.to_string(),
            one.live.to_string(),
            one.connections.to_string(),
            one.failures.to_string(),
            one.rewritten.to_string(),
            latency,
            one.trouble().unwrap_or_default().to_owned(),
        ]);
    }
    format!(
        "\n{title}: {}, {} open, {} waiting\n{}",
        group.balance,
        group.live,
        group.waiting,
        table.text(paint)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::EndpointStatus;

    #[test]
    fn endpoints_are_shown_with_what_is_wrong_with_them() {
        let group = GroupStatus {
            name: "web".into(),
            balance: "p2c".into(),
            endpoints: vec![EndpointStatus {
                address: "10.0.0.1:80".into(),
                state: "down".into(),
                drained: true,
                latency_us: 1250,
                last_error: Some("cannot connect".into()),
                ..EndpointStatus::default()
            }],
            ..GroupStatus::default()
        };
        let upstreams = Upstreams {
            upstreams: vec![UpstreamStatus {
                name: "web".into(),
                live: 3,
                group: Some(group),
                ..UpstreamStatus::default()
            }],
        };
        let text = upstreams.text(Paint::plain());
        for part in ["Group web: p2c", "down, drained", "1.2ms", "cannot connect"] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }
}
