//! Whether those who are to see the addresses of clients (`keep_source`) can.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use crate::{
    group::{Address, Settings, SettingsByName, Source},
    rule::{Listen, Reverse, ReverseVia, Via},
    upstream::Upstream,
};

use super::{
    forward::PlacedRule,
    gateway::PlacedGateway,
    report::{Finding, Findings, Span},
    reverse::PlacedReverse,
};

/// What tells a server who connects where its socket cannot.
const OTHERWISE: &str = "`send_proxy` tells a service in words who connects";

/// Checks the rules of all roles against what they go to.
pub(super) fn check(
    rules: &[PlacedRule],
    arrivals: &[PlacedReverse],
    transits: &[PlacedGateway],
    upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
    groups: &SettingsByName,
    findings: &mut Findings,
) {
    for placed in rules {
        if let Via::Upstream(via) = &placed.rule.via
            && groups.get(via).is_some_and(|group| group.keep_source)
        {
            findings.push(
                Finding::error(format!("`{via}` has `keep_source`, which is not for `[[forward]]` rules"))
                    .at(&placed.name)
                    .label("this rule's connections come from this host, and so do those of the relay")
                    .help(format!("give the rule a group of its own, with the endpoints of `{via}` and without `keep_source`")),
            );
        }
    }
    let mut check_upstreams = |vias: &mut dyn Iterator<Item = &ReverseVia>, place: &Span| {
        for via in vias {
            let ReverseVia::Upstream(name) = via else {
                continue;
            };
            if let Some(why) = obstacle(upstreams.get(name), groups.get(name)) {
                findings.push(
                    Finding::error(format!("`keep_source` cannot be had with `{name}`"))
                        .at(place)
                        .label(why)
                        .help(OTHERWISE),
                );
            }
        }
    };
    for placed in arrivals.iter().filter(|placed| placed.rule.keep_source) {
        check_upstreams(&mut placed.rule.vias(), &placed.keep_source);
    }
    for placed in transits.iter().filter(|placed| placed.rule.keep_source) {
        check_upstreams(&mut placed.rule.vias(), &placed.keep_source);
    }
    for placed in arrivals {
        check_itself(placed, upstreams, groups, findings);
        check_families(placed, groups, findings);
    }
}

/// Refuses services at the address and port that clients connect to. Their sockets see the client's address with a port that
/// another connection of that client may have, now or later: to the same address and port, so that either would end the other.
fn check_itself(
    placed: &PlacedReverse,
    upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
    groups: &SettingsByName,
    findings: &mut Findings,
) {
    let rule = &placed.rule;
    let is_taken = |to: SocketAddr| {
        let takes =
            |listen: &Listen| listen.net.contains(&to.ip()) && listen.ports.contains(&to.port());
        rule.listen.iter().any(takes)
    };
    let is_itself = |via: &ReverseVia| match via {
        ReverseVia::Direct | ReverseVia::Refuse => false,
        ReverseVia::Original => rule.keep_source,
        ReverseVia::Address(to) => rule.keep_source && is_taken(*to),
        ReverseVia::Upstream(name) => match groups.get(name) {
            None => {
                let upstream = upstreams.get(name);
                rule.keep_source && upstream.is_some_and(|upstream| upstream.hops.is_empty())
            }
            Some(group) => {
                let itself = group.has_original() || group.addresses().any(is_taken);
                itself && (group.keep_source || rule.keep_source)
            }
        },
    };
    if rule.vias().any(is_itself) {
        findings.push(
            Finding::error("`keep_source` cannot be had where a service is at the address that clients connect to")
                .at(&placed.keep_source)
                .label("its connections would be taken for others of the same clients")
                .help("have the service listen on another address, such as one of loopback; or `path = \"steer\"`, where it sees clients anyway"),
        );
    }
}

/// Why servers cannot see a client's address by way of an upstream.
fn obstacle(upstream: Option<&Arc<Upstream>>, group: Option<&Arc<Settings>>) -> Option<String> {
    if let Some(group) = group {
        return group.members.iter().find_map(|member| {
            matches!(member.source, Source::Address(Address::Unix(_)))
                .then(|| format!("{}: a Unix socket knows no addresses", member.source))
        });
    }
    // One that is not there has errors of its own.
    let has_proxies = upstream.is_some_and(|upstream| !upstream.hops.is_empty());
    has_proxies.then(|| "its proxy connects to servers, from its own address".to_owned())
}

/// Warns of servers that none of a rule's clients can be shown to.
fn check_families(placed: &PlacedReverse, groups: &SettingsByName, findings: &mut Findings) {
    let rule = &placed.rule;
    // Who is believed may tell of clients of any family.
    if !rule.accept_proxy.is_empty() {
        return;
    }
    let listens = |v4: bool| {
        let of_family = |listen: &Listen| listen.net.addr().is_ipv4() == v4;
        rule.listen.iter().any(of_family)
    };
    for address in kept(rule, groups) {
        let is_v4 = address.is_ipv4();
        if !listens(is_v4) {
            findings.push(
                Finding::warning(format!("no client of this rule can be shown to {address}"))
                    .at(&placed.keep_source)
                    .label(format!(
                        "`listen` has no {} address, and a connection has addresses of one family",
                        if is_v4 { "IPv4" } else { "IPv6" }
                    )),
            );
        }
    }
}

/// The addresses that clients of a rule are to be shown to, as far as the configuration has them.
fn kept<'a>(
    rule: &'a Reverse,
    groups: &'a SettingsByName,
) -> impl Iterator<Item = SocketAddr> + 'a {
    rule.vias().flat_map(|via| match via {
        ReverseVia::Address(to) if rule.keep_source => vec![*to],
        ReverseVia::Upstream(name) => groups
            .get(name)
            .filter(|group| group.keep_source || rule.keep_source)
            .map(|group| group.addresses().collect())
            .unwrap_or_default(),
        _ => Vec::new(),
    })
}
