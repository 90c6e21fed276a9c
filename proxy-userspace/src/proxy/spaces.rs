//! Listeners in the network namespaces of containers that rules name: opened when the first process is there, closed after the last.
//!
//! A listener holds its namespace, so it has to be known when nobody else does. Nothing tells when a process enters or leaves a
//! namespace: processes of the containers are looked at every second, at once when containers come and go, and when the hook has met
//! one in a namespace without listeners.

mod opener;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use proxy_common::{BePort, Space};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use self::opener::{OpenError, Opened, Opener};
use super::{Proxy, ProxyError, port};
use crate::{
    cgroup,
    close::CloseReason,
    intercept,
    netns::{Id, Netns},
    paint::all_lines,
    status::SpaceStatus,
};

/// A container that rules name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// As rules name it.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The directory of its cgroup.
    pub directory: PathBuf,
}

/// How soon it is known that a namespace is new, or that nobody is left in one.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two looks that connections ask for. It doubles with each that finds nothing to open: whoever is refused may
/// go on asking.
const SETTLE: Duration = Duration::from_millis(20);
/// So long a namespace may be without what a runtime sets up in it before that is worth a line.
const SETTING_UP: Duration = Duration::from_secs(3);

/// The namespaces.
#[derive(Default)]
pub(super) struct Spaces {
    /// There is none without rules that name containers, nor where nobody may be entered.
    staff: Option<Staff>,
    containers: Vec<Container>,
    open: BTreeMap<Id, Open>,
    /// Those that have none.
    refused: BTreeMap<Id, Refused>,
    /// Those that nobody is left in, and connections may be of.
    leaving: BTreeMap<u64, Instant>,
    looked: Option<Instant>,
    settle: Duration,
}

struct Staff {
    opener: Arc<Opener>,
    kernel: intercept::Spaces,
    wanted: Arc<Notify>,
    drain_timeout: Duration,
}

/// A namespace with listeners.
struct Open {
    cookie: u64,
    space: Space,
    container: Container,
}

/// A namespace without.
struct Refused {
    container: Container,
    why: String,
    /// Whether that will never change.
    is_final: bool,
    since: Instant,
    /// Whether that was said.
    is_told: bool,
    /// No other namespace is called as this one while it is open.
    held: Netns,
}

impl Refused {
    /// `None` when it is gone.
    fn new(
        inhabitant: &Inhabitant<'_>,
        id: Id,
        why: &Unopened,
        before: Option<Self>,
    ) -> Option<Self> {
        let sentence = why.sentence();
        let before = before.filter(|before| before.why == sentence);
        let (since, was_told, held) = match before {
            Some(before) => (before.since, before.is_told, before.held),
            None => (Instant::now(), false, held(inhabitant.pid, id)?),
        };
        // What is not set up yet is not worth a line.
        let is_usual = matches!(why, Unopened::Not(OpenError::LoopbackDown));
        let is_told = was_told || !is_usual || since.elapsed() >= SETTING_UP;
        if is_told && !was_told {
            tracing::error!(
                container = inhabitant.container.name,
                pid = inhabitant.pid,
                "no listeners for a container: {sentence}"
            );
        }
        Some(Self {
            container: inhabitant.container.clone(),
            why: sentence,
            is_final: matches!(why, Unopened::Not(OpenError::Users)),
            since,
            is_told,
            held,
        })
    }
}

/// The namespace of a process, if that is the one that is meant.
fn held(pid: u32, id: Id) -> Option<Netns> {
    let netns = Netns::of(pid).ok()?;
    (netns.id().ok()? == id).then_some(netns)
}

/// A process in a namespace, and the container that it is of.
struct Inhabitant<'a> {
    pid: u32,
    container: &'a Container,
}

impl Proxy {
    /// Has listeners opened in the namespaces of containers from now on. To be called while this process may enter them
    /// (`CAP_SYS_ADMIN`): the thread that does it keeps that.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn enter_namespaces(&mut self, drain_timeout: Duration) -> Result<(), ProxyError> {
        let opener = Opener::start(self.supervisor.workers()).map_err(ProxyError::Worker)?;
        let (opener, wanted) = (Arc::new(opener), Arc::new(Notify::new()));
        let (kernel, events) = self.interceptor.spaces(Arc::clone(&wanted))?;
        self.supervisor.hear_spaces(events);
        // Only set here, and once.
        _ = self.shared.abroad.set(Arc::clone(&opener) as _);
        self.spaces.staff = Some(Staff {
            opener,
            kernel,
            wanted,
            drain_timeout,
        });
        Ok(())
    }

    /// Whether [`Proxy::enter_namespaces`] was called.
    #[must_use]
    pub fn enters_namespaces(&self) -> bool {
        self.spaces.staff.is_some()
    }

    /// Opens listeners for these containers and no others. What is open of others ends as if they had.
    pub fn serve_containers(&mut self, containers: Vec<Container>) {
        self.spaces.containers = containers;
        self.follow_spaces(false);
    }

    /// Looks who is where, as a connection of one that is nowhere may have asked for.
    pub(super) fn follow_spaces(&mut self, was_asked: bool) {
        self.spaces.looked = Some(Instant::now());
        let mut found_one = false;
        let Some(staff) = &mut self.spaces.staff else {
            return;
        };
        let inhabited = inhabited(&self.spaces.containers);
        self.spaces
            .refused
            .retain(|id, _| inhabited.contains_key(id));
        for (id, inhabitant) in &inhabited {
            let container = inhabitant.container;
            if let Some(open) = self.spaces.open.get_mut(id) {
                // The network of a pod outlives its containers.
                open.container.clone_from(container);
                continue;
            }
            let refused = self.spaces.refused.get(id);
            if refused.is_some_and(|it| it.is_final) {
                continue;
            }
            match staff.open(inhabitant, *id, &self.supervisor) {
                Ok(open) => {
                    tracing::info!(
                        container = container.name,
                        cgroup = %container.directory.display(),
                        namespace = id.number(),
                        "listening in the network namespace of a container"
                    );
                    found_one = true;
                    self.spaces.refused.remove(id);
                    self.spaces.leaving.remove(&open.cookie);
                    self.spaces.open.insert(*id, open);
                }
                Err(Unopened::Not(OpenError::Gone)) => {}
                Err(why) => {
                    let before = self.spaces.refused.remove(id);
                    if let Some(now) = Refused::new(inhabitant, *id, &why, before) {
                        self.spaces.refused.insert(*id, now);
                    }
                }
            }
        }
        self.spaces.settle = if was_asked && !found_one {
            (self.spaces.settle * 2).min(LOOK_INTERVAL)
        } else {
            SETTLE
        };
        let left: Vec<Id> = self.spaces.open.keys().copied().collect();
        for id in left.iter().filter(|id| !inhabited.contains_key(id)) {
            if let Some(open) = self.spaces.open.remove(id) {
                staff.close(&open, &self.supervisor);
                let until = Instant::now() + staff.drain_timeout;
                self.spaces.leaving.insert(open.cookie, until);
            }
        }
        self.leave();
    }

    /// Lets go of namespaces that nobody is left in once their connections are over, or their time is.
    fn leave(&mut self) {
        let (live, now) = (&self.shared.live, Instant::now());
        let Some(staff) = &self.spaces.staff else {
            return;
        };
        self.spaces.leaving.retain(|cookie, until| {
            let here = live.find(|open| {
                let process = open.begun.process;
                process.and_then(|process| process.space) == Some(*cookie)
            });
            if now >= *until {
                for open in &here {
                    open.end(CloseReason::NamespaceGone);
                }
            }
            let stays = now < *until && !here.is_empty();
            if !stays {
                staff.opener.close(*cookie);
            }
            stays
        });
    }
}

impl Spaces {
    /// Returns when it is time to look, and whether a connection asks for it.
    pub(super) async fn time_to_look(&self) -> bool {
        let Some(staff) = self.staff.as_ref().filter(|_| !self.is_idle()) else {
            return std::future::pending().await;
        };
        let looked = self.looked.unwrap_or_else(Instant::now);
        tokio::select! {
            () = sleep_until(looked + LOOK_INTERVAL) => false,
            () = staff.wanted.notified() => {
                sleep_until(looked + self.settle).await;
                true
            }
        }
    }

    /// Why connections of containers are not captured, as far as that lasts.
    pub(super) fn obstacles(&self) -> impl Iterator<Item = String> {
        let lasting = self.refused.values().filter(|refused| refused.is_told);
        lasting.map(|refused| format!("container {:?}: {}", refused.container.name, refused.why))
    }

    /// How they are.
    pub(super) fn status(&self) -> Vec<SpaceStatus> {
        let open = self.open.iter().map(|(id, open)| SpaceStatus {
            listener_v4: listener(Ipv4Addr::LOCALHOST.into(), open.space.port_v4),
            listener_v6: listener(Ipv6Addr::LOCALHOST.into(), open.space.port_v6),
            ..SpaceStatus::of(&open.container, *id)
        });
        let refused = self.refused.iter().map(|(id, refused)| SpaceStatus {
            problem: Some(refused.why.clone()),
            ..SpaceStatus::of(&refused.container, *id)
        });
        open.chain(refused).collect()
    }

    fn is_idle(&self) -> bool {
        self.containers.is_empty() && self.open.is_empty() && self.leaving.is_empty()
    }
}

impl SpaceStatus {
    fn of(container: &Container, id: Id) -> Self {
        Self {
            container: container.name.clone(),
            id: container.id.clone(),
            cgroup: container.directory.display().to_string(),
            namespace: id.number(),
            ..Self::default()
        }
    }
}

fn listener(ip: IpAddr, port: BePort) -> Option<SocketAddr> {
    (port.get() != 0).then(|| SocketAddr::new(ip, port.get()))
}

/// Why a namespace has no listeners.
enum Unopened {
    Not(OpenError),
    Untold(intercept::InterceptError),
}

impl Unopened {
    fn sentence(&self) -> String {
        match self {
            Self::Not(error) => all_lines(error),
            Self::Untold(error) => all_lines(error),
        }
    }
}

impl Staff {
    fn open(
        &mut self,
        inhabitant: &Inhabitant<'_>,
        id: Id,
        workers: &super::Supervisor,
    ) -> Result<Open, Unopened> {
        let Opened { cookie, v4, v6 } = self
            .opener
            .open(inhabitant.pid, id)
            .map_err(Unopened::Not)?;
        let space = Space {
            port_v4: port(&v4),
            port_v6: port(&v6),
        };
        workers.open_in(cookie, in_pairs(v4, v6));
        let open = Open {
            cookie,
            space,
            container: inhabitant.container.clone(),
        };
        // Last: whoever is sent there is accepted.
        if let Err(error) = self.kernel.insert(cookie, space) {
            workers.close_in(cookie);
            self.opener.close(cookie);
            return Err(Unopened::Untold(error));
        }
        Ok(open)
    }

    fn close(&mut self, open: &Open, workers: &super::Supervisor) {
        if let Err(error) = self.kernel.remove(open.cookie) {
            tracing::error!(%error, "connections from a network namespace are sent to listeners that are gone");
        }
        workers.close_in(open.cookie);
    }
}

/// Of each worker those of both families.
fn in_pairs(v4: Vec<TcpListener>, v6: Vec<TcpListener>) -> Vec<Vec<TcpListener>> {
    let mut v6 = v6.into_iter();
    v4.into_iter()
        .map(|v4| std::iter::once(v4).chain(v6.next()).collect())
        .collect()
}

/// The namespaces, other than our own, that processes of containers are in.
fn inhabited(containers: &[Container]) -> BTreeMap<Id, Inhabitant<'_>> {
    let own = Id::own().ok();
    let mut found = BTreeMap::new();
    for container in containers {
        cgroup::walk(&container.directory, &mut |directory| {
            for pid in cgroup::processes(directory) {
                // One that has ended meanwhile is nowhere.
                if let Some(id) = Id::of(pid).ok().filter(|id| Some(*id) != own) {
                    found.entry(id).or_insert(Inhabitant { pid, container });
                }
            }
            true
        });
    }
    found
}
