//! `culvert run`: the proxy of a configuration file, in the foreground, until it is told to end.

use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
};

use anyhow::{Context as _, Result};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    access_log,
    cgroup::Cgroup2,
    config::{self, Config},
    failure::Failure,
    intercept::guard,
    limits,
    policy::Names,
    proxy::{Proxy, Rules, Settings},
    resolve,
    watch::{Watched, Watcher},
};

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration is wrong, something is missing, or nothing can be attached.
pub fn run(file: &Path, log_faults: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run_until_told(file, log_faults))
}

/// Reads a configuration and prints its warnings.
///
/// # Errors
/// When it is wrong: a failure of usage.
pub fn load(file: &Path) -> Result<Config> {
    let loaded = config::load(file).map_err(|error| Failure::usage(error.to_string()))?;
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
    Ok(loaded.config)
}

async fn run_until_told(file: &Path, log_faults: bool) -> Result<()> {
    let config = load(file)?;
    limits::require_privileges()?;
    // Before anything is attached, so that none is missed.
    let mut signals = Signals::new().context("cannot watch for signals")?;
    let cgroups = Cgroup2::find().map_err(|error| Failure::missing(error.to_string()))?;
    let (settings, _log_guard) = settings(&config, log_faults)?;
    let mut daemon = Daemon {
        proxy: Proxy::start(&settings)?,
        watcher: watcher(&config, &cgroups),
        attach_point: cgroups.mount().join(&config.daemon.cgroup),
        file: file.to_owned(),
        names: Names::default(),
        cgroups,
        config,
    };
    daemon.install()?;
    daemon.proxy.attach(&daemon.attach_point)?;
    daemon
        .proxy
        .guard(&daemon.attach_point, &daemon.config.forward)?;
    // Only now: what a killed predecessor left kept its rules in force until ours are.
    match guard::remove_stale() {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "removed what a killed daemon had left in force"),
        Err(error) => tracing::error!(%error, "cannot remove what a killed daemon left in force"),
    }
    for missing in resolve::unresolved(&daemon.names) {
        tracing::warn!("{missing}");
    }
    notify(&[NotifyState::Ready]);
    tracing::info!(rules = daemon.config.forward.len(), cgroup = %daemon.attach_point.display(), "running");

    daemon.serve(&mut signals).await;

    notify(&[NotifyState::Stopping]);
    let stats = daemon.proxy.stats();
    tracing::info!(
        accepted = stats.accepted.load(Relaxed),
        live = stats.live.load(Relaxed),
        "detaching"
    );
    let drain_timeout = daemon.config.daemon.drain_timeout;
    tokio::select! {
        () = daemon.proxy.stop(drain_timeout) => {}
        () = signals.end() => tracing::warn!("told to end a second time: not waiting for connections"),
    }
    Ok(())
}

struct Daemon {
    proxy: Proxy,
    watcher: Watcher,
    attach_point: PathBuf,
    file: PathBuf,
    names: Names,
    cgroups: Cgroup2,
    config: Config,
}

impl Daemon {
    /// Serves until told to end.
    async fn serve(&mut self, signals: &mut Signals) {
        loop {
            tokio::select! {
                never = self.proxy.supervise() => match never {},
                signal = signals.next() => match signal {
                    Told::End => return,
                    Told::Reload => self.reload(),
                },
                _ = self.watcher.next() => self.names_changed(),
            }
        }
    }

    fn install(&mut self) -> Result<()> {
        self.names = resolve::resolve(&self.config.forward, &self.cgroups, &self.names);
        self.proxy.install(&Rules {
            rules: &self.config.forward,
            upstreams: &self.config.upstreams,
            names: &self.names,
        })?;
        Ok(())
    }

    /// Puts the file's rules and upstreams in force. A wrong file changes nothing.
    fn reload(&mut self) {
        notify(&[NotifyState::Reloading]);
        match self.try_reload() {
            Ok(()) => tracing::info!(rules = self.config.forward.len(), "reloaded"),
            Err(error) => {
                tracing::error!("not reloaded, the running configuration stays in force: {error:#}")
            }
        }
        notify(&[NotifyState::Ready]);
    }

    fn try_reload(&mut self) -> Result<()> {
        let config = load(&self.file)?;
        if config.daemon != self.config.daemon {
            tracing::warn!("changes in [daemon] take effect at the next start");
        }
        let watcher = watcher(&config, &self.cgroups);
        let names = resolve::resolve(&config.forward, &self.cgroups, &self.names);
        self.proxy.install(&Rules {
            rules: &config.forward,
            upstreams: &config.upstreams,
            names: &names,
        })?;
        self.proxy.guard(&self.attach_point, &config.forward)?;
        for missing in resolve::unresolved(&names) {
            tracing::warn!("{missing}");
        }
        self.watcher = watcher;
        self.names = names;
        self.config = Config {
            daemon: self.config.daemon.clone(),
            ..config
        };
        Ok(())
    }

    /// A cgroup or executable that rules name appeared, changed or went away.
    fn names_changed(&mut self) {
        let before = self.names.clone();
        match self.install() {
            Ok(()) if self.names != before => {
                tracing::info!(
                    "cgroups or executables that rules name have changed; rules updated"
                );
            }
            Ok(()) => {}
            Err(error) => tracing::error!("cannot update the rules: {error:#}"),
        }
    }
}

fn watcher(config: &Config, cgroups: &Cgroup2) -> Watcher {
    let references = resolve::cgroups_of(&config.forward);
    let cgroups_watched = references
        .iter()
        .filter_map(|text| text.parse().ok())
        .map(Watched::Cgroup);
    let exes = resolve::exes_of(&config.forward)
        .into_iter()
        .map(Watched::Exe);
    Watcher::new(cgroups.clone(), cgroups_watched.chain(exes).collect())
}

fn settings(
    config: &Config,
    log_faults: bool,
) -> Result<(Settings, Option<crate::record::AccessLogGuard>)> {
    let daemon = &config.daemon;
    let (access_log, guard) = daemon
        .access_log
        .as_ref()
        .map(access_log::open)
        .transpose()?
        .unzip();
    let settings = Settings {
        workers: daemon.workers,
        max_connections: limits::connections(daemon.max_connections),
        max_pending: daemon.max_pending,
        heartbeat_timeout: daemon.heartbeat_timeout,
        idle_timeout: daemon.idle_timeout,
        access_log,
        log_faults,
    };
    Ok((settings, guard))
}

/// Tells systemd, if it wants to know.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

/// The signals that a daemon listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hang_up.recv() => Told::Reload,
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
}
