//! What the relay does with the connections of each rule, for every policy that may still be in flight.
//!
//! A connection that an app opened carries the generation of the policy that selected it; one that arrived carries nothing,
//! and is looked up as the kernel did. Either may be accepted after a reload put the next policy in force, so the routes of
//! earlier generations stay for a while.

mod names;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use proxy_common::{Arrival, Decision, RuleRef, Transit, select, transit, verb};
use thiserror::Error;

use crate::{
    group::{Group, Groups},
    policy::{Compiled, memory::MemoryTables},
    rule::{Departure, Gateway, Names, PathChoice, ProxyHeader, Reverse, ReverseVia, Rule, Via},
    upstream::Upstream,
};

pub use names::ByName;

/// Generations that are kept however old they are.
const LEAST_KEPT: usize = 8;
/// How long others are kept when the next one is in force: a connection that one selected is accepted only when its handshake is
/// over, and a SYN that is lost three times takes 7 s (`TCP_TIMEOUT_INIT` in `include/net/tcp.h`). What they hold, such as the
/// kernel's room for endpoints, nobody else has meanwhile.
const KEPT: Duration = Duration::from_secs(10);
/// Generations that are kept at most: somebody may reload all the time.
const MOST_KEPT: usize = 256;

/// Where the connections of one rule go.
#[derive(Clone, Debug)]
pub struct Route {
    /// Name of the rule.
    pub rule: Arc<str>,
    /// By way of what.
    pub upstream: Arc<Upstream>,
    /// Who says where to instead, if it is a group.
    pub group: Option<Arc<Group>>,
    /// Where to, if not to where they were going.
    pub destination: Option<SocketAddr>,
    /// Where to instead, by the name that the client asks for.
    pub names: Option<Arc<ByName>>,
    /// Senders whose connections begin with a PROXY header.
    pub accept_proxy: Arc<[IpNet]>,
    /// How whoever is connected to is told who the client is, if it is.
    pub send_proxy: Option<ProxyHeader>,
    /// Whether it is connected to from the client's address.
    pub keep_source: bool,
    /// Where connections of containers are made from.
    pub from: Departure,
    /// How bytes are moved.
    pub path: PathChoice,
}

/// Where connections can go.
#[derive(Clone, Debug)]
pub struct Target {
    /// See [`Route::upstream`].
    pub upstream: Arc<Upstream>,
    /// See [`Route::group`].
    pub group: Option<Arc<Group>>,
    /// See [`Route::destination`].
    pub destination: Option<SocketAddr>,
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

/// Upstreams by name.
pub type Upstreams = BTreeMap<Arc<str>, Arc<Upstream>>;

/// Finds the upstream of every rule.
///
/// # Errors
/// When a rule names one that does not exist.
pub fn table(
    rules: &[Rule],
    upstreams: &Upstreams,
    groups: &Groups,
) -> Result<RouteTable, UnknownUpstream> {
    let route = |rule: &Rule| match &rule.via {
        Via::Direct | Via::Refuse => Ok(None),
        Via::Upstream(name) => Ok(Some(Route {
            rule: Arc::clone(&rule.name),
            upstream: named(upstreams, name, &rule.name)?,
            group: groups.get(name).cloned(),
            destination: None,
            names: None,
            accept_proxy: Arc::default(),
            send_proxy: None,
            keep_source: false,
            from: rule.from,
            path: rule.path,
        })),
    };
    rules.iter().map(route).collect()
}

/// Finds the upstream of every rule for what arrives.
///
/// # Errors
/// When a rule names one that does not exist.
pub fn arrivals(
    rules: &[Reverse],
    upstreams: &Upstreams,
    groups: &Groups,
) -> Result<RouteTable, UnknownUpstream> {
    let route = |rule: &Reverse| {
        let ways = Ways {
            rule: &rule.name,
            connect_timeout: rule.connect_timeout,
            upstreams,
            groups,
        };
        let accept_proxy = rule.accept_proxy.as_slice();
        rule.is_relayed()
            .then(|| {
                Ok(Route {
                    accept_proxy: accept_proxy.into(),
                    send_proxy: rule.send_proxy,
                    keep_source: rule.keep_source,
                    ..ways.route(&rule.via, rule.names.as_ref(), rule.path)?
                })
            })
            .transpose()
    };
    rules.iter().map(route).collect()
}

/// Finds the upstream of every rule for what passes through.
///
/// # Errors
/// When a rule names one that does not exist.
pub fn transits(
    rules: &[Gateway],
    upstreams: &Upstreams,
    groups: &Groups,
) -> Result<RouteTable, UnknownUpstream> {
    let route = |rule: &Gateway| {
        let ways = Ways {
            rule: &rule.name,
            connect_timeout: rule.connect_timeout,
            upstreams,
            groups,
        };
        rule.is_relayed()
            .then(|| {
                Ok(Route {
                    keep_source: rule.keep_source,
                    ..ways.route(&rule.via, rule.names.as_ref(), rule.path)?
                })
            })
            .transpose()
    };
    rules.iter().map(route).collect()
}

/// Where connections of a rule can go that were not opened on this host.
#[derive(Clone, Copy)]
struct Ways<'a> {
    rule: &'a Arc<str>,
    connect_timeout: Duration,
    upstreams: &'a Upstreams,
    groups: &'a Groups,
}

impl Ways<'_> {
    fn route(
        self,
        via: &ReverseVia,
        names: Option<&Names>,
        path: PathChoice,
    ) -> Result<Route, UnknownUpstream> {
        let own = self.target(via)?;
        let names = match names {
            None => None,
            Some(names) => Some(Arc::new(ByName::new(names, own.clone(), |via| {
                self.target(via)
            })?)),
        };
        let refused = || Target {
            upstream: self.unnamed("refuse".into()),
            group: None,
            destination: None,
        };
        // Without names there always is one, and with names it is asked for by them alone.
        let Target {
            upstream,
            group,
            destination,
        } = own.unwrap_or_else(refused);
        Ok(Route {
            rule: Arc::clone(self.rule),
            upstream,
            group,
            destination,
            names,
            accept_proxy: Arc::default(),
            send_proxy: None,
            keep_source: false,
            from: Departure::Host,
            path,
        })
    }

    /// Where connections go that the relay takes; `None` for those that it resets.
    fn target(self, via: &ReverseVia) -> Result<Option<Target>, UnknownUpstream> {
        let (upstream, destination) = match via {
            ReverseVia::Direct | ReverseVia::Refuse => return Ok(None),
            ReverseVia::Original => (self.unnamed("original".into()), None),
            ReverseVia::Address(to) => (self.unnamed(to.to_string().into()), Some(*to)),
            ReverseVia::Upstream(name) => (named(self.upstreams, name, self.rule)?, None),
        };
        let group = match via {
            ReverseVia::Upstream(name) => self.groups.get(name).cloned(),
            _ => None,
        };
        Ok(Some(Target {
            upstream,
            group,
            destination,
        }))
    }

    /// The upstream of a rule that says itself where to.
    fn unnamed(self, name: Arc<str>) -> Arc<Upstream> {
        Arc::new(Upstream {
            name,
            hops: Vec::new(),
            connect_timeout: self.connect_timeout,
            handshake_timeout: self.connect_timeout,
        })
    }
}

fn named(
    upstreams: &Upstreams,
    name: &Arc<str>,
    rule: &Arc<str>,
) -> Result<Arc<Upstream>, UnknownUpstream> {
    upstreams.get(name).cloned().ok_or_else(|| UnknownUpstream {
        rule: Arc::clone(rule),
        upstream: Arc::clone(name),
    })
}

/// The routes of one policy.
#[derive(Clone, Debug, Default)]
pub struct ByRole {
    /// Of what apps of this host open.
    pub forward: RouteTable,
    /// Of what arrives.
    pub arrivals: RouteTable,
    /// Of what passes through.
    pub transits: RouteTable,
}

/// The routes of one generation.
#[derive(Clone, Debug)]
pub struct Generation {
    number: u32,
    /// Since when it is not the newest.
    followed: Option<Instant>,
    forward: RouteTable,
    /// With the tables by which they are found; `None` without rules for what arrives.
    arrivals: Option<Arc<(MemoryTables, RouteTable)>>,
    /// As `arrivals`, for what passes through.
    transits: Option<Arc<(MemoryTables, RouteTable)>>,
}

impl Generation {
    /// Of a policy that will have this number.
    #[must_use]
    pub fn new(number: u32, compiled: &Compiled, routes: ByRole) -> Self {
        let ByRole {
            forward,
            arrivals,
            transits,
        } = routes;
        let with = |tables: fn(u32, &Compiled) -> MemoryTables, routes: RouteTable| {
            (!routes.is_empty()).then(|| Arc::new((tables(number, compiled), routes)))
        };
        Self {
            number,
            followed: None,
            forward,
            arrivals: with(MemoryTables::for_arrivals, arrivals),
            transits: with(MemoryTables::for_transits, transits),
        }
    }
}

/// The routes of the last generations. Readers never wait.
#[derive(Debug, Default)]
pub struct Routes {
    generations: ArcSwap<Vec<Generation>>,
}

impl Routes {
    /// Adds the routes of a generation. To be called before the kernel can select by it.
    pub fn publish(&self, generation: &Generation) {
        self.publish_at(generation, Instant::now());
    }

    fn publish_at(&self, generation: &Generation, now: Instant) {
        self.generations.rcu(|known| {
            let mut next: Vec<_> = known
                .iter()
                .filter(|known| known.number != generation.number)
                .map(|known| Generation {
                    followed: Some(known.followed.unwrap_or(now)),
                    ..known.clone()
                })
                .collect();
            next.push(generation.clone());
            let old = next.iter().take_while(|known| {
                let followed = known.followed.unwrap_or(now);
                now.duration_since(followed) > KEPT
            });
            let surplus = old.count().min(next.len().saturating_sub(LEAST_KEPT));
            let surplus = surplus.max(next.len().saturating_sub(MOST_KEPT));
            next.drain(..surplus);
            next
        });
    }

    /// The route of a rule; `None` when its generation is long gone.
    #[must_use]
    pub fn find(&self, rule: RuleRef) -> Option<Route> {
        let generations = self.generations.load();
        let generation = generations
            .iter()
            .rev()
            .find(|generation| generation.number == rule.generation)?;
        generation.forward.get(rule.index as usize)?.clone()
    }

    /// Whether connections may have arrived that no app of this host opened, as far as is known.
    #[must_use]
    pub fn take_arrivals(&self) -> bool {
        let generations = self.generations.load();
        generations.iter().any(|known| known.arrivals.is_some())
    }

    /// The route of a connection that was to pass through: by the newest policy that has the relay take it.
    #[must_use]
    pub fn of_transit(&self, passing: &impl Transit) -> Option<Route> {
        let generations = self.generations.load();
        let newest_first = generations.iter().rev();
        newest_first
            .filter_map(|generation| generation.transits.as_deref())
            .find_map(|(tables, routes)| match transit(tables, passing) {
                Decision::Selected(rule, action) if action.verb == verb::RELAY => {
                    routes.get(rule.index as usize)?.clone()
                }
                _ => None,
            })
    }

    /// The route of a connection that arrived: by the newest policy that has the relay take it.
    #[must_use]
    pub fn of_arrival(&self, arrival: &impl Arrival) -> Option<Route> {
        let generations = self.generations.load();
        let newest_first = generations.iter().rev();
        newest_first
            .filter_map(|generation| generation.arrivals.as_deref())
            .find_map(|(tables, routes)| match select(tables, arrival) {
                Decision::Selected(rule, action)
                    if action.verb == verb::RELAY || action.verb == verb::STEER =>
                {
                    routes.get(rule.index as usize)?.clone()
                }
                _ => None,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            destination: None,
            names: None,
            accept_proxy: Arc::default(),
            send_proxy: None,
            keep_source: false,
            from: Departure::Host,
            path: PathChoice::Auto,
        })])
    }

    fn generation_of(number: u32, name: &str) -> Generation {
        Generation::new(
            number,
            &Compiled::default(),
            ByRole {
                forward: table_of(name),
                ..ByRole::default()
            },
        )
    }

    #[test]
    fn a_connection_keeps_the_route_of_its_generation() {
        let routes = Routes::default();
        let begun = Instant::now();
        let publish = |generation: u32, at| {
            routes.publish_at(&generation_of(generation, &generation.to_string()), at);
        };
        let find = |generation, index| routes.find(RuleRef { generation, index });
        let last = u32::try_from(LEAST_KEPT).unwrap() + 2;
        for generation in 1..=last {
            publish(generation, begun);
        }
        assert_eq!(&*find(1, 0).unwrap().rule, "1", "old, but not for long");
        assert!(find(1, 1).is_none());
        publish(last + 1, begun + 2 * KEPT);
        assert!(find(3, 0).is_none(), "one of those that nobody needs");
        assert_eq!(&*find(4, 0).unwrap().rule, "4", "one of the last");
    }

    #[test]
    fn no_more_generations_are_kept_than_anybody_needs() {
        let routes = Routes::default();
        let last = 2 * u32::try_from(MOST_KEPT).unwrap();
        for generation in 1..=last {
            routes.publish(&generation_of(generation, "any"));
        }
        assert_eq!(routes.generations.load().len(), MOST_KEPT);
        assert!(
            routes
                .find(RuleRef {
                    generation: last,
                    index: 0
                })
                .is_some()
        );
    }

    #[test]
    fn publishing_a_generation_again_replaces_it() {
        let routes = Routes::default();
        routes.publish(&generation_of(1, "old"));
        routes.publish(&generation_of(1, "new"));
        let route = routes
            .find(RuleRef {
                generation: 1,
                index: 0,
            })
            .unwrap();
        assert_eq!(&*route.rule, "new");
    }
}
