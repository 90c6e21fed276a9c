//! What rules for what passes through attach and add, and what keeps connections from passing through.

use std::{collections::BTreeSet, sync::Arc};

use proxy_common::names;

use super::{Row, row};
use crate::{
    config::Config,
    delivery::{self, Want},
    forwarding::{Forwarding, STRICT, WayBack, way_back},
    intercept::ingress,
    paint::one_line,
    proxy::Shown,
    socket,
};

/// Programs on interfaces, and routing rules. None without such rules.
pub(super) fn rows(config: &Config) -> Vec<Row> {
    let interfaces = interfaces(config);
    if interfaces.is_empty() {
        return Vec::new();
    }
    let wants = wants(&interfaces);
    let strict = interfaces.iter().copied().filter(|name| is_strict(name));
    let strict: Vec<_> = strict.collect();
    let mut listed: Vec<_> = interfaces.into_iter().collect();
    if Shown::are_wanted(config.gateway.as_slice().into(), &config.groups) {
        listed.push("and all others by which servers answer (`keep_source`)");
    }
    let by = if ingress::is_by_links(config.daemon.ingress) {
        "by links (tcx)"
    } else {
        "as filters of tc (clsact), which stay when the daemon is killed"
    };
    let program = format!(
        "{} on ingress of {}, {by}",
        names::GATEWAY,
        listed.join(" ")
    );
    let routing = delivery::planned(&wants).into_iter();
    let routing = routing.map(|command| row("routing", command));
    let mut rows: Vec<_> = [row("gateway", program)]
        .into_iter()
        .chain(routing)
        .collect();
    if !strict.is_empty() {
        rows.push(row(
            "rp_filter",
            format!(
                "strict on {}: {STRICT} (net.ipv4.conf.NAME.rp_filter, 2 asks for any way)",
                strict.join(" ")
            ),
        ));
    }
    rows
}

/// What keeps connections from being taken: interfaces that are there and forward nothing, and routing rules of others.
pub(super) fn lacking(config: &Config) -> Vec<String> {
    let interfaces = interfaces(config);
    if interfaces.is_empty() {
        return Vec::new();
    }
    let there = interfaces
        .iter()
        .filter(|name| socket::interface_number(name).is_some());
    let forwards_nothing = there.filter(|name| !Forwarding::of(name).any());
    let mut lacking: Vec<_> = forwards_nothing.map(|name| no_forwarding(name)).collect();
    match delivery::conflicts(&wants(&interfaces)) {
        Ok(conflicts) => lacking.extend(conflicts.iter().map(ToString::to_string)),
        Err(error) => lacking.push(one_line(&error)),
    }
    lacking
}

/// Of an interface.
pub(super) fn no_forwarding(name: &str) -> String {
    format!(
        "forwarding on {name}, without which nothing passes through; sysctl -w net.ipv4.ip_forward=1 \
         net.ipv6.conf.all.forwarding=1"
    )
}

fn wants(interfaces: &BTreeSet<&str>) -> Vec<Want> {
    let marked = |name: &&str| Want::Marked {
        interface: Arc::from(*name),
    };
    interfaces.iter().map(marked).collect()
}

fn is_strict(interface: &str) -> bool {
    socket::interface_number(interface).is_some() && way_back(interface) == WayBack::Same
}

fn interfaces(config: &Config) -> BTreeSet<&str> {
    let named = config.gateway.iter().flat_map(|rule| &rule.interface);
    named.map(String::as_str).collect()
}
