//! The numbers of a daemon for Prometheus, in its text form.
//!
//! Made from what the daemon tells of itself anyway, when somebody asks. Labels come from enums and from names in the
//! configuration, never from addresses of clients: there are as many series as the file has rules and endpoints.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, prometheus_text},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use crate::status::{AccessLogStatus, EndpointStatus, GroupStatus, Status, rules::Rules};

/// What the text is, for an HTTP header.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The numbers as text.
#[must_use]
pub fn text(status: Status, rules: Rules) -> String {
    let mut registry = Registry::with_prefix("culvert");
    registry.register_collector(Box::new(Numbers { status, rules }));
    let mut text = String::new();
    // Writing to a string cannot fail.
    _ = prometheus_text::encode(&mut text, &registry);
    text
}

/// What there is at one moment.
#[derive(Debug)]
struct Numbers {
    status: Status,
    rules: Rules,
}

impl Collector for Numbers {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        self.daemon(&mut out)?;
        self.connections(&mut out)?;
        self.paths(&mut out)?;
        self.rules(&mut out)?;
        self.groups(&mut out)?;
        self.endpoints(&mut out)
    }
}

impl Numbers {
    fn daemon(&self, out: &mut Out<'_>) -> fmt::Result {
        let status = &self.status;
        let version = [("version", status.version.as_str())];
        out.gauges(
            "build",
            "Version of the daemon, as a label; always 1",
            None,
            [(version, 1)],
        )?;
        let help = "Time since the daemon intercepts";
        out.gauges(
            "uptime",
            help,
            Some(&Unit::Seconds),
            [([], status.uptime_seconds)],
        )?;
        let help = "Events in the kernel's hooks, by what they came to";
        let hooks = status.hooks.iter();
        out.counters(
            "hook_events",
            help,
            None,
            hooks.map(|(name, count)| ([("outcome", name.as_str())], *count)),
        )
    }

    fn connections(&self, out: &mut Out<'_>) -> fmt::Result {
        let connections = &self.status.connections;
        let help = "Relayed connections that are open";
        out.gauges("connections_open", help, None, [([], connections.live)])?;
        let help = "Connections that the relay has accepted";
        out.counters(
            "connections_accepted",
            help,
            None,
            [([], connections.accepted)],
        )?;
        let help = "Relayed connections that have ended, by reason";
        let closed = connections.closed.iter();
        out.counters(
            "connections_closed",
            help,
            None,
            closed.map(|(reason, count)| ([("reason", reason.as_str())], *count)),
        )?;
        let help = "Times that a connection could not be accepted at once, by why";
        let causes = [
            ([("reason", "resources")], connections.accept_failures),
            ([("reason", "limit")], connections.at_limit),
        ];
        out.counters("accept_failures", help, None, causes)?;
        let help = "Connections that were looked at for a name, by what came of it";
        let names = connections.names.iter();
        out.counters(
            "names",
            help,
            None,
            names.map(|(outcome, count)| ([("outcome", outcome.as_str())], *count)),
        )?;
        let help = "Close records, by what became of them; absent while none are written";
        let records = self
            .status
            .access_log
            .iter()
            .flat_map(AccessLogStatus::counts);
        out.counters(
            "access_log_records",
            help,
            None,
            records.map(|(outcome, count)| ([("outcome", outcome)], count)),
        )
    }

    fn paths(&self, out: &mut Out<'_>) -> fmt::Result {
        let status = &self.status;
        let help = "Bytes of relayed connections, both ways, by the path they went";
        let moved = status.paths.iter();
        out.counters(
            "moved",
            help,
            Some(&Unit::Bytes),
            moved.map(|path| ([("path", path.path.as_str())], path.moved)),
        )?;
        let help = "Bytes of relayed connections, by direction: up is from apps to servers";
        let directions = [
            ([("direction", "up")], status.connections.up),
            ([("direction", "down")], status.connections.down),
        ];
        out.counters("relayed", help, Some(&Unit::Bytes), directions)?;
        let help = "Whether a path may be used on this kernel; absent while no rule has asked";
        let usable = status
            .paths
            .iter()
            .filter_map(|path| Some(([("path", path.path.as_str())], u64::from(path.usable?))));
        out.gauges("path_usable", help, None, usable)?;
        let help = "Changes of path of connections that have ended, by direction of the change";
        let changes = [
            ([("change", "promotion")], status.promotions),
            ([("change", "demotion")], status.demotions),
        ];
        out.counters("path_changes", help, None, changes)?;
        let help = "Times that the kernel would have delivered bytes twice";
        out.counters("repairs", help, None, [([], status.repairs)])
    }

    fn rules(&self, out: &mut Out<'_>) -> fmt::Result {
        let of = |count: fn(&crate::status::rules::RuleStatus) -> u64| {
            self.rules.rules.iter().map(move |rule| {
                let labels = [("role", rule.role.as_str()), ("rule", rule.name.as_str())];
                (labels, count(rule))
            })
        };
        let help = "Connections that a rule has selected, also those that are not relayed";
        out.counters("rule_hits", help, None, of(|rule| rule.hits))?;
        let help = "Connections that the fail mode of a rule was applied to";
        out.counters("rule_failed", help, None, of(|rule| rule.failed))?;
        let help = "Relayed connections of a rule that are open";
        out.gauges("rule_connections_open", help, None, of(|rule| rule.live))
    }

    fn groups(&self, out: &mut Out<'_>) -> fmt::Result {
        let of = |count: fn(&GroupStatus) -> u64| {
            let groups = self.status.groups.iter();
            groups.map(move |group| ([("group", group.name.as_str())], count(group)))
        };
        let help = "Connections that wait for an endpoint of a group";
        out.gauges(
            "group_waiting",
            help,
            None,
            of(|group| group.waiting.into()),
        )?;
        let help = "Connections that have waited for an endpoint of a group";
        out.counters("group_queued", help, None, of(|group| group.queued))?;
        let help = "Attempts beyond a connection's first";
        out.counters("group_retries", help, None, of(|group| group.retries))?;
        let help = "Times that a name of a group could not be resolved";
        out.counters("group_unresolved", help, None, of(|group| group.unresolved))?;
        let help = "Connections that a limit of a group has reset, by limit";
        let limited = self.status.groups.iter().flat_map(|group| {
            [
                ("queue_full", group.queue_full),
                ("queue_timeout", group.queue_timeouts),
                ("source_limit", group.source_limit),
            ]
            .map(|(limit, count)| ([("group", group.name.as_str()), ("limit", limit)], count))
        });
        out.counters("group_limited", help, None, limited)
    }

    fn endpoints(&self, out: &mut Out<'_>) -> fmt::Result {
        let of = |count: fn(&EndpointStatus) -> u64| {
            self.status.groups.iter().flat_map(move |group| {
                group.endpoints.iter().map(move |one| {
                    let labels = [
                        ("group", group.name.as_str()),
                        ("endpoint", one.address.as_str()),
                    ];
                    (labels, count(one))
                })
            })
        };
        let help = "Whether an endpoint is up";
        out.gauges(
            "endpoint_up",
            help,
            None,
            of(|one| u64::from(one.state == "up")),
        )?;
        let help = "Whether an endpoint is drained";
        out.gauges(
            "endpoint_drained",
            help,
            None,
            of(|one| u64::from(one.drained)),
        )?;
        let help = "Relayed connections to an endpoint that are open";
        out.gauges(
            "endpoint_connections_open",
            help,
            None,
            of(|one| one.live.into()),
        )?;
        let help = "Connections to an endpoint that were made";
        out.counters(
            "endpoint_connections",
            help,
            None,
            of(|one| one.connections),
        )?;
        let help = "Connections to an endpoint that the kernel made without the relay";
        out.counters("endpoint_rewritten", help, None, of(|one| one.rewritten))?;
        let help = "Connections to an endpoint that could not be made";
        out.counters("endpoint_failures", help, None, of(|one| one.failures))?;
        let help = "Checks of an endpoint that failed";
        out.counters(
            "endpoint_failed_checks",
            help,
            None,
            of(|one| one.failed_checks),
        )?;
        let help = "Time that an endpoint takes to accept a connection; absent while none is known";
        let latencies = of(|one| one.latency_us).filter(|(_, micros)| *micros > 0);
        out.seconds("endpoint_latency", help, latencies)
    }
}

/// Families, one after another.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = ([(&'l str, &'l str); N], u64)>,
    ) -> fmt::Result {
        self.family(name, help, unit, samples, ConstCounter::new)
    }

    fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = ([(&'l str, &'l str); N], u64)>,
    ) -> fmt::Result {
        let gauge = |value| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        self.family(name, help, unit, samples, gauge)
    }

    fn seconds<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'l str, &'l str); N], u64)>,
    ) -> fmt::Result {
        let seconds =
            |micros| ConstGauge::new(std::time::Duration::from_micros(micros).as_secs_f64());
        self.family(name, help, Some(&Unit::Seconds), samples, seconds)
    }

    fn family<'l, const N: usize, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = ([(&'l str, &'l str); N], u64)>,
        metric: impl Fn(u64) -> M,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        let Some((_, first)) = samples.peek() else {
            return Ok(());
        };
        let kind = metric(*first).metric_type();
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in samples {
            metric(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_parse::{Scrape, Value};

    use super::*;
    use crate::status::{PathStatus, rules::RuleStatus};

    fn numbers() -> String {
        let endpoint = EndpointStatus {
            address: "10.0.0.1:80".into(),
            state: "up".into(),
            latency_us: 1500,
            ..EndpointStatus::default()
        };
        let status = Status {
            version: "1.2.3".into(),
            uptime_seconds: 90,
            hooks: [("direct".into(), 7)].into(),
            paths: vec![PathStatus {
                path: "copy".into(),
                usable: Some(true),
                moved: 12,
                ..PathStatus::default()
            }],
            groups: vec![GroupStatus {
                name: "a \"group\"\n".into(),
                endpoints: vec![endpoint],
                ..GroupStatus::default()
            }],
            ..Status::default()
        };
        let rule = RuleStatus {
            role: "forward".into(),
            name: "web".into(),
            hits: 3,
            ..RuleStatus::default()
        };
        text(status, Rules { rules: vec![rule] })
    }

    #[test]
    fn prometheus_understands_the_numbers() {
        let text = numbers();
        let lines = text.lines().map(|line| Ok(line.to_owned()));
        let scrape = Scrape::parse(lines).unwrap();
        let value = |name: &str| {
            let mut samples = scrape.samples.iter().filter(|one| one.metric == name);
            let sample = samples
                .next()
                .unwrap_or_else(|| panic!("no {name} in\n{text}"));
            (sample.value.clone(), sample.labels.clone())
        };
        assert_eq!(value("culvert_uptime_seconds").0, Value::Gauge(90.0));
        let (bytes, labels) = value("culvert_moved_bytes_total");
        assert_eq!(
            (bytes, labels.get("path")),
            (Value::Counter(12.0), Some("copy"))
        );
        let (hits, labels) = value("culvert_rule_hits_total");
        assert_eq!(
            (hits, labels.get("rule")),
            (Value::Counter(3.0), Some("web"))
        );
        let (latency, labels) = value("culvert_endpoint_latency_seconds");
        assert_eq!(latency, Value::Gauge(0.0015));
        assert_eq!(labels.get("endpoint"), Some("10.0.0.1:80"));
    }

    #[test]
    fn every_number_says_what_it_is() {
        let text = numbers();
        let names = |kind: &str| -> Vec<&str> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(kind));
            lines.filter_map(|line| line.split(' ').next()).collect()
        };
        let (helped, typed) = (names("# HELP "), names("# TYPE "));
        assert_eq!(helped, typed);
        let mut once = helped.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), helped.len(), "told of twice");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(
                name.starts_with("culvert_") && helped.contains(&name),
                "{line}"
            );
        }
    }
}
