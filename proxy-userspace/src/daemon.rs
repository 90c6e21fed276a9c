//! `culvert run` and `culvert sidecar`: the proxy of a configuration file, in the foreground, until it is told to end.

mod manager;
mod place;
mod sidecar;

use std::{
    future::pending,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    admin::{Admin, Answer, Asked, Offer, PLAIN, Question, Scrapes},
    cgroup::Cgroup2,
    cli::{RunArgs, SidecarArgs},
    config::{self, Config, ConfigError},
    delivery,
    failure::Failure,
    heap,
    intercept::{guard, ingress, standing::Standing},
    live::Query,
    lock::Lock,
    metrics,
    paint::one_line,
    privileges,
    proxy::GuardedBy,
    service::{self, Service},
};
use manager::Manager;
use place::Place;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration is wrong, something is missing, or nothing can be attached.
pub fn run(args: &RunArgs, log_faults: bool) -> Result<()> {
    let post = |config: &Config, cgroups: &Cgroup2| {
        Ok(Post {
            attach_point: cgroups.mount().join(&config.daemon.cgroup),
            takes_over: args.takeover,
            kind: Kind::Host,
        })
    };
    serve(&args.file.config, log_faults, post)
}

/// Runs beside the containers of a pod until SIGTERM or SIGINT.
///
/// # Errors
/// As [`run`], and when the pod is not found.
pub fn sidecar(args: &SidecarArgs, log_faults: bool) -> Result<()> {
    let post = |config: &Config, cgroups: &Cgroup2| sidecar::post(args.pid, config, cgroups);
    serve(&args.file.config, log_faults, post)
}

/// Where a daemon serves.
struct Post {
    attach_point: PathBuf,
    takes_over: bool,
    kind: Kind,
}

enum Kind {
    /// On a host, where it may pin.
    Host,
    /// In a container, as the only one that serves the pod, with what others before it have left.
    Sidecar(Lock, Standing),
}

impl Kind {
    const fn guarded_by(&self) -> GuardedBy {
        match self {
            Self::Host => GuardedBy::Pins,
            Self::Sidecar(..) => GuardedBy::Cgroup,
        }
    }

    /// Removes what those before us have left in force. What is returned is kept until the end.
    fn remove_stale(self) -> Option<Lock> {
        match self {
            Self::Host => {
                remove_stale();
                None
            }
            Self::Sidecar(lock, stale) => {
                if stale.remove() {
                    tracing::info!("removed the guard that the sidecar before this one had left");
                }
                Some(lock)
            }
        }
    }
}

fn serve(
    file: &Path,
    log_faults: bool,
    post: impl FnOnce(&Config, &Cgroup2) -> Result<Post>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run_until_told(file, log_faults, post))
}

/// Reads a configuration and prints its warnings.
///
/// # Errors
/// When it is wrong: a failure of usage.
pub fn load(file: &Path) -> Result<Config> {
    let loaded = config::load(file).map_err(|error| match error {
        ConfigError::Read { ref source, .. } => Failure::usage(format!("{error}: {source}")),
        ConfigError::Invalid(_) => Failure::usage(error.to_string()),
    })?;
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
    Ok(loaded.config)
}

async fn run_until_told(
    file: &Path,
    log_faults: bool,
    post: impl FnOnce(&Config, &Cgroup2) -> Result<Post>,
) -> Result<()> {
    let config = load(file)?;
    privileges::require()?;
    let cgroups = Cgroup2::find().map_err(|error| Failure::missing(error.to_string()))?;
    let post = post(&config, &cgroups)?;
    let cgroup = post.attach_point.display().to_string();
    let mut place = Place::claim(&post.attach_point, post.takes_over)?;
    privileges::lift_locked_memory();
    // Without a bpffs of the system the guard mounts one, at a later reload too, and unmounts it.
    let guarded_by = post.kind.guarded_by();
    let mounts = guarded_by == GuardedBy::Pins && !guard::has_system_bpffs();
    // A thread of its own does that, which is started with the service.
    let enters = service::enters_namespaces(&config, guarded_by);
    privileges::keep_what_a_daemon_needs(mounts || enters)?;
    // Before anything is attached, so that none is missed.
    let mut signals = Signals::new().context("cannot watch for signals")?;
    let mut service = Service::start(
        config,
        cgroups,
        post.attach_point,
        log_faults,
        place.predecessor(),
        guarded_by,
    )?;
    service.set_guard()?;
    service.route()?;
    // Only now: what a killed predecessor left kept its rules in force until ours are.
    let _lock = post.kind.remove_stale();
    let relieved = match place.relieve(&mut service).await {
        Ok(relieved) => relieved,
        Err(error) => {
            // It stays, and what it serves stays with it.
            Box::pin(service.stop(Duration::ZERO)).await;
            return Err(error);
        }
    };
    // The predecessor's is gone by now.
    let mut admin = open_admin(service.config().daemon.admin.as_deref());
    let mut scrapes = open_scrapes(service.config().daemon.metrics, Offer::Metrics);
    let mut dashboard = open_scrapes(service.config().daemon.dashboard, Offer::Dashboard);
    let mut probes = open_scrapes(service.config().daemon.health, Offer::Health);
    privileges::keep_what_a_running_daemon_needs(mounts)?;
    let mut manager = Manager::new();
    if relieved {
        manager.tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
    } else {
        manager.tell(&[NotifyState::Ready]);
    }
    tracing::info!(rules = service.config().roles().count(), cgroup, "running");
    service.calibrate();
    heap::give_back();

    loop {
        tokio::select! {
            never = service.run() => match never {},
            told = signals.next() => match told {
                Told::End => break,
                Told::Reload => reload(&mut service, file, &mut manager),
                Told::Rotate => service.reopen_access_log(),
            },
            asked = next_question(admin.as_mut()) => answer(asked, &mut service),
            asked = next_scrape(scrapes.as_mut()) => answer(asked, &mut service),
            asked = next_scrape(probes.as_mut()) => answer(asked, &mut service),
            asked = next_scrape(dashboard.as_mut()) => answer(asked, &mut service),
            () = manager.due() => manager.beat(service.turns()),
            () = place.vacated() => service.forget_predecessor(),
        }
    }

    drop((admin, scrapes, dashboard, probes));
    if let Some(pid) = service.successor() {
        // The service manager follows that one, and must not hear that the service ends.
        tracing::info!(
            pid,
            "another culvert has taken over; open connections may finish"
        );
    } else {
        manager.tell_of_end(service.config().daemon.drain_timeout);
        tracing::info!("detaching; open connections may finish");
    }
    let drain_timeout = service.config().daemon.drain_timeout;
    tokio::select! {
        () = service.stop(drain_timeout) => {}
        () = signals.end() => tracing::warn!("told to end a second time: not waiting for connections"),
    }
    Ok(())
}

/// Removes what killed daemons have left in force.
fn remove_stale() {
    fn tell<E: std::error::Error>(what: &'static str, removed: Result<usize, E>) {
        match removed {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed {what} that a killed daemon had left"),
            Err(error) => tracing::error!(
                "cannot remove {what} that a killed daemon has left: {}",
                one_line(&error)
            ),
        }
    }
    tell("guards", guard::remove_stale());
    tell("filters", ingress::remove_stale());
    tell("routing rules", delivery::remove_stale());
}

/// A daemon that cannot be asked still does its work.
fn open_admin(place: Option<&Path>) -> Option<Admin> {
    match Admin::bind(place?) {
        Ok(admin) => Some(admin),
        Err(error) => {
            tracing::warn!("no `culvert status`: {}", one_line(&error));
            None
        }
    }
}

/// As [`open_admin`].
fn open_scrapes(address: Option<SocketAddr>, offer: Offer) -> Option<Scrapes> {
    match Scrapes::bind(address?, offer) {
        Ok(scrapes) => Some(scrapes),
        Err(error) => {
            tracing::warn!("no {}: {}", offer.key(), one_line(&error));
            None
        }
    }
}

async fn next_scrape(scrapes: Option<&mut Scrapes>) -> Asked {
    match scrapes {
        Some(scrapes) => scrapes.next().await,
        None => pending().await,
    }
}

async fn next_question(admin: Option<&mut Admin>) -> Asked {
    match admin {
        Some(admin) => admin.next().await,
        None => pending().await,
    }
}

fn answer(asked: Asked, service: &mut Service) {
    let answer = match asked.question {
        Question::Status => Answer::of(&service.status()),
        Question::Connections => match Query::parse(&asked.query) {
            Ok(query) => Answer::of(&service.connections(&query)),
            Err(error) => Answer::Malformed(error.to_string()),
        },
        Question::End => asked.told(|which| service.end(which)),
        Question::Explain => asked.told(|connection| service.explain(connection)),
        Question::Rules => Answer::of(&service.rules()),
        Question::Upstreams => Answer::of(&service.upstreams()),
        Question::Ready => Answer::of(&service.readiness()),
        Question::ReadyProbe => {
            let readiness = service.readiness();
            let sentence = format!("{}\n", readiness.sentence());
            if readiness.ready {
                Answer::Text(PLAIN, sentence)
            } else {
                Answer::Unready(sentence)
            }
        }
        // That it is answered is the answer.
        Question::HealthProbe => Answer::Text(PLAIN, "ok\n".to_owned()),
        Question::Metrics => Answer::Text(metrics::CONTENT_TYPE, service.metrics()),
        Question::Drain => asked.told(|wanted| service.drain(&wanted)),
        Question::Restore => asked.told(|wanted| service.restore(&wanted)),
    };
    asked.answer(answer);
}

/// Puts the file's rules and upstreams in force. A wrong file changes nothing.
fn reload(service: &mut Service, file: &Path, manager: &mut Manager) {
    manager.tell(&[NotifyState::Reloading]);
    match load(file).and_then(|config| service.reload(config)) {
        Ok(()) => {
            tracing::info!(rules = service.config().roles().count(), "reloaded");
            service.calibrate();
            heap::give_back();
        }
        Err(error) => {
            tracing::error!("not reloaded; the running configuration stays in force\n{error:#}");
        }
    }
    manager.tell(&[NotifyState::Ready]);
}

/// The signals that a daemon listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    rotate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            rotate: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hang_up.recv() => Told::Reload,
            _ = self.rotate.recv() => Told::Rotate,
        }
    }

    /// Waits for a signal to end.
    async fn end(&mut self) {
        while self.next().await != Told::End {}
    }
}

/// What a signal tells a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// SIGTERM or SIGINT.
    End,
    /// SIGHUP.
    Reload,
    /// SIGUSR1.
    Rotate,
}
