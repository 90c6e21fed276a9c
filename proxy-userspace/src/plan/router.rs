//! What the fast path attaches, and what is in its way.

use proxy_common::names;

use super::{Row, row};
use crate::{
    config::Config, forwarding::Forwarding, intercept::ingress, netfilter, paint::one_line, socket,
};

/// Its program, and whom it keeps packets from. None where there is no fast path.
pub(super) fn rows(config: &Config) -> Vec<Row> {
    let router = &config.router;
    if !router.is_on() {
        return Vec::new();
    }
    let listed: Vec<_> = router.fast_path.iter().map(String::as_str).collect();
    let by = if ingress::is_by_links(config.daemon.ingress) {
        "by links (tcx)"
    } else {
        "as a filter of tc (clsact), which does nothing without the daemon"
    };
    let mut rows = vec![
        row(
            "fast path",
            format!(
                "{} on ingress of {}, {by}, behind all other programs of culvert",
                names::ROUTER,
                listed.join(" ")
            ),
        ),
        row(
            "skips",
            "netfilter (nftables, iptables, connection tracking, address translation) and IPsec policies: nothing of it sees what \
             the fast path sends on",
        ),
    ];
    if router.force {
        let mut passed_by = netfilter::on_the_way().unwrap_or_default();
        passed_by.extend(netfilter::ipsec_on_the_way().unwrap_or_default());
        rows.extend(
            passed_by
                .into_iter()
                .map(|what| row("skips", format!("{what} (`force = true`)"))),
        );
    }
    rows
}

/// What would keep `run` from starting, or packets from passing.
pub(super) fn lacking(config: &Config) -> Vec<String> {
    let mut lacking: Vec<_> = config
        .router
        .allow()
        .err()
        .map(|error| one_line(&error))
        .into_iter()
        .collect();
    let there = config.router.fast_path.iter();
    let there = there.filter(|name| socket::interface_number(name).is_some());
    let forwards_nothing = there.filter(|name| !Forwarding::of(name).any());
    lacking.extend(forwards_nothing.map(|name| super::gateway::no_forwarding(name)));
    lacking
}
