//! What gets no new connections because somebody said so: endpoints of groups, and bindings of rules for what arrives.
//!
//! Connections that are there may finish until a deadline, and are reset then. An endpoint is passed over by its group, which
//! knows of it; the addresses and ports of a binding are, as long as it is drained, those of a rule that says direct. It lasts
//! until it is taken back, the daemon ends, or a reload no longer lists what is drained: what is switched off must not be switched
//! on by a reload for another reason.

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    close::CloseReason,
    config,
    group::{Drained, Group, Groups},
    live::{Live, Open},
    record::Role,
    rule::{Listen, Reverse, ReverseVia},
    status::DrainStatus,
};

/// What a client of the daemon says is to be drained, or not any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// An endpoint as the file lists it, also `GROUP/ENDPOINT`; a rule for what arrives by its name; or what it listens on, also
    /// `RULE/LISTEN`.
    pub target: String,
    /// When connections that are left are reset; as the daemon's own `drain_timeout` if nothing is said. Has no meaning where
    /// something is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// What was drained, and gets connections again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// As the daemon calls it.
    pub target: String,
}

/// Why something cannot be drained, or restored.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DrainError {
    /// There is no such thing.
    #[error(
        "there is no {0:?} to drain; it can be an endpoint as the file lists it, a `[[reverse]]` rule by its name, or what such a rule \
         listens on"
    )]
    Unknown(String),
    /// There are several.
    #[error("{text:?} can be {}; say which", candidates.join(" or "))]
    Ambiguous {
        /// What was said.
        text: String,
        /// How they can be told apart.
        candidates: Vec<String>,
    },
    /// It is not drained.
    #[error("{0} is not drained")]
    NotDrained(String),
}

/// What can be drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An endpoint of a group, or all that come from an entry.
    Endpoint {
        /// Name of the group.
        group: Arc<str>,
        /// What it is called.
        name: String,
    },
    /// Addresses and ports of a rule for what arrives.
    Binding {
        /// Name of the rule.
        rule: Arc<str>,
        /// Some of those that it listens on, as the file has them, and how they were written; all of them if there are none.
        listens: Option<(Vec<Listen>, String)>,
    },
}

/// By this it can be told from all others.
impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint { group, name } => write!(formatter, "{group}/{name}"),
            Self::Binding {
                rule,
                listens: None,
            } => formatter.write_str(rule),
            Self::Binding {
                rule,
                listens: Some((_, text)),
            } => write!(formatter, "{rule}/{text}"),
        }
    }
}

impl Target {
    /// Finds what somebody means.
    ///
    /// # Errors
    /// When there is no such thing, or more than one.
    pub fn find(text: &str, rules: &[Reverse], groups: &Groups) -> Result<Self, DrainError> {
        let mut found = Self::all(text, rules, groups);
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(DrainError::Unknown(text.to_owned())),
            (Some(target), true) => Ok(target),
            (Some(last), false) => Err(DrainError::Ambiguous {
                text: text.to_owned(),
                candidates: found.iter().chain([&last]).map(Self::to_string).collect(),
            }),
        }
    }

    fn all(text: &str, rules: &[Reverse], groups: &Groups) -> Vec<Self> {
        let mut found = Vec::new();
        let (owner, rest) = match text.split_once('/') {
            Some((owner, rest)) => (Some(owner), Some(rest)),
            None => (None, None),
        };
        for group in groups.iter() {
            let named = rest.filter(|_| owner == Some(&**group.name()));
            let name = named.into_iter().chain([text]).find_map(config::endpoint);
            found.extend(
                name.filter(|name| group.lists(name))
                    .map(|name| Self::Endpoint {
                        group: Arc::clone(group.name()),
                        name,
                    }),
            );
        }
        for rule in rules {
            let name = || Arc::clone(&rule.name);
            if *rule.name == *text {
                let (rule, listens) = (name(), None);
                found.push(Self::Binding { rule, listens });
                continue;
            }
            let named = rest.filter(|_| owner == Some(&*rule.name));
            let listens = named.into_iter().chain([text]).find_map(|text| {
                let listens = config::listens_of(text)?;
                let has_all = listens.iter().all(|one| rule.listen.contains(one));
                has_all.then(|| (listens, text.to_owned()))
            });
            found.extend(listens.map(|listens| Self::Binding {
                rule: name(),
                listens: Some(listens),
            }));
        }
        found
    }

    /// Whether it is still there.
    fn is_listed(&self, rules: &[Reverse], groups: &Groups) -> bool {
        match self {
            // The group has looked, and forgotten it if it is gone.
            Self::Endpoint { group, name } => groups
                .get(group)
                .is_some_and(|group| group.drained(name).is_some()),
            Self::Binding { rule, listens } => rules.iter().any(|other| {
                let listens = listens.iter().flat_map(|(listens, _)| listens);
                other.name == *rule && listens.into_iter().all(|one| other.listen.contains(one))
            }),
        }
    }

    /// Whether it is a binding and has this.
    fn binds(&self, rule: &str, has: impl Fn(&Listen) -> bool) -> bool {
        match self {
            Self::Endpoint { .. } => false,
            Self::Binding { rule: own, listens } => {
                **own == *rule
                    && listens
                        .as_ref()
                        .is_none_or(|(listens, _)| listens.iter().any(has))
            }
        }
    }
}

/// Something that is drained.
#[derive(Debug)]
struct Drain {
    target: Target,
    since: Instant,
    deadline: Instant,
    done: bool,
}

/// A connection that begins while its binding is drained may have been ours by then: its handshake goes on with the listener that
/// it began with.
const HANDSHAKE: Duration = Duration::from_millis(500);
/// How often is looked for what is left when the time is over: a connection may have been on its way to its endpoint.
const SWEEP: Duration = Duration::from_millis(100);

/// All that is drained.
#[derive(Debug, Default)]
pub struct Drains(Vec<Drain>);

impl Drains {
    /// Gives something no new connections; what it has may finish for a time. Where it is drained already the time is another one.
    pub fn begin(&mut self, target: Target, time: Duration, groups: &Groups) {
        if let Target::Endpoint { group, name } = &target
            && let Some(group) = groups.get(group)
        {
            group.drain(name);
        }
        let now = Instant::now();
        // Beyond what the clock can tell is never.
        let deadline = now.checked_add(time).unwrap_or(now + NEVER);
        if let Some(known) = self.0.iter_mut().find(|known| known.target == target) {
            known.deadline = deadline;
            known.done = false;
        } else {
            self.0.push(Drain {
                target,
                since: now,
                deadline,
                done: false,
            });
        }
    }

    /// Gives it connections again.
    ///
    /// # Errors
    /// When it gets them.
    pub fn end(&mut self, target: &Target, groups: &Groups) -> Result<(), DrainError> {
        let Some(at) = self.0.iter().position(|known| known.target == *target) else {
            return Err(DrainError::NotDrained(target.to_string()));
        };
        self.0.remove(at);
        if let Target::Endpoint { group, name } = target
            && let Some(group) = groups.get(group)
        {
            group.restore(name);
        }
        Ok(())
    }

    /// Forgets what is no longer listed, once groups know their new settings.
    pub fn keep_listed(&mut self, rules: &[Reverse], groups: &Groups) {
        self.0.retain(|drain| {
            let stays = drain.target.is_listed(rules, groups);
            if !stays {
                tracing::info!(target = %drain.target, "no longer drained: it is gone");
            }
            stays
        });
    }

    /// The rules for what arrives as they are to be in force: what is drained of them says direct, so that no less specific rule takes
    /// it instead.
    #[must_use]
    pub fn rules<'a>(&self, rules: &'a [Reverse]) -> Cow<'a, [Reverse]> {
        let is_drained = |rule: &Reverse, listen: &Listen| {
            let same = |other: &Listen| other == listen;
            self.0
                .iter()
                .any(|drain| drain.target.binds(&rule.name, same))
        };
        let any = |rule: &Reverse| rule.listen.iter().any(|listen| is_drained(rule, listen));
        if !rules.iter().any(any) {
            return Cow::Borrowed(rules);
        }
        let split = |rule: &Reverse| {
            let listen = rule.listen.iter().cloned();
            let (drained, left) = listen.partition(|listen| is_drained(rule, listen));
            let taken = Reverse {
                listen: left,
                ..rule.clone()
            };
            let direct = Reverse {
                listen: drained,
                via: ReverseVia::Direct,
                names: None,
                steer: false,
                ..rule.clone()
            };
            [taken, direct]
                .into_iter()
                .filter(|rule| !rule.listen.is_empty())
        };
        rules.iter().flat_map(split).collect()
    }

    /// When there is something to do; `None` if there is nothing.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        let left = self.0.iter().filter(|drain| !drain.done);
        left.map(|drain| {
            if drain.deadline > now {
                drain.deadline
            } else {
                now + SWEEP
            }
        })
        .min()
    }

    /// Resets what is left of those whose time is over.
    pub fn sweep(&mut self, live: &Live, groups: &Groups) {
        let now = Instant::now();
        for drain in self
            .0
            .iter_mut()
            .filter(|drain| !drain.done && drain.deadline <= now)
        {
            let left = drain.left(live, groups);
            if !left.open.is_empty() {
                let (target, left) = (&drain.target, left.open.len());
                tracing::warn!(%target, left, "the time to drain is over; resetting connections");
            }
            for open in &left.open {
                open.end(CloseReason::Drained);
            }
            drain.done = drain.is_done(&left, now);
        }
    }

    /// What is drained, and what is left of it.
    #[must_use]
    pub fn status(&self, live: &Live, groups: &Groups) -> Vec<DrainStatus> {
        let now = Instant::now();
        let all = self.0.iter().map(|drain| {
            let left = drain.left(live, groups);
            let time = drain.deadline.saturating_duration_since(now);
            DrainStatus {
                target: drain.target.to_string(),
                live: left.count,
                left_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
                done: drain.is_done(&left, now),
            }
        });
        all.collect()
    }
}

/// Longer than any daemon runs.
const NEVER: Duration = Duration::from_hours(24 * 365 * 30);

/// What is left of something that is drained.
struct Left {
    open: Vec<Arc<Open>>,
    /// Those, and such as are being made.
    count: u64,
}

impl Drain {
    fn left(&self, live: &Live, groups: &Groups) -> Left {
        match &self.target {
            Target::Endpoint { group, name } => {
                let drained = groups
                    .get(group)
                    .and_then(|group| Group::drained(group, name));
                let Drained { ids, live: count } = drained.unwrap_or_default();
                let is_there = |open: &Open| {
                    let endpoint = open.endpoint.get();
                    endpoint.is_some_and(|(of, id)| of == group && ids.contains(id))
                };
                let open = live.find(is_there);
                Left {
                    count: u64::from(count).max(open.len() as u64),
                    open,
                }
            }
            target @ Target::Binding { .. } => {
                let open = live.find(|open| {
                    let begun = &open.begun;
                    let (ip, port) = (begun.orig_dst.ip().to_canonical(), begun.orig_dst.port());
                    let has =
                        |listen: &Listen| listen.ports.contains(&port) && listen.net.contains(&ip);
                    begun.role == Role::Reverse && target.binds(&begun.rule, has)
                });
                Left {
                    count: open.len() as u64,
                    open,
                }
            }
        }
    }

    fn is_done(&self, left: &Left, now: Instant) -> bool {
        let may_begin =
            matches!(self.target, Target::Binding { .. }) && now < self.since + HANDSHAKE;
        left.count == 0 && !may_begin
    }
}

#[cfg(test)]
mod tests;
