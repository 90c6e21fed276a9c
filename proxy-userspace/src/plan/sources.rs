//! What has answers of servers that see the addresses of clients come back here (`keep_source`).

use proxy_common::names::RETURNS;

use super::{Row, row};
use crate::{
    config::Config,
    delivery,
    group::Source,
    paint::one_line,
    proxy::{Returns, Shown},
    rule::ReverseVia,
};

/// What is done, and what is missing for it.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Rules and routes, as commands, and where servers are.
    pub(super) rows: Vec<Row>,
    /// The program on interfaces, where a server is on another host.
    pub(super) program: Option<&'static str>,
    /// In words.
    pub(super) missing: Option<String>,
}

impl Answers {
    pub(super) fn of(config: &Config) -> Self {
        if !Shown::are_wanted(config.roles(), &config.groups) {
            return Self::default();
        }
        match Returns::of(&Shown::of(config.roles(), &config.groups)) {
            Ok(returns) => Self {
                rows: rows(config, &returns),
                program: (!returns.remote.is_empty()).then_some(RETURNS),
                missing: returns.lacks().map(|lacking| lacking.to_string()),
            },
            Err(error) => Self {
                missing: Some(one_line(&error)),
                ..Self::default()
            },
        }
    }
}

fn rows(config: &Config, returns: &Returns) -> Vec<Row> {
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
                "on another host: {RETURNS} on {interface}; its routes to clients must lead through this host"
            ),
        )
    }));
    rows.extend(returns.nowhere.iter().map(|server| {
        row(
            server.to_string(),
            "no route leads there yet; waits for one",
        )
    }));
    rows
}

/// Names of endpoints that see the addresses of clients.
fn names(config: &Config) -> Vec<String> {
    let mut names = Vec::new();
    for (keeps, via) in config.roles().kept() {
        let ReverseVia::Upstream(name) = via else {
            continue;
        };
        let Some(group) = config.groups.get(name) else {
            continue;
        };
        if !group.keep_source && !keeps {
            continue;
        }
        let of_group = group.members.iter().map(|member| &member.source);
        names.extend(
            of_group
                .filter(|source| !matches!(source, Source::Address(_)))
                .map(ToString::to_string),
        );
    }
    names
}
