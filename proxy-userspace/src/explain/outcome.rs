//! From what the rules decide to what becomes of the connection: what the hooks `connect` and `reverse` do with a decision.

use std::net::SocketAddr;

use proxy_common::{Action, Decision, fail_mode, verb};

use super::{
    InForce,
    passage::{self, Passing},
};
use crate::{
    config,
    forwarding::Forwarding,
    netlink::Way,
    rule::{PathChoice, ReverseVia, Via},
    status::{
        SpaceStatus,
        explanation::{Opener, Request},
    },
};

/// See [`Explanation`](crate::status::explanation::Explanation).
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) verdict: &'static str,
    pub(super) why: String,
    pub(super) rule: Option<String>,
    pub(super) via: Option<String>,
    pub(super) listeners: Vec<SocketAddr>,
    pub(super) on_relay_failure: Option<String>,
    pub(super) path: Option<String>,
}

const DIRECT: &str = "direct";
const REFUSE: &str = "refuse";

impl Outcome {
    pub(super) fn direct(why: impl Into<String>) -> Self {
        Self {
            verdict: DIRECT,
            why: why.into(),
            ..Self::default()
        }
    }

    /// As long as the relay can answer.
    fn by_the_relay(self, mut listeners: Vec<SocketAddr>, is_v4: bool, action: &Action) -> Self {
        listeners.retain(|listener| listener.is_ipv4() == is_v4);
        Self {
            listeners,
            on_relay_failure: Some(failure(action).to_owned()),
            ..self
        }
    }

    /// As it cannot.
    fn failing(self, action: &Action, why: &str) -> Self {
        Self {
            verdict: failure(action),
            listeners: Vec::new(),
            why: format!("{}, but {why}, so that `on_relay_failure` holds", self.why),
            ..self
        }
    }
}

const fn failure(action: &Action) -> &'static str {
    if action.on_relay_failure == fail_mode::REFUSE {
        REFUSE
    } else {
        DIRECT
    }
}

const fn verdict(action: &Action) -> &'static str {
    match action.verb {
        verb::REFUSE => REFUSE,
        verb::RELAY => "relay",
        verb::STEER => "steer",
        _ => DIRECT,
    }
}

/// The rule that was chosen, and what it does.
fn chosen<R>(decision: Decision, rules: &[R]) -> Option<(&R, Action)> {
    match decision {
        Decision::Unselected => None,
        Decision::Selected(rule, action) => Some((rules.get(rule.index as usize)?, action)),
    }
}

/// Of a connection that a process opens.
pub(super) fn opened(
    policy: &InForce<'_>,
    connection: &Request,
    process: &Opener,
    decision: Decision,
) -> Outcome {
    if policy.daemon == Some(process.pid) {
        return Outcome::direct("it is culvert's own, which is never captured");
    }
    let to = SocketAddr::new(connection.to.ip().to_canonical(), connection.to.port());
    // By a file nobody says where the daemon would be.
    let is_away =
        policy.daemon.is_some() && policy.network_namespace != Some(process.network_namespace);
    let mut spaces = policy.spaces.iter();
    let space = spaces.find(|space| is_away && space.namespace == process.network_namespace);
    let listeners = match space {
        Some(space) => space.listeners().collect(),
        None if is_away => Vec::new(),
        None => policy.listeners.clone(),
    };
    if listeners.contains(&to) {
        return Outcome::direct("that is culvert's own listener, which resets it");
    }
    let Some((rule, action)) = chosen(decision, policy.roles.forward) else {
        return Outcome::direct("no rule selects it");
    };
    let outcome = Outcome {
        verdict: verdict(&action),
        why: format!("rule {:?} is the first that selects it", rule.name),
        rule: Some(rule.name.to_string()),
        ..Outcome::default()
    };
    let Via::Upstream(upstream) = &rule.via else {
        return outcome;
    };
    // The hook knows the endpoints of the daemon's own namespace only.
    let rewrites = rule.rewrite && !is_away;
    let mut outcome = outcome.by_the_relay(listeners, to.is_ipv4(), &action);
    outcome.via = Some(shown(policy, upstream));
    outcome.path = Some(path(rule.path, rewrites));
    if is_away && let Some(why) = unheard(&action, space) {
        return outcome.failing(&action, &why);
    }
    if policy.daemon.is_some() && outcome.listeners.is_empty() {
        return outcome.failing(&action, "the relay has no listener of its family");
    }
    if rewrites {
        outcome.verdict = "rewrite";
        outcome.why.push_str(
            "; the hook sends it to an endpoint itself, or to the relay where none is fit for the socket",
        );
    }
    outcome
}

/// Why nobody listens in a network namespace that is not the daemon's.
fn unheard(action: &Action, space: Option<&SpaceStatus>) -> Option<String> {
    if action.spaces == 0 {
        return Some("its process is in another network namespace".to_owned());
    }
    let Some(space) = space else {
        return Some(
            "the daemon does not listen in the network namespace of its process yet (the connection has it look at once)"
                .to_owned(),
        );
    };
    let problem = space.problem.as_ref()?;
    Some(format!(
        "the daemon does not listen in the network namespace of its process: {problem}"
    ))
}

/// Of one that arrives.
pub(super) fn arrived(policy: &InForce<'_>, connection: &Request, decision: Decision) -> Outcome {
    if policy.listeners.contains(&connection.to) {
        return Outcome::direct("that is culvert's own listener");
    }
    let Some((rule, action)) = chosen(decision, policy.roles.reverse) else {
        return Outcome::direct("no rule takes it");
    };
    let mut outcome = Outcome {
        verdict: verdict(&action),
        why: format!("rule {:?} is the most specific that takes it", rule.name),
        rule: Some(rule.name.to_string()),
        ..Outcome::default()
    };
    outcome.via = match &rule.via {
        ReverseVia::Upstream(name) => Some(shown(policy, name)),
        via => Some(config::goes_to(via)).filter(|via| !via.is_empty()),
    };
    if ![verb::RELAY, verb::STEER].contains(&action.verb) {
        return outcome;
    }
    let mut outcome =
        outcome.by_the_relay(policy.listeners.clone(), connection.to.is_ipv4(), &action);
    if action.verb == verb::STEER {
        outcome.why.push_str(
            "; the service's own listener gets it, or the relay's while that is not known",
        );
        return outcome;
    }
    outcome.path = Some(path(rule.path, false));
    if policy.daemon.is_some() && outcome.listeners.is_empty() {
        return outcome.failing(&action, "the relay has no listener of its family");
    }
    outcome
}

/// Of one that passes through.
pub(super) fn passed(
    policy: &InForce<'_>,
    interface: &str,
    passing: &Passing,
    decision: Decision,
) -> Outcome {
    let forwarding = Forwarding::of(interface);
    let (forwards, family) = if passing.to.is_ipv4() {
        (forwarding.v4, "IPv4")
    } else {
        (forwarding.v6, "IPv6")
    };
    if !forwards {
        return Outcome::direct(format!(
            "{interface} forwards no {family}, so nothing passes through there"
        ));
    }
    // A gateway takes also what nobody knows the way to.
    let way = passage::way(passing);
    if way == Way::Here {
        return Outcome::direct(
            "it is for this host itself; what arrives is asked about by `--inbound`",
        );
    }
    let Some((rule, action)) = chosen(decision, policy.roles.gateway) else {
        return passage::left(&policy.fast_path, passing, way, "no rule selects it");
    };
    let outcome = Outcome {
        verdict: verdict(&action),
        why: format!("rule {:?} is the first that selects it", rule.name),
        rule: Some(rule.name.to_string()),
        ..Outcome::default()
    };
    match action.verb {
        verb::RELAY => Outcome {
            via: match &rule.via {
                ReverseVia::Upstream(name) => Some(shown(policy, name)),
                via => Some(config::goes_to(via)).filter(|via| !via.is_empty()),
            },
            on_relay_failure: Some(failure(&action).to_owned()),
            path: Some(path(rule.path, false)),
            ..outcome
        },
        verb::REFUSE => outcome,
        _ => Outcome {
            rule: outcome.rule,
            ..passage::left(
                &policy.fast_path,
                passing,
                way,
                &(outcome.why + " and says `direct`"),
            )
        },
    }
}

fn path(choice: PathChoice, rewrite: bool) -> String {
    if rewrite {
        "rewrite".to_owned()
    } else {
        config::called(choice).to_owned()
    }
}

/// An upstream, and what it is.
fn shown(policy: &InForce<'_>, name: &str) -> String {
    policy.upstreams.get(name).map_or_else(
        || name.to_owned(),
        |upstream| {
            let group = policy.groups.get(name).map(|group| &**group);
            format!("{name}: {}", config::way(upstream, group))
        },
    )
}
