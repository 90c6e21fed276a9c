//! The `[[gateway]]` sections: one rule each.

use std::{collections::BTreeSet, ops::RangeInclusive};

use ipnet::IpNet;

use crate::rule::{Gateway, PathChoice, ReverseVia, Selector};

use super::{
    daemon::Daemon,
    duration, names,
    raw::Value,
    report::{Finding, Findings, Span},
    reverse::{interface, keep_source, via},
    rule::{check_names, fail_mode, is_affordable, name, of_relay, sections},
    selector,
};

/// What they are called together.
const RULES: &str = "gateway rules";
/// Most prefixes in `source` and `dest` of all rules together: what the kernel's tables are made for.
const MOST_PREFIXES: usize = 100_000;
/// Most ports and names of all rules together.
const MOST_VALUES: usize = 10_000;

/// A rule and where its parts stand.
pub(super) struct PlacedGateway {
    pub(super) rule: Gateway,
    /// The value of `name`.
    pub(super) name: Span,
    /// The value of `keep_source`, or the name where there is none.
    pub(super) keep_source: Span,
}

/// Reads all rules. Those with errors are left out.
pub(super) fn read(
    value: Value<'_>,
    upstreams: &[&str],
    daemon: &Daemon,
    findings: &mut Findings,
) -> Vec<PlacedGateway> {
    let sections = sections(value, RULES, "every selector", findings);
    let rules: Vec<_> = sections
        .filter_map(|value| rule(value, upstreams, daemon, findings))
        .collect();
    check_names(
        rules
            .iter()
            .map(|placed| (&*placed.rule.name, &placed.name)),
        findings,
    );
    let mut may_have = |most, what: &str, count: fn(&Gateway) -> usize| {
        let counts = rules
            .iter()
            .map(|placed| (count(&placed.rule), &placed.name));
        is_affordable(RULES, counts, most, what, findings)
    };
    let affordable = may_have(MOST_PREFIXES, "prefixes", |rule| {
        rule.source.count() + rule.dest.count()
    }) & may_have(MOST_VALUES, "ports, interfaces and names", |rule| {
        let names = rule.names.as_ref().map_or(0, |names| names.entries.len());
        rule.port.count() + rule.interface.len() + names
    });
    if affordable { rules } else { Vec::new() }
}

fn rule(
    value: Value<'_>,
    upstreams: &[&str],
    daemon: &Daemon,
    findings: &mut Findings,
) -> Option<PlacedGateway> {
    let mut table = value.table("`[[gateway]]`", "the section `[[gateway]]`", findings)?;
    let name = name(&mut table, "lan", findings);
    let interface = table
        .require("interface", "interface = \"eth1\"", findings)
        .and_then(|value| interfaces(value, findings));
    let matches = match table.get("match") {
        None => Some(Matches::default()),
        Some(value) => matches(value, findings),
    };
    let via = table
        .require("via", "via = \"original\"", findings)
        .and_then(|value| via(value, upstreams, findings));
    let names = names::read(&mut table, upstreams, via.as_ref(), findings);
    let has_names = !matches!(names, Ok(None));
    let relayed = has_names || via.as_ref().is_none_or(ReverseVia::is_relayed);
    let on_relay_failure = fail_mode(&mut table, relayed, findings);
    let paths = [
        ("auto", PathChoice::Auto),
        ("copy", PathChoice::Copy),
        ("splice", PathChoice::Splice),
        ("sockmap", PathChoice::Sockmap),
    ];
    let path = of_relay(&mut table, "path", &paths, relayed, findings);
    let kept = table.get("keep_source");
    let keep_source = keep_source(kept, relayed, findings);
    let connect_timeout = match table.get("connect_timeout") {
        None => Some(daemon.connect_timeout),
        Some(value) => duration::read(value, duration::ANY, findings),
    };
    table.finish(findings);
    let matches = matches?;
    let (name, place) = name?;
    Some(PlacedGateway {
        rule: Gateway {
            name,
            interface: interface?,
            source: matches.source,
            dest: matches.dest,
            port: matches.port,
            via: via?,
            names: names.ok()?,
            connect_timeout: connect_timeout?,
            keep_source: keep_source?,
            on_relay_failure: on_relay_failure?,
            path: path?,
        },
        keep_source: kept.map_or_else(|| place.clone(), |value| value.span()),
        name: place,
    })
}

#[derive(Default)]
struct Matches {
    source: Selector<IpNet>,
    dest: Selector<IpNet>,
    port: Selector<RangeInclusive<u16>>,
}

fn matches(value: Value<'_>, findings: &mut Findings) -> Option<Matches> {
    let mut table = value.table(
        "`match`",
        "a table such as `{ source = \"192.168.7.0/24\", port = 443 }`",
        findings,
    )?;
    let source = selector::optional(table.get("source"), |value| {
        selector::read(value, "192.168.7.0/24", findings, selector::prefix)
    });
    let dest = selector::optional(table.get("dest"), |value| {
        selector::read(value, "!10.0.0.0/8", findings, selector::prefix)
    });
    let port = selector::optional(table.get("port"), |value| {
        selector::read_numbers(value, "8000-8999", findings, selector::ports)
    });
    table.finish(findings);
    Some(Matches {
        source: source?,
        dest: dest?,
        port: port?,
    })
}

/// Names of interfaces, and no exclusions.
fn interfaces(value: Value<'_>, findings: &mut Findings) -> Option<BTreeSet<String>> {
    let read = selector::read(value, "eth1", findings, interface)?;
    let wrong = if !read.exclude.is_empty() {
        Some(
            "a gateway takes what comes in by the interfaces that it names: leave out what begins with `!`",
        )
    } else if read.include.iter().any(|name| name == "lo") {
        Some("nothing passes through by `lo`: what this host opens is for `[[forward]]` rules")
    } else {
        None
    };
    let Some(why) = wrong else {
        return Some(read.include.into_iter().collect());
    };
    findings.push(
        Finding::error("`interface` lists where connections of other hosts come in")
            .at(&value.span())
            .label(why),
    );
    None
}
