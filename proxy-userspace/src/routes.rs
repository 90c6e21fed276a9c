//! What the relay does with the connections of each rule, for every policy that may still be in flight.
//!
//! A connection carries the generation of the policy that selected it. It may be accepted after a reload put the
//! next one in force, so the routes of the last few generations stay.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use proxy_common::RuleRef;
use thiserror::Error;

use crate::{
    group::{Group, Groups},
    rule::{PathChoice, Rule, Via},
    upstream::Upstream,
};

/// Generations that are kept.
const KEPT: usize = 8;

/// Where the connections of one rule go.
#[derive(Clone, Debug)]
pub struct Route {
    /// Name of the rule.
    pub rule: Arc<str>,
    /// Where to.
    pub upstream: Arc<Upstream>,
    /// Who says where to instead of the app, if it is a group.
    pub group: Option<Arc<Group>>,
    /// How bytes are moved.
    pub path: PathChoice,
}

/// A rule names an upstream that does not exist.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("rule {rule:?} goes via {upstream:?}, which is no upstream")]
pub struct UnknownUpstream {
    /// Name of the rule.
    pub rule: Arc<str>,
    /// The name that was not found.
    pub upstream: Arc<str>,
}

/// The routes of one policy, by the index of the rule; `None` for rules that never reach the relay.
pub type RouteTable = Arc<[Option<Route>]>;

/// Finds the upstream of every rule.
///
/// # Errors
/// When a rule names one that does not exist.
pub fn table(
    rules: &[Rule],
    upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
    groups: &Groups,
) -> Result<RouteTable, UnknownUpstream> {
    let route = |rule: &Rule| match &rule.via {
        Via::Direct | Via::Refuse => Ok(None),
        Via::Upstream(name) => upstreams
            .get(name)
            .map(|upstream| {
                Some(Route {
                    rule: Arc::clone(&rule.name),
                    upstream: Arc::clone(upstream),
                    group: groups.get(name).cloned(),
                    path: rule.path,
                })
            })
            .ok_or_else(|| UnknownUpstream {
                rule: Arc::clone(&rule.name),
                upstream: Arc::clone(name),
            }),
    };
    rules.iter().map(route).collect()
}

/// The routes of the last generations. Readers never wait.
#[derive(Debug, Default)]
pub struct Routes {
    generations: ArcSwap<Vec<(u32, RouteTable)>>,
}

impl Routes {
    /// Adds the routes of a generation. To be called before the kernel can select by it.
    pub fn publish(&self, generation: u32, table: &RouteTable) {
        self.generations.rcu(|known| {
            let mut next: Vec<_> = known
                .iter()
                .filter(|(known, _)| *known != generation)
                .cloned()
                .collect();
            next.push((generation, Arc::clone(table)));
            let surplus = next.len().saturating_sub(KEPT);
            next.drain(..surplus);
            next
        });
    }

    /// The route of a rule; `None` when its generation is long gone.
    #[must_use]
    pub fn find(&self, rule: RuleRef) -> Option<Route> {
        let generations = self.generations.load();
        let (_, table) = generations
            .iter()
            .rev()
            .find(|(generation, _)| *generation == rule.generation)?;
        table.get(rule.index as usize)?.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn table_of(name: &str) -> RouteTable {
        let upstream = Arc::new(Upstream {
            name: name.into(),
            hops: Vec::new(),
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(1),
        });
        Arc::new([Some(Route {
            rule: name.into(),
            upstream,
            group: None,
            path: PathChoice::Auto,
        })])
    }

    #[test]
    fn a_connection_keeps_the_route_of_its_generation() {
        let routes = Routes::default();
        for generation in 1..=u32::try_from(KEPT).unwrap() + 1 {
            routes.publish(generation, &table_of(&generation.to_string()));
        }
        let find = |generation| {
            routes.find(RuleRef {
                generation,
                index: 0,
            })
        };
        assert!(find(1).is_none(), "the oldest is gone");
        assert_eq!(&*find(2).unwrap().rule, "2");
        assert!(
            routes
                .find(RuleRef {
                    generation: 2,
                    index: 1
                })
                .is_none()
        );
    }

    #[test]
    fn publishing_a_generation_again_replaces_it() {
        let routes = Routes::default();
        routes.publish(1, &table_of("old"));
        routes.publish(1, &table_of("new"));
        let route = routes
            .find(RuleRef {
                generation: 1,
                index: 0,
            })
            .unwrap();
        assert_eq!(&*route.rule, "new");
    }
}
