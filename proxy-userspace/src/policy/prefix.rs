//! Prefixes of destinations, and of the sources of what arrives or passes through.
//!
//! For an address whose longest listed prefix is P, membership in every other listed prefix is known too: it
//! either contains P or is disjoint from the address. So the rules that an address allows can be worked out per
//! prefix, and one longest-prefix look-up answers for all rules.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proxy_common::{Addr, PrefixKind, RuleSet};

use super::{Prefix, rules_where};
use crate::rule::{LOOPBACK, Rule, Selector, is_loopback};

/// Bits before an IPv4 address in its IPv4-mapped form.
const V4_OFFSET: u8 = 96;

/// Rules that list a prefix.
#[derive(Clone, Copy, Default)]
struct Listed {
    include: RuleSet,
    exclude: RuleSet,
}

/// What holds in the area of a prefix.
#[derive(Clone, Copy)]
struct Area {
    net: IpNet,
    include: RuleSet,
    exclude: RuleSet,
    /// Rules included by a prefix that lies within loopback: they name it.
    names_loopback: RuleSet,
}

/// The prefix table of all destinations.
pub(super) fn destinations(rules: &[Rule]) -> Vec<(Prefix, RuleSet)> {
    let anywhere = rules_where(rules, |rule| rule.matches.dest.include.is_empty());
    let mut listed: BTreeMap<IpNet, Listed> = BTreeMap::new();
    // Areas that behave differently even when no rule lists them.
    for net in roots().into_iter().chain(LOOPBACK) {
        listed.entry(net).or_default();
    }
    for (index, rule) in rules.iter().enumerate() {
        list(&rule.matches.dest, index, &mut listed);
    }

    // IpNet orders by family, network, then prefix length: a prefix comes after all that contain it.
    let mut table = Vec::with_capacity(listed.len());
    let mut around: Vec<Area> = Vec::new();
    for (net, own) in listed {
        while around.last().is_some_and(|area| !area.net.contains(&net)) {
            around.pop();
        }
        let outer = around.last();
        let on_loopback = is_loopback(&net);
        let inherit = |of: fn(&Area) -> RuleSet| outer.map_or(RuleSet::EMPTY, of);
        let area = Area {
            net,
            include: inherit(|area| area.include).or(&own.include),
            exclude: inherit(|area| area.exclude).or(&own.exclude),
            names_loopback: if on_loopback {
                inherit(|area| area.names_loopback).or(&own.include)
            } else {
                RuleSet::EMPTY
            },
        };
        around.push(area);
        let allowed = if on_loopback {
            area.names_loopback
        } else {
            area.include.or(&anywhere)
        };
        table.push((
            prefix_of(PrefixKind::DEST, net),
            allowed.and_not(&area.exclude),
        ));
    }
    table
}

/// The prefix table of one kind of address, loopback like any other; empty when no rule selects by it.
pub(super) fn table<R>(
    kind: u32,
    rules: &[R],
    selector: impl Fn(&R) -> &Selector<IpNet>,
) -> Vec<(Prefix, RuleSet)> {
    if rules.iter().all(|rule| selector(rule).is_any()) {
        return Vec::new();
    }
    let mut anywhere = RuleSet::EMPTY;
    let mut listed: BTreeMap<IpNet, Listed> = BTreeMap::new();
    for net in roots() {
        listed.entry(net).or_default();
    }
    for (index, rule) in rules.iter().enumerate() {
        let selector = selector(rule);
        if selector.include.is_empty() {
            anywhere.insert(index);
        }
        list(selector, index, &mut listed);
    }
    let mut table = Vec::with_capacity(listed.len());
    let mut around: Vec<(IpNet, Listed)> = Vec::new();
    for (net, own) in listed {
        while around
            .last()
            .is_some_and(|(outer, _)| !outer.contains(&net))
        {
            around.pop();
        }
        let outer = around
            .last()
            .map_or_else(Listed::default, |(_, outer)| *outer);
        let here = Listed {
            include: outer.include.or(&own.include),
            exclude: outer.exclude.or(&own.exclude),
        };
        around.push((net, here));
        let allowed = here.include.or(&anywhere).and_not(&here.exclude);
        table.push((prefix_of(kind, net), allowed));
    }
    table
}

/// Notes the prefixes of one rule.
fn list(selector: &Selector<IpNet>, index: usize, listed: &mut BTreeMap<IpNet, Listed>) {
    for net in &selector.include {
        let listed = listed.entry(unmapped(*net)).or_default();
        listed.include.insert(index);
    }
    for net in &selector.exclude {
        let listed = listed.entry(unmapped(*net)).or_default();
        listed.exclude.insert(index);
    }
}

/// The whole of each family.
pub(super) fn roots() -> [IpNet; 2] {
    [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
}

/// An IPv4-mapped IPv6 prefix is the IPv4 prefix it maps.
pub(super) fn unmapped(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(len) = v6.prefix_len().checked_sub(V4_OFFSET)
        && let Some(addr) = v6.network().to_ipv4_mapped()
        && let Ok(v4) = Ipv4Net::new(addr, len)
    {
        IpNet::V4(v4)
    } else {
        net.trunc()
    }
}

pub(super) fn prefix_of(kind: u32, net: IpNet) -> Prefix {
    let (bits, len) = match net {
        IpNet::V4(v4) => (
            Addr::from_v4(v4.network().octets()),
            V4_OFFSET + v4.prefix_len(),
        ),
        IpNet::V6(v6) => (Addr::from_v6(v6.network().octets()), v6.prefix_len()),
    };
    Prefix {
        kind,
        len: u32::from(len),
        bits,
    }
}
