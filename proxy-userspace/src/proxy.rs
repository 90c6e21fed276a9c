//! A running proxy: the kernel side, the workers, and the heartbeat between them.
//!
//! The order of things is here. Start: listeners, programs, workers, policy, and only then the hooks are attached.
//! Stop: the hooks are detached first, what is open may finish until a deadline, the rest is reset. `daemon`, `exec`
//! and `demo` are three ways to use it.

mod calibrator;
mod drain;
mod ending;
mod gates;
mod guarding;
mod hits;
mod keeper;
mod look;
mod needs;
mod router;
mod shortcut;
mod sources;
mod spaces;
mod status;
mod steer;

use std::{
    convert::Infallible,
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    num::NonZeroUsize,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use proxy_common::{BePort, Relay};
use thiserror::Error;
use tokio::sync::watch;

pub use self::{
    guarding::GuardedBy,
    needs::GuardNeeds,
    router::{RouterError, obstacle},
    sources::{Returns, Shown, SourceError, Unanswered},
    spaces::Container,
};
pub(crate) use self::{
    hits::HitCount,
    look::{Census, NoConnection},
};

use self::{
    calibrator::Calibrator, gates::Gates, hits::Tally, keeper::Keeper, look::Moved,
    sources::Sources, spaces::Spaces,
};
use crate::{
    delivery::DeliveryError,
    drain::Drains,
    group::{Groups, SettingsByName},
    intercept::{Features, InterceptError, Interceptor, Overlap, Predecessor, Records, Wheels},
    policy::{CompileError, Names, compile},
    process,
    pulse::{Pulse, Supervisor},
    record::AccessLog,
    relay::{Paths, Worth, shortcut::Proofs},
    routes::{self, ByRole, Generation, Routes, UnknownUpstream, Upstreams},
    rule::{IngressHook, PathChoice, Roles, Rule},
    shared::{Shared, Stats},
    socket, worker,
};

/// What a proxy is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Threads that relay.
    pub workers: NonZeroUsize,
    /// Relayed connections at a time.
    pub max_connections: usize,
    /// Intercepted connections not accepted yet, at a time.
    pub max_pending: u32,
    /// Silence after which the kernel holds the relay for hung.
    pub heartbeat_timeout: Duration,
    /// Silence after which a connection is closed.
    pub idle_timeout: Option<Duration>,
    /// When the kernel is to move the bytes of a connection whose rule asks for it.
    pub promote: Worth,
    /// Where close records go.
    pub access_log: Option<AccessLog>,
    /// Whether rules want servers to see the addresses of clients; threads that may connect so are started only then.
    pub keeps_sources: bool,
    /// How programs are attached to the ingress of interfaces.
    pub ingress: IngressHook,
    /// By what rules that refuse outlive the daemon.
    pub guarded_by: GuardedBy,
    /// Whether faults in the hooks are logged one by one.
    pub log_faults: bool,
}

/// Why a proxy cannot be started or changed.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// No listener.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A worker thread cannot be started.
    #[error("cannot start a worker thread")]
    Worker(#[source] io::Error),
    /// Who is to be taken over from cannot be.
    #[error(
        "process {pid}, which is to be taken over from, serves another network namespace; start this one there (`nsenter \
         --net=/proc/{pid}/ns/net`)"
    )]
    Elsewhere {
        /// The process.
        pid: u32,
    },
    /// Servers cannot be shown the addresses of clients.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Packets of what passes through cannot be delivered here.
    #[error("cannot have packets delivered that pass through")]
    Delivery(#[from] DeliveryError),
    /// It is not known by which interfaces servers answer.
    #[error("cannot list the interfaces of this host, by which servers answer (`keep_source`)")]
    Interfaces(#[source] io::Error),
    /// There is no fast path.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// The kernel side.
    #[error(transparent)]
    Intercept(#[from] InterceptError),
    /// The rules do not fit the kernel's tables.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A rule goes nowhere.
    #[error(transparent)]
    Route(#[from] UnknownUpstream),
    /// No such cgroup.
    #[error("cannot open the cgroup {path}")]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl ProxyError {
    /// Whether a privilege or a kernel feature is missing, rather than something having gone wrong.
    #[must_use]
    pub const fn is_missing_feature(&self) -> bool {
        match self {
            Self::Intercept(error) => error.is_missing_feature(),
            Self::Source(error) => error.is_missing_feature(),
            Self::Router(error) => !matches!(error, RouterError::Interfaces(_)),
            Self::Listen { .. }
            | Self::Elsewhere { .. }
            | Self::Worker(_)
            | Self::Delivery(_)
            | Self::Interfaces(_)
            | Self::Compile(_)
            | Self::Route(_)
            | Self::Cgroup { .. } => false,
        }
    }
}

/// Connections that may wait in the kernel for each listener; capped by `net.core.somaxconn`.
pub(crate) const BACKLOG: i32 = 4096;

/// A running proxy.
pub struct Proxy {
    interceptor: Interceptor,
    /// Where the hooks find endpoints, once a rule wants them to.
    wheels: Option<Arc<Wheels>>,
    features: Features,
    shared: Arc<Shared>,
    calibrator: Calibrator,
    supervisor: Supervisor,
    pending: Records,
    groups: Groups,
    keeper: Option<Keeper>,
    drains: Drains,
    hits: Tally,
    /// What somebody was told of.
    told: Mutex<Moved>,
    stop: watch::Sender<bool>,
    generation: u32,
    /// Of all workers: the hook on what arrives gives connections to them.
    listeners: Vec<TcpListener>,
    /// Known once the hooks are attached.
    own_cgroup: Option<PathBuf>,
    takes_arrivals: bool,
    sources: Sources,
    gates: Box<Gates>,
    spaces: Spaces,
    guarded_by: GuardedBy,
}

/// What the programs are to know from the start.
fn of_kernel(settings: &Settings, predecessor: Option<&Predecessor>) -> crate::intercept::Settings {
    crate::intercept::Settings {
        max_pending: settings.max_pending,
        max_own: ending::own_connections(settings.max_connections, predecessor),
        log_faults: settings.log_faults,
        ingress: settings.ingress,
        overlap: Overlap::Cut,
    }
}

impl Proxy {
    /// Starts listeners, programs and workers, beside those of a daemon whose place this one takes. Nothing is intercepted yet.
    ///
    /// # Errors
    /// When something is missing; nothing is left behind then.
    pub fn start(
        settings: &Settings,
        predecessor: Option<&Predecessor>,
    ) -> Result<Self, ProxyError> {
        let workers = settings.workers.get();
        let v4 = listeners(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), workers)?;
        // Without IPv6 in this namespace nobody can connect over it; the hook then applies the fail mode.
        let v6 = listeners(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), workers)
            .inspect_err(|error| tracing::info!(%error, "no IPv6 listener"))
            .unwrap_or_default();
        let shown: io::Result<Vec<_>> = v4.iter().chain(&v6).map(TcpListener::try_clone).collect();
        let shown = shown.map_err(ProxyError::Worker)?;
        let features = Features::probe();
        let kernel = of_kernel(settings, predecessor);
        let mut interceptor = Interceptor::load(kernel, &features, predecessor)?;
        let first = v4.first().ok_or(io::ErrorKind::InvalidInput);
        let first = first.map_err(|kind| ProxyError::Worker(kind.into()))?;
        let netns_cookie = interceptor.netns_cookie(first)?;
        if let Some(predecessor) = predecessor
            && predecessor.netns_cookie() != netns_cookie
        {
            return Err(ProxyError::Elsewhere {
                pid: predecessor.pid(),
            });
        }
        interceptor.set_relay(&Relay {
            netns_cookie,
            heartbeat_timeout: nanoseconds(settings.heartbeat_timeout),
            port_v4: port(&v4),
            port_v6: port(&v6),
            process: process::own(),
            ..Relay::default()
        })?;

        let shared = Arc::new(shared(settings));
        let sources = Sources::new(settings.keeps_sources);
        let (stop, stopped) = watch::channel(false);
        let mut handles = Vec::with_capacity(workers);
        let mut v6 = v6.into_iter();
        for (number, v4) in v4.into_iter().enumerate() {
            let parts = worker::Parts {
                listeners: [Some(v4), v6.next()].into_iter().flatten().collect(),
                original_dst: Box::new(interceptor.records(netns_cookie)?),
                exempt: Arc::new(interceptor.exempter()?),
                shortcuts: Some(Arc::new(interceptor.lanes()?)),
                foreign: sources.foreign.clone(),
                max_connections: settings.max_connections.div_ceil(workers),
                keeps_alive: number == 0,
            };
            let name = format!("relay-{number}");
            let handle = worker::start(name, parts, Arc::clone(&shared), stopped.clone());
            handles.push(handle.map_err(ProxyError::Worker)?);
        }
        let pulse = Pulse::new(
            handles,
            interceptor.heartbeat()?,
            settings.heartbeat_timeout,
        );
        let (counters, log) = (interceptor.counters()?, interceptor.log_reader());
        Ok(Self {
            supervisor: Supervisor::new(pulse, counters, log),
            pending: interceptor.records(netns_cookie)?,
            wheels: None,
            features,
            calibrator: Calibrator::new(Arc::clone(&shared.paths), settings.promote),
            shared,
            groups: Groups::default(),
            keeper: None,
            drains: Drains::default(),
            hits: Tally::new(interceptor.hits()?),
            told: Mutex::default(),
            interceptor,
            stop,
            generation: 0,
            listeners: shown,
            own_cgroup: None,
            takes_arrivals: false,
            sources,
            gates: Box::default(),
            spaces: Spaces::default(),
            guarded_by: settings.guarded_by,
        })
    }

    /// Puts rules in force, all at once. Live connections stay as they are. When something is wrong, what was in
    /// force stays in force.
    ///
    /// # Errors
    /// When the rules do not fit, go nowhere, or need what this kernel lacks.
    pub fn install(&mut self, policy: &Rules<'_>) -> Result<(), ProxyError> {
        let groups = self.groups.with(policy.groups);
        let reverse = self.drains.rules(policy.roles.reverse).into_owned();
        self.provide_keeper(&groups)?;
        let roles = Roles {
            reverse: &reverse,
            ..policy.roles
        };
        let routes = ByRole {
            forward: routes::table(roles.forward, policy.upstreams, &groups)?,
            arrivals: routes::arrivals(&reverse, policy.upstreams, &groups)?,
            transits: routes::transits(roles.gateway, policy.upstreams, &groups)?,
        };
        let mut compiled = compile(roles, policy.names)?;
        self.features
            .allow(&compiled)
            .map_err(InterceptError::from)?;
        let paths = roles.forward.iter().map(|rule| rule.path);
        let paths = paths.chain(reverse.iter().map(|rule| rule.path));
        let mut paths = paths.chain(roles.gateway.iter().map(|rule| rule.path));
        if paths.any(|path| path == PathChoice::Sockmap) {
            let events = self
                .calibrator
                .provide_sockmap(&mut self.interceptor, &self.features)?;
            self.supervisor.hear(events);
        }
        // What has failed is tried again each time: it may have been the moment.
        let mut proofs = self.shared.proofs().filter(Proofs::have_passed);
        for (rule, action) in roles.forward.iter().zip(&mut compiled.actions) {
            action.shortcut = u32::from(self.may_take_shortcut(rule, &mut proofs));
            action.group = self.group_of(rule, &groups)?;
        }
        self.provide_gates(policy)?;
        self.takes_arrivals = !reverse.is_empty();
        if self.takes_arrivals {
            self.interceptor.prepare_arrivals(&self.listeners)?;
        }
        self.provide_sources(policy, &groups)?;
        let next = self.interceptor.next_generation();
        self.hits.make_room(next)?;
        self.steer_next(next, &reverse)?;
        // Rules of before may meet the endpoints of now, but never the other way round.
        let before = groups.settings();
        groups.change(policy.groups);
        // Published first: a connection may be selected by the new policy the moment it is written.
        let generation = Generation::new(next, &compiled, routes);
        self.shared.routes.publish(&generation);
        let installed = self.interceptor.install(&compiled, &self.features);
        if installed.is_err() {
            groups.change(&before);
        }
        self.generation = installed?;
        debug_assert_eq!(next, self.generation);
        self.hits.installed(next, &roles);
        if let Some(keeper) = &self.keeper {
            keeper.keep(groups.clone());
        }
        self.groups = groups;
        self.drains.keep_listed(policy.roles.reverse, &self.groups);
        self.hook_arrivals()?;
        self.hook_transits()
    }

    /// The number of the group whose endpoints the hook chooses from, which it finds from now on; 0 when it is not to.
    fn group_of(&mut self, rule: &Rule, groups: &Groups) -> Result<u32, ProxyError> {
        let Some(group) = rule.rewritten_to().and_then(|name| groups.get(name)) else {
            return Ok(0);
        };
        let wheels = if let Some(wheels) = &self.wheels {
            Arc::clone(wheels)
        } else {
            let (wheels, unmade) = self.interceptor.wheels()?;
            self.supervisor.hear_unmade(unmade);
            Arc::clone(self.wheels.insert(wheels))
        };
        Ok(group.show_on(|group| wheels.wheel(group)))
    }

    /// Starts what resolves names of groups and checks endpoints, if there is a group.
    fn provide_keeper(&mut self, groups: &Groups) -> Result<(), ProxyError> {
        if self.keeper.is_none() && !groups.is_empty() {
            let exempt = Arc::new(self.interceptor.exempter()?);
            let keeper = Keeper::start(exempt, self.stop.subscribe());
            self.keeper = Some(keeper.map_err(ProxyError::Worker)?);
        }
        Ok(())
    }

    /// Attaches or detaches the hook on what arrives, as the rules in force want it.
    fn hook_arrivals(&mut self) -> Result<(), ProxyError> {
        match &self.own_cgroup {
            Some(own) if self.takes_arrivals => {
                self.interceptor.attach_arrivals(open(own)?.as_fd())?;
            }
            _ => self.interceptor.detach_arrivals(),
        }
        Ok(())
    }

    /// Finds out where connections of the daemon's own may go, for rules for what arrives.
    pub(crate) fn follow_detours(&self) {
        if let Some(own) = self.own_cgroup.as_deref().filter(|_| self.takes_arrivals)
            && let Ok(own) = open(own)
        {
            self.interceptor.look_for_detours(own.as_fd());
        }
    }

    /// Measures what the paths cost here, in the background, for rules that leave the choice to us. Until that is known their
    /// connections are copied. Without this call the first connection that moves much has it done.
    pub fn calibrate(&mut self) {
        let started = self.calibrator.start(&mut self.interceptor, &self.features);
        if let Err(error) = started {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "cannot measure the paths; `auto` copies");
        }
    }

    /// Has paths tested once more that have failed their tests, in the background.
    pub fn test_again(&mut self) {
        let started = self
            .calibrator
            .test_again(&mut self.interceptor, &self.features);
        if let Err(error) = started {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "cannot test the sockmap path again");
        }
    }

    /// For a connection that asked, unless it asked while that was being done.
    fn calibrate_once(&mut self) {
        if self.shared.paths.measured().is_none() {
            self.calibrate();
        }
    }

    /// Attaches the hooks to a cgroup: from here on its connections are ours, and what arrives at this host. `own` is the
    /// cgroup of this process.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, cgroup: &Path, own: &Path) -> Result<(), ProxyError> {
        self.supervisor.beat()?;
        let cgroup = open(cgroup)?;
        self.interceptor.attach(cgroup.as_fd())?;
        self.own_cgroup = Some(own.to_owned());
        self.hook_arrivals()?;
        self.hook_transits()
    }

    /// Keeps the heartbeat, tells of faults in the hooks, and has the paths measured for whom it is worth it. Never returns,
    /// and may be dropped and called again; without it the hooks soon hold the relay for hung.
    pub async fn supervise(&mut self) -> Infallible {
        loop {
            tokio::select! {
                never = self.supervisor.run() => match never {},
                () = self.shared.paths.wanted() => self.calibrate_once(),
                () = drain::time_to_sweep(&self.drains) => self.sweep(),
                was_asked = self.spaces.time_to_look() => self.follow_spaces(was_asked),
                events = self.calibrator.finished() => self.supervisor.hear(events),
            }
        }
    }

    /// Whether every worker turned when it was last looked.
    pub(crate) fn turns(&self) -> bool {
        self.supervisor.turns()
    }

    /// What the relay counted.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// What the hooks counted.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, ProxyError> {
        Ok(self.interceptor.counters()?.read()?)
    }
}

/// Rules with everything they refer to.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Of every role.
    pub roles: Roles<'a>,
    /// By name.
    pub upstreams: &'a Upstreams,
    /// Those of them that are groups.
    pub groups: &'a SettingsByName,
    /// What the names in the rules stand for.
    pub names: &'a Names,
}

/// What workers share, before the first connection.
fn shared(settings: &Settings) -> Shared {
    Shared {
        routes: Routes::default(),
        stats: Stats::default(),
        live: Arc::default(),
        access_log: settings.access_log.clone(),
        idle_timeout: settings.idle_timeout,
        paths: Arc::new(Paths::default()),
        shortcut: ArcSwapOption::empty(),
        abroad: OnceLock::new(),
    }
}

/// As many listeners on one port as there are workers; the kernel spreads connections over them.
fn listeners(mut address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, ProxyError> {
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let listener = socket::listener(address, BACKLOG)
            .map_err(|source| ProxyError::Listen { address, source })?;
        address = listener
            .local_addr()
            .map_err(|source| ProxyError::Listen { address, source })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn port(listeners: &[TcpListener]) -> BePort {
    let address = listeners
        .first()
        .and_then(|listener| listener.local_addr().ok());
    address.map_or(BePort::default(), |address| BePort::new(address.port()))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn open(cgroup: &Path) -> Result<File, ProxyError> {
    File::open(cgroup).map_err(|source| ProxyError::Cgroup {
        path: cgroup.to_owned(),
        source,
    })
}
