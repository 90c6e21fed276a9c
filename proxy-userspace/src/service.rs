//! A proxy that serves a configuration: started, kept right while names in its rules come and go, reloaded, stopped.
//!
//! What `daemon` (a file, signals, systemd) and `exec` (one command) have in common.

mod explain;
mod look;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::pending,
    mem::take,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{sync::oneshot, time::sleep};

use crate::{
    access_log::{self, OpenLog},
    cgroup::{Cgroup2, runtime::is_id},
    config::Config,
    drain,
    failure::Failure,
    intercept::{MissingFeature, Predecessor},
    netlink::News,
    policy::Names,
    privileges,
    proxy::{Container, GuardNeeds, GuardedBy, Proxy, ProxyError, Rules, Settings, Shown},
    resolve::{self, Answers},
    rule::{Calibrate, Rule, Via, container_in},
    socket,
    status::{DrainStatus, Status, counted, readiness::Readiness},
    watch::{Watched, Watcher},
};

/// A running service.
pub(crate) struct Service {
    proxy: Proxy,
    watcher: Watcher,
    cgroups: Cgroup2,
    attach_point: PathBuf,
    names: Names,
    /// What the runtimes of containers were asked, and whether to ask them again then.
    asked: Option<oneshot::Receiver<Answers>>,
    asks_again: bool,
    config: Config,
    started: Instant,
    /// When it was looked for what nothing tells of.
    looked: Instant,
    /// Of interfaces, once rules need it.
    news: Option<News>,
    access_log: Option<OpenLog>,
    guarded_by: GuardedBy,
}

impl Service {
    /// Starts serving the processes of a cgroup, beside a daemon whose place this one takes.
    ///
    /// # Errors
    /// When something is missing or refused; nothing is left behind then.
    pub(crate) fn start(
        config: Config,
        cgroups: Cgroup2,
        attach_point: PathBuf,
        log_faults: bool,
        predecessor: Option<&Predecessor>,
        guarded_by: GuardedBy,
    ) -> Result<Self> {
        require_whole_hierarchy(&config, &cgroups)?;
        require_keepable(&config, guarded_by)?;
        config.router.allow().map_err(ProxyError::from)?;
        let daemon = &config.daemon;
        let (access_log, open_log) = daemon
            .access_log
            .as_ref()
            .map(access_log::open)
            .transpose()?
            .unzip();
        let settings = Settings {
            workers: daemon.workers,
            max_connections: privileges::connections(daemon.max_connections),
            max_pending: daemon.max_pending,
            heartbeat_timeout: daemon.heartbeat_timeout,
            idle_timeout: daemon.idle_timeout,
            promote: daemon.promote,
            access_log,
            keeps_sources: keeps_sources(&config),
            ingress: daemon.ingress,
            guarded_by,
            log_faults,
        };
        let enters = enters_namespaces(&config, guarded_by);
        if enters {
            require_namespaces()?;
            privileges::require_all(&[privileges::ENTER, privileges::SEE_NAMESPACES])?;
        }
        let mut proxy = Proxy::start(&settings, predecessor)?;
        if enters {
            proxy.enter_namespaces(config.daemon.drain_timeout)?;
        }
        let watcher = watcher(&config, &cgroups);
        let names = resolve::resolve(config.roles(), &cgroups, &Names::default());
        proxy.install(&rules(&config, &names))?;
        proxy.serve_containers(containers(&config, &names, &attach_point));
        proxy.attach(&attach_point, &cgroups.own_dir()?)?;
        warn_of_unresolved(&names);
        Ok(Self {
            proxy,
            watcher,
            cgroups,
            attach_point,
            names,
            asked: None,
            asks_again: false,
            config,
            started: Instant::now(),
            looked: Instant::now(),
            news: None,
            access_log: open_log,
            guarded_by,
        })
    }

    /// Keeps rules with `on_relay_failure = "refuse"` in force after a kill.
    ///
    /// # Errors
    /// When there is no place to pin, or the kernel refuses.
    pub(crate) fn set_guard(&mut self) -> Result<()> {
        Ok(self
            .proxy
            .guard(&self.attach_point, guard_needs(&self.config))?)
    }

    /// Keeps them in force for as long as somebody holds what this returns.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn lend_guard(&mut self) -> Result<Vec<OwnedFd>> {
        Ok(self.proxy.lend_guard(&self.attach_point)?)
    }

    /// Sends on what passes through as `[router]` says. After all that attaches to interfaces.
    ///
    /// # Errors
    /// When that may not be, or the kernel refuses.
    pub(crate) fn route(&mut self) -> Result<()> {
        Ok(self.proxy.route(&self.config.router)?)
    }

    /// Serves. Never returns, and may be dropped and called again.
    pub(crate) async fn run(&mut self) -> Infallible {
        loop {
            let news = self.has_to_look().then_some(&mut self.news);
            tokio::select! {
                never = self.proxy.supervise() => match never {},
                _ = self.watcher.next() => self.look_names_up(),
                answers = answered(&mut self.asked) => self.runtimes_said(&answers),
                () = time_to_look(news, self.looked) => self.look(),
            }
        }
    }

    /// Puts the rules and upstreams of another configuration in force. When something is wrong nothing changes.
    ///
    /// # Errors
    /// When the kernel refuses the rules.
    pub(crate) fn reload(&mut self, config: Config) -> Result<()> {
        if config.daemon != self.config.daemon {
            tracing::warn!("changes in [daemon] take effect at the next start");
        }
        require_whole_hierarchy(&config, &self.cgroups)?;
        require_keepable(&config, self.guarded_by)?;
        let routes_otherwise = config.router != self.config.router;
        if routes_otherwise {
            config.router.allow().map_err(ProxyError::from)?;
        }
        if enters_namespaces(&config, self.guarded_by) && !self.proxy.enters_namespaces() {
            return Err(Failure::missing(
                "it has given up what the first rule with `container` needs (CAP_SYS_ADMIN): restart it, or have another one take over",
            )
            .into());
        }
        let watcher = watcher(&config, &self.cgroups);
        let names = resolve::resolve(config.roles(), &self.cgroups, &self.names);
        // What is needed of a guard comes before the rules that need it; what is not goes after them.
        let (before, after) = (guard_needs(&self.config), guard_needs(&config));
        let installed = self
            .proxy
            .guard(&self.attach_point, before.or(after))
            .and_then(|()| self.proxy.install(&rules(&config, &names)));
        let now = if installed.is_ok() { after } else { before };
        if let Err(error) = self.proxy.guard(&self.attach_point, now) {
            tracing::error!(%error, "a pin is left; `culvert detach` removes it");
        }
        installed?;
        self.proxy
            .serve_containers(containers(&config, &names, &self.attach_point));
        if !routes_otherwise {
            self.proxy.follow_router();
        } else if let Err(error) = self.proxy.route(&config.router) {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "no fast path; the kernel routes");
        }
        warn_of_unresolved(&names);
        self.watcher = watcher;
        self.names = names;
        self.config = Config {
            daemon: self.config.daemon.clone(),
            ..config
        };
        Ok(())
    }

    /// Measures, in the background, what the paths cost here, if a rule leaves the choice to us and that is wanted now. Otherwise
    /// has a path tested again that has failed its test.
    pub(crate) fn calibrate(&mut self) {
        // Streams that leave the shortcut are relayed by choice, too. Where the relay is the exception, it will ask when it is worth it.
        let relayed_by_choice = |rule: &Rule| {
            let may_change = rule.path.is_auto() || rule.path.is_shortcut();
            may_change && !rule.rewrite && matches!(rule.via, Via::Upstream(_))
        };
        let arrivals = self.config.reverse.iter();
        let mut arrivals = arrivals.filter(|rule| rule.is_relayed());
        let transits = self.config.gateway.iter();
        let mut transits = transits.filter(|rule| rule.is_relayed());
        if self.config.daemon.calibrate == Calibrate::AtStart
            && (self.config.forward.iter().any(relayed_by_choice)
                || arrivals.any(|rule| rule.path.is_auto())
                || transits.any(|rule| rule.path.is_auto()))
        {
            self.proxy.calibrate();
        } else {
            // Which a measurement does, too.
            self.proxy.test_again();
        }
    }

    /// Gives something no new connections; those that are there may finish for a time.
    ///
    /// # Errors
    /// When there is no such thing, or the kernel refuses the rules; nothing changes then.
    pub(crate) fn drain(&mut self, wanted: &drain::Request) -> Result<DrainStatus> {
        let target = self
            .proxy
            .drain_target(&wanted.target, &self.config.reverse)?;
        let time = wanted.timeout_ms.map(Duration::from_millis);
        let time = time.unwrap_or(self.config.daemon.drain_timeout);
        let status = |proxy: &Proxy| {
            let mut drains = proxy.drains().into_iter();
            drains.find(|drain| drain.target == target.to_string())
        };
        let before = status(&self.proxy).is_some();
        self.proxy.drain(target.clone(), time);
        if let Err(error) = self.put_in_force(&target) {
            if !before {
                self.proxy.restore(&target)?;
            }
            return Err(error);
        }
        tracing::info!(%target, "draining: it gets no new connections");
        Ok(status(&self.proxy).unwrap_or_default())
    }

    /// Gives something that is drained connections again.
    ///
    /// # Errors
    /// When it is not drained, or the kernel refuses the rules.
    pub(crate) fn restore(&mut self, wanted: &drain::Request) -> Result<drain::Restored> {
        let target = self
            .proxy
            .drain_target(&wanted.target, &self.config.reverse)?;
        self.proxy.restore(&target)?;
        self.put_in_force(&target)?;
        tracing::info!(%target, "restored: it gets connections again");
        Ok(drain::Restored {
            target: target.to_string(),
        })
    }

    /// What a binding is drained by are rules. An endpoint's group knows of it already.
    fn put_in_force(&mut self, target: &drain::Target) -> Result<()> {
        if matches!(target, drain::Target::Binding { .. }) {
            self.proxy.install(&rules(&self.config, &self.names))?;
            self.proxy.follow_router();
        }
        Ok(())
    }

    /// Goes on in a new access log where somebody has moved the file away.
    pub(crate) fn reopen_access_log(&self) {
        if let Some(Err(error)) = self.access_log.as_ref().map(OpenLog::reopen) {
            tracing::error!("{error:#}; the file that is open is written on");
        }
    }

    /// Whether every thread that relays turns, as far as was seen.
    pub(crate) fn turns(&self) -> bool {
        self.proxy.turns()
    }

    /// How it is.
    pub(crate) fn status(&self) -> Status {
        let counters = self.proxy.counters().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the counters of the hooks");
            Vec::new()
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            cgroup: self.attach_point.display().to_string(),
            rules: self.config.roles().count(),
            hooks: counted(counters.into_iter()),
            ..self.proxy.status()
        }
    }

    /// Whether connections are captured now, as the kernel has it.
    pub(crate) fn readiness(&self) -> Readiness {
        let needs = guard_needs(&self.config);
        Readiness::of(self.proxy.obstacles(&self.attach_point, needs))
    }

    /// The daemon whose place we have taken has ended.
    pub(crate) fn forget_predecessor(&mut self) {
        if let Err(error) = self.proxy.forget_predecessor() {
            tracing::error!(%error, "cannot forget the listeners of the daemon that has ended");
        }
    }

    /// The process that has taken our place.
    pub(crate) fn successor(&self) -> Option<u32> {
        self.proxy.successor()
    }

    /// Detaches, waits for open connections until the deadline, and ends.
    pub(crate) async fn stop(self, drain_timeout: Duration) {
        // Boxed: it holds the whole proxy once more.
        Box::pin(self.proxy.stop(drain_timeout)).await;
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Whether something has to be looked for that nothing tells of, or that only a look tells.
    fn has_to_look(&self) -> bool {
        !self.names.interfaces.is_empty()
            || has_unknown(&self.names)
            || keeps_sources(&self.config)
            || self.config.router.is_on()
            || !self.config.reverse.is_empty()
            || self.proxy.has_gates()
    }

    /// Looks for interfaces that rules name, listeners of services, programs that have our connections go elsewhere, and where
    /// endpoints are that see the addresses of clients.
    fn look(&mut self) {
        self.looked = Instant::now();
        if let Some(news) = &mut self.news {
            news.clear();
        }
        let is_same =
            |(name, number): (&String, &Option<u32>)| socket::interface_number(name) == *number;
        if !self.names.interfaces.iter().all(is_same) || has_unknown(&self.names) {
            self.look_names_up();
        }
        self.proxy.follow_detours();
        self.proxy.steer(&self.config.reverse);
        let rules = rules(&self.config, &self.names);
        self.proxy.follow_sources(&rules);
        self.proxy.follow_interfaces(&rules);
        self.proxy.follow_router();
    }

    /// A cgroup, executable or interface that rules name appeared, changed or went away. Runtimes are asked meanwhile, since they may
    /// take their time, and the heartbeat is not to wait for them.
    fn look_names_up(&mut self) {
        self.names_changed(&Answers::new());
        if self.asked.is_none() {
            self.asked = resolve::ask_runtimes(&self.config.forward);
        } else {
            self.asks_again = true;
        }
    }

    fn runtimes_said(&mut self, answers: &Answers) {
        self.names_changed(answers);
        if take(&mut self.asks_again) {
            self.asked = resolve::ask_runtimes(&self.config.forward);
        }
    }

    fn names_changed(&mut self, answers: &Answers) {
        let names = resolve::resolve_by(self.config.roles(), &self.cgroups, &self.names, answers);
        if names == self.names {
            return;
        }
        match self.proxy.install(&rules(&self.config, &names)) {
            Ok(()) => {
                tracing::info!(
                    "cgroups, executables or interfaces that rules name have changed; rules updated"
                );
                for lost in resolve::lost_containers(&names, &self.names) {
                    tracing::warn!("{lost}");
                }
                self.names = names;
                self.proxy.serve_containers(containers(
                    &self.config,
                    &self.names,
                    &self.attach_point,
                ));
                self.proxy.follow_router();
            }
            Err(error) => tracing::error!(%error, "cannot update the rules"),
        }
    }
}

/// Whether listeners are opened in the network namespaces of containers. Those of a pod share one, which is a sidecar's, too.
pub(crate) fn enters_namespaces(config: &Config, guarded_by: GuardedBy) -> bool {
    guarded_by == GuardedBy::Pins && config.forward.iter().any(Rule::enters_namespaces)
}

/// What the listeners that are opened in other network namespaces need.
fn require_namespaces() -> Result<()> {
    if socket::tells_namespace() {
        return Ok(());
    }
    Err(Failure::missing(MissingFeature::Namespaces.to_string()).into())
}

/// The containers below a cgroup that rules name and whose connections are relayed.
fn containers(config: &Config, names: &Names, below: &Path) -> Vec<Container> {
    let rules = config
        .forward
        .iter()
        .filter(|rule| rule.enters_namespaces());
    let included = rules.flat_map(|rule| &rule.matches.cgroup.include);
    let included: BTreeSet<_> = included.filter_map(|it| container_in(it)).collect();
    let known = included
        .into_iter()
        .filter_map(|name| names.containers.get_key_value(name));
    let all = known.flat_map(|(name, known)| {
        let directories = known.directories.iter();
        directories.map(|directory| Container {
            name: name.clone(),
            id: known.id.clone().unwrap_or_default(),
            directory: directory.clone(),
        })
    });
    all.filter(|container| container.directory.starts_with(below))
        .collect()
}

fn guard_needs(config: &Config) -> GuardNeeds {
    GuardNeeds::of(config.roles())
}

/// The kernel counts the depth of cgroups from the real root. From inside a cgroup namespace we do not know it.
fn require_whole_hierarchy(config: &Config, cgroups: &Cgroup2) -> Result<()> {
    if cgroups.is_whole() || resolve::cgroups_of(&config.forward).is_empty() {
        return Ok(());
    }
    Err(Failure::missing(
        "rules with `cgroup` need to see the whole cgroup hierarchy, and this is a cgroup namespace; start the container \
         with the host's (--cgroupns=host)",
    )
    .into())
}

/// A cgroup keeps programs on its own hooks only.
fn require_keepable(config: &Config, guarded_by: GuardedBy) -> Result<()> {
    let needs = guard_needs(config);
    if guarded_by == GuardedBy::Cgroup && needs.gateway {
        return Err(Failure::usage(
            "a sidecar serves one pod, through which nothing passes: `[[gateway]]` rules are for `culvert run` on a host",
        )
        .into());
    }
    if guarded_by == GuardedBy::Cgroup && needs.reverse {
        return Err(Failure::usage(
            "in a sidecar nothing can keep what arrives from the app once the sidecar is killed: `on_relay_failure = \"refuse\"` of \
             `[[reverse]]` rules is for `culvert run` on a host; use \"direct\"",
        )
        .into());
    }
    Ok(())
}

fn rules<'a>(config: &'a Config, names: &'a Names) -> Rules<'a> {
    Rules {
        roles: config.roles(),
        upstreams: &config.upstreams,
        groups: &config.groups,
        names,
    }
}

fn watcher(config: &Config, cgroups: &Cgroup2) -> Watcher {
    let references = resolve::cgroups_of(&config.forward);
    let watched_cgroups = references
        .iter()
        .filter_map(|text| match container_in(text) {
            Some(name) if !is_id(name) => Some(Watched::Containers),
            _ => text.parse().ok().map(Watched::Cgroup),
        });
    let watched_exes = resolve::exes_of(&config.forward)
        .into_iter()
        .map(Watched::Exe);
    Watcher::new(
        cgroups.clone(),
        watched_cgroups.chain(watched_exes).collect(),
    )
}

fn keeps_sources(config: &Config) -> bool {
    Shown::are_wanted(config.roles(), &config.groups)
}

/// What the runtimes said; never returns when they were not asked. May be dropped and called again.
async fn answered(asked: &mut Option<oneshot::Receiver<Answers>>) -> Answers {
    let Some(answer) = asked else {
        return pending().await;
    };
    // The thread that asks has no other way to end than to answer.
    let answers = answer.await.unwrap_or_default();
    *asked = None;
    answers
}

/// Returns when it is time to look again: soon after something has happened to interfaces, and now and then; never if there is nothing
/// to look for. Other events do not put it off.
async fn time_to_look(news: Option<&mut Option<News>>, looked: Instant) {
    let Some(news) = news else {
        return pending().await;
    };
    let after = |pause: Duration| sleep(pause.saturating_sub(looked.elapsed()));
    let told = async {
        news.get_or_insert_with(News::open).wait().await;
        after(SETTLE).await;
    };
    tokio::select! {
        () = told => {}
        () = after(LOOK_INTERVAL) => {}
    }
}

/// Whether there are containers that no runtime knows, or that none could be asked for.
fn has_unknown(names: &Names) -> bool {
    names.containers.values().any(|it| it.problem.is_some())
}

/// How soon it is known that a service was restarted, or that an endpoint has moved; and that an interface has come or gone where the
/// kernel does not tell.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two looks: an interface that is made changes several times.
const SETTLE: Duration = Duration::from_millis(20);

fn warn_of_unresolved(names: &Names) {
    for missing in resolve::unresolved(names) {
        tracing::warn!("{missing}");
    }
}
