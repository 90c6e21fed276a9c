//! What rules for what passes through attach and add, and what keeps connections from passing through.

use std::{collections::BTreeSet, sync::Arc};

use proxy_common::names;

use super::{Row, row};
use crate::{
    config::Config,
    delivery::{self, Want},
    forwarding::Forwarding,
    intercept::ingress,
    proxy::Shown,
    socket,
};

/// Programs on interfaces, and routing rules. None without such rules.
pub(super) fn rows(config: &Config) -> Vec<Row> {
    let interfaces = interfaces(config);
    if interfaces.is_empty() {
        return Vec::new();
    }
    let marked = |name: &&str| Want::Marked {
        interface: Arc::from(*name),
    };
    let wants: Vec<_> = interfaces.iter().map(marked).collect();
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
    [row("gateway", program)]
        .into_iter()
        .chain(routing)
        .collect()
}

/// Interfaces that are there and forward nothing.
pub(super) fn lacking(config: &Config) -> impl Iterator<Item = String> {
    let there = interfaces(config)
        .into_iter()
        .filter(|name| socket::interface_number(name).is_some());
    let forwards_nothing = there.filter(|name| !Forwarding::of(name).any());
    forwards_nothing.map(no_forwarding)
}

/// Of an interface.
pub(super) fn no_forwarding(name: &str) -> String {
    format!(
        "forwarding on {name}, without which nothing passes through; sysctl -w net.ipv4.ip_forward=1 \
         net.ipv6.conf.all.forwarding=1"
    )
}

fn interfaces(config: &Config) -> BTreeSet<&str> {
    let named = config.gateway.iter().flat_map(|rule| &rule.interface);
    named.map(String::as_str).collect()
}
