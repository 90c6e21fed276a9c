//! What a service is asked, answered from what its configuration says and its proxy knows.

use std::{collections::HashMap, sync::Arc};

use super::Service;
use crate::{
    config,
    live::Query,
    metrics,
    proxy::{Census, HitCount, NoConnection},
    record::Role,
    rule::{Gateway, Reverse, ReverseVia, Rule, Via},
    status::{
        connections::{End, List},
        rules::{RuleStatus, Rules},
        upstreams::{UpstreamStatus, Upstreams},
    },
};

impl Service {
    /// Connections that are open.
    pub(crate) fn connections(&self, query: &Query) -> List {
        self.proxy.connections(query)
    }

    /// Has a connection reset.
    pub(crate) fn end(&self, which: End) -> Result<End, NoConnection> {
        let ended = self.proxy.end(which)?;
        tracing::info!(id = ended.id, "a connection is reset: somebody said so");
        Ok(ended)
    }

    /// The rules in force, and what they have selected.
    pub(crate) fn rules(&self) -> Rules {
        let hits = self.proxy.hits().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read what the rules have selected");
            HashMap::default()
        });
        let census = self.proxy.census();
        let status = |role, name: &Arc<str>| {
            let key = (role, Arc::clone(name));
            let HitCount { selected, failed } = hits.get(&key).copied().unwrap_or_default();
            RuleStatus {
                role: role.label().to_owned(),
                name: name.to_string(),
                hits: selected,
                failed,
                live: census.rules.get(&key).copied().unwrap_or(0),
                ..RuleStatus::default()
            }
        };
        let forward = self.config.forward.iter().map(|rule| RuleStatus {
            selects: config::selects(rule),
            action: action(rule).to_owned(),
            via: via(rule),
            ..status(Role::Forward, &rule.name)
        });
        let reverse = self.config.reverse.iter().map(|rule| RuleStatus {
            selects: config::takes(rule),
            action: arrival_action(rule).to_owned(),
            via: config::goes_to(&rule.via),
            ..status(Role::Reverse, &rule.name)
        });
        let gateway = self.config.gateway.iter().map(|rule| RuleStatus {
            selects: config::passes(rule),
            action: transit_action(rule).to_owned(),
            via: config::goes_to(&rule.via),
            ..status(Role::Gateway, &rule.name)
        });
        Rules {
            rules: forward.chain(reverse).chain(gateway).collect(),
        }
    }

    /// The upstreams in force, and how they are.
    pub(crate) fn upstreams(&self) -> Upstreams {
        let Census { upstreams, .. } = self.proxy.census();
        let mut groups = self.proxy.groups();
        let all = self.config.upstreams.iter().map(|(name, upstream)| {
            let settings = self.config.groups.get(name);
            let group = groups.iter().position(|group| *group.name == **name);
            UpstreamStatus {
                name: name.to_string(),
                way: config::way(upstream, settings.map(|group| &**group)),
                live: upstreams.get(name).copied().unwrap_or(0),
                group: group.map(|at| groups.swap_remove(at)),
            }
        });
        Upstreams {
            upstreams: all.collect(),
        }
    }

    /// The numbers for Prometheus.
    pub(crate) fn metrics(&self) -> String {
        metrics::text(self.status(), self.rules())
    }
}

fn action(rule: &Rule) -> &'static str {
    match rule.via {
        Via::Direct => "direct",
        Via::Refuse => "refuse",
        Via::Upstream(_) if rule.rewrite => "rewrite",
        Via::Upstream(_) => "relay",
    }
}

fn via(rule: &Rule) -> String {
    match &rule.via {
        Via::Direct | Via::Refuse => String::new(),
        Via::Upstream(name) => name.to_string(),
    }
}

fn arrival_action(rule: &Reverse) -> &'static str {
    match rule.via {
        _ if rule.steered_to().is_some() => "steer",
        _ if rule.is_relayed() => "relay",
        ReverseVia::Refuse => "refuse",
        _ => "direct",
    }
}

fn transit_action(rule: &Gateway) -> &'static str {
    match rule.via {
        _ if rule.is_relayed() => "relay",
        ReverseVia::Refuse => "refuse",
        _ => "direct",
    }
}
