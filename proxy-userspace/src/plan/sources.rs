//! What has answers of servers that see the addresses of clients come back here (`keep_source`).

use super::{Row, row};
use crate::{
    config::Config,
    delivery,
    group::Source,
    paint::one_line,
    proxy::{Returns, Shown},
    rule::ReverseVia,
};

/// Rules and routes, as commands, and what is missing for them.
pub(super) fn routing(config: &Config) -> (Vec<Row>, Vec<String>) {
    if !Shown::are_wanted(&config.reverse, &config.groups) {
        return (Vec::new(), Vec::new());
    }
    let returns = match Returns::of(&Shown::of(&config.reverse, &config.groups)) {
        Ok(returns) => returns,
        Err(error) => return (Vec::new(), vec![one_line(&error)]),
    };
    let wants: Vec<_> = returns.wants.iter().cloned().collect();
    let mut rows = delivery::planned(&wants)
        .into_iter()
        .map(|command| row("until the end", command))
        .collect::<Vec<_>>();
    rows.extend(
        names(config)
            .into_iter()
            .map(|name| row(name, "by the addresses that it stands for then")),
    );
    rows.extend(returns.remote.iter().map(|(server, (_, interface))| {
        row(
            server.to_string(),
            format!(
                "on another host: {} on {interface}; its routes to clients must lead through this host",
                proxy_common::names::RETURNS
            ),
        )
    }));
    rows.extend(returns.nowhere.iter().map(|server| {
        row(
            server.to_string(),
            "no route leads there yet; waits for one",
        )
    }));
    let missing = returns.lacks().map(|lacking| lacking.to_string());
    (rows, missing.into_iter().collect())
}

/// Names of endpoints that see the addresses of clients.
fn names(config: &Config) -> Vec<String> {
    let mut names = Vec::new();
    for rule in &config.reverse {
        for via in rule.vias() {
            let ReverseVia::Upstream(name) = via else {
                continue;
            };
            let Some(group) = config.groups.get(name) else {
                continue;
            };
            if !group.keep_source && !rule.keep_source {
                continue;
            }
            let of_group = group.members.iter().map(|member| &member.source);
            names.extend(
                of_group
                    .filter(|source| !matches!(source, Source::Address(_)))
                    .map(ToString::to_string),
            );
        }
    }
    names
}
