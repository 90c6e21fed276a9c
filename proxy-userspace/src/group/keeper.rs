//! What is done for groups without being asked: names are resolved anew when their answers expire, endpoints are checked.
//!
//! One task for each name and each endpoint, on a runtime that carries no connection.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{AbortHandle, JoinError, JoinSet},
    time::sleep,
};

use super::{
    Group, Groups,
    check::{self, Check},
    roster::{Id, Resolved, Roster},
    settings::{Address, Settings, Source},
};
use crate::{
    balance::hash::below,
    upstream::{Answer, Dialer, ResolveError},
};

/// An answer that expires at once is used for so long all the same.
const SHORTEST_ANSWER: Duration = Duration::from_secs(1);
/// And none is used for longer.
const LONGEST_ANSWER: Duration = Duration::from_hours(1);
/// After the first failure a name is asked for again in this time, after each further one in twice the time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// At the most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The first checks of a group are spread over this time.
const FIRST_CHECKS: Duration = Duration::from_millis(200);

/// Keeps groups until it is told to stop.
pub async fn keep(
    dialer: Dialer,
    mut groups: watch::Receiver<Groups>,
    mut stop: watch::Receiver<bool>,
) {
    let dialer = Arc::new(dialer);
    let mut kept: BTreeMap<Arc<str>, (Arc<Group>, AbortHandle)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let now = groups.borrow_and_update().clone();
        kept.retain(|name, (group, task)| {
            let stays = now.get(name).is_some_and(|now| Arc::ptr_eq(now, group));
            if !stays {
                task.abort();
            }
            stays
        });
        for group in now.iter() {
            if !kept.contains_key(group.name()) {
                let task = tasks.spawn(tend(Arc::clone(group), Arc::clone(&dialer)));
                kept.insert(Arc::clone(group.name()), (Arc::clone(group), task));
            }
        }
        tokio::select! {
            changed = groups.changed() => if changed.is_err() { return },
            _ = stop.wait_for(|stop| *stop) => return,
            // Those of groups that are gone.
            Some(ended) = tasks.join_next() => report(ended),
        }
    }
}

/// A task ends by being told to, or by a fault of ours.
fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a name or an endpoint of a group is no longer looked after");
    }
}

/// The tasks of one group. Dropping it ends them.
#[derive(Default)]
struct Tasks {
    running: JoinSet<()>,
    names: BTreeMap<Source, AbortHandle>,
    checks: HashMap<Id, AbortHandle>,
    check: Option<Arc<Settings>>,
}

async fn tend(group: Arc<Group>, dialer: Arc<Dialer>) {
    let mut tasks = Tasks::default();
    loop {
        // Made before the look, so that no change is missed.
        let changed = group.changed.notified();
        tasks.follow(&group, &dialer);
        let next_look = group.next_look();
        tokio::select! {
            () = changed => {}
            // Connections look, too, but there may be none.
            () = sleep(next_look.unwrap_or_default()), if next_look.is_some() => {
                group.update(Roster::look);
                // A step of a slow start is no change of state.
                group.show();
            }
            Some(ended) = tasks.running.join_next() => report(ended),
        }
    }
}

impl Tasks {
    /// Ends what has become pointless and starts what is missing.
    fn follow(&mut self, group: &Arc<Group>, dialer: &Arc<Dialer>) {
        let (settings, endpoints) = group.to_be_kept();
        self.names.retain(|source, task| {
            let stays = settings.members.iter().any(|m| m.source == *source);
            if !stays {
                task.abort();
            }
            stays
        });
        for member in &settings.members {
            let source = &member.source;
            let is_name = !matches!(source, Source::Address(_));
            if is_name && !self.names.contains_key(source) {
                let work = resolve(Arc::clone(group), Arc::clone(dialer), source.clone());
                self.names.insert(source.clone(), self.running.spawn(work));
            }
        }
        let is_as_before = self.check.as_ref().is_some_and(|before| {
            before.check == settings.check && before.send_proxy == settings.send_proxy
        });
        let wanted = |id: &Id| is_as_before && endpoints.iter().any(|(other, ..)| other == id);
        self.checks.retain(|id, task| {
            let stays = wanted(id);
            if !stays {
                task.abort();
            }
            stays
        });
        if let Some(check) = &settings.check {
            for (id, source, address) in endpoints {
                if address == Address::Original || self.checks.contains_key(&id) {
                    continue;
                }
                let work = Checking {
                    group: Arc::clone(group),
                    dialer: Arc::clone(dialer),
                    settings: Arc::clone(&settings),
                    check: check.clone(),
                    id,
                    source,
                    address,
                };
                self.checks.insert(id, self.running.spawn(work.run()));
            }
        }
        self.check = Some(settings);
    }
}

/// Keeps one name's addresses. What was known of it stays when nobody answers.
async fn resolve(group: Arc<Group>, dialer: Arc<Dialer>, source: Source) {
    let mut pause = FIRST_PAUSE;
    let mut failed = false;
    loop {
        let rest = match ask(&dialer, &source).await {
            Ok(answer) => {
                if failed {
                    tracing::info!(group = &**group.name(), %source, "a name resolves again");
                }
                (failed, pause) = (false, FIRST_PAUSE);
                let found = answer.found;
                group.update(|roster, now| roster.resolved(&source, found, now));
                group.announce();
                answer.valid_for.clamp(SHORTEST_ANSWER, LONGEST_ANSWER)
            }
            Err(error) => {
                if !failed {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(
                        group = &**group.name(),
                        %source,
                        error,
                        "cannot resolve a name; what it stood for before stays"
                    );
                }
                failed = true;
                group.count_unresolved();
                pause = (pause * 2).min(LONGEST_PAUSE);
                pause / 2
            }
        };
        sleep(rest).await;
    }
}

async fn ask(dialer: &Dialer, source: &Source) -> Result<Answer<Resolved>, ResolveError> {
    let at = |ip, port| Address::Tcp((ip, port).into());
    match source {
        Source::Address(address) => Ok(Answer {
            found: vec![Resolved {
                address: address.clone(),
                weight: 1,
            }],
            valid_for: LONGEST_ANSWER,
        }),
        Source::Name { name, port } => {
            let answer = dialer.resolve(name).await?;
            Ok(answer.map(|ip| Resolved {
                address: at(ip, *port),
                weight: 1,
            }))
        }
        Source::Service(name) => {
            let services = dialer.services(name).await?;
            let mut all = Answer {
                found: Vec::new(),
                valid_for: services.valid_for,
            };
            for service in services.found {
                let addresses = dialer.resolve(&service.host).await?;
                all.valid_for = all.valid_for.min(addresses.valid_for);
                all.found
                    .extend(addresses.found.into_iter().map(|ip| Resolved {
                        address: at(ip, service.port),
                        weight: service.weight,
                    }));
            }
            Ok(all)
        }
    }
}

/// One endpoint being checked.
struct Checking {
    group: Arc<Group>,
    dialer: Arc<Dialer>,
    settings: Arc<Settings>,
    check: Check,
    id: Id,
    source: Source,
    address: Address,
}

impl Checking {
    async fn run(self) {
        let first = FIRST_CHECKS.min(self.check.interval);
        sleep(part_of(first)).await;
        loop {
            let (settings, check) = (&self.settings, &self.check);
            let outcome =
                check::run(&self.dialer, settings, check, &self.source, &self.address).await;
            let id = self.id;
            if let Some(outcome) = outcome {
                self.group
                    .update(|roster, now| roster.checked(id, outcome, now));
            }
            // A little apart, so that many do not beat in time.
            sleep(check.interval * 9 / 10 + part_of(check.interval / 5)).await;
        }
    }
}

/// A random part of a time.
fn part_of(time: Duration) -> Duration {
    let random = RandomState::new().hash_one(());
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(below(random, nanos))
}
