//! The demonstration itself: sets the stage, lets the app connect, watches from every side.
//!
//! Runs in a thread of its own, which is in the network namespace of the demonstration, and so is everything that is
//! started here. When it returns, all of it has ended.

use std::{io, num::NonZeroUsize, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};

use super::{
    app::{App, Seen},
    network,
    servers::{ORIGIN_PORT, SOCKS_PORT, Servers},
    steps::{self, CONFIG, Closed, Observed, Step, V6},
    table::Table,
};
use crate::{
    cgroup::OwnCgroup,
    config::{self, Config, Origin, System},
    intercept::{
        Features,
        survey::{HOOKS, Objects},
    },
    policy::Names,
    proxy::{GuardedBy, Proxy, Rules, Settings},
    record::{AccessLog, Format},
    rule::IngressHook,
};

/// Everything is on this machine: what has not arrived by then will not.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What happened.
pub(super) struct Ended {
    /// Connections of the app.
    pub(super) connections: usize,
    /// Those of them that exchanged bytes.
    pub(super) exchanged: usize,
    /// What was not as it has to be.
    pub(super) differences: Vec<String>,
    /// Programs and links that there were.
    pub(super) objects: Objects,
    /// The network namespace that there was.
    pub(super) namespace: u64,
}

/// Plays all of it. To be called in a thread of its own.
///
/// # Errors
/// When it cannot go on; what went otherwise than expected is no error.
pub(super) fn play(cgroup: &OwnCgroup, table: &Table) -> Result<Ended> {
    network::enter().context("cannot make a network namespace")?;
    let ipv6 = network::set_up(&V6).context("cannot set the network namespace up")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(perform(cgroup, table, ipv6))
}

async fn perform(cgroup: &OwnCgroup, table: &Table, ipv6: bool) -> Result<Ended> {
    let origin = Origin {
        path: PathBuf::from("demo.toml"),
        mode: 0o600,
    };
    let config = config::parse(CONFIG, &origin, &System)?.config;
    let servers = Servers::start(ipv6).context("cannot start the servers")?;
    let (lines, records) = unbounded_channel();
    // Held until the proxy has stopped: it writes what is queued.
    let (access_log, _log_guard) = AccessLog::new(Lines(lines), Format::Json);
    let mut proxy = start(&config, access_log)?;
    // Our own cgroup matters to rules for what arrives, and there are none.
    proxy.attach(cgroup.dir(), cgroup.dir())?;
    let app = App::start().context("cannot start the app")?;
    app.place(cgroup)?;
    let objects = Objects::of_this_process();
    tell_the_stage(table, cgroup, &app, ipv6);

    let mut watch = Watch {
        app,
        servers,
        records,
    };
    let mut play = Play::new(table, watch.app.pid());
    table.head();
    for step in steps::steps(ipv6) {
        let observed = watch.intercepted(&mut proxy, &step).await?;
        play.note(&step, observed);
    }
    let records: Vec<Closed> = play
        .observed
        .iter()
        .filter_map(|it| it.closed.clone())
        .collect();
    table.records(&records);
    table.counters(&proxy.counters()?);

    proxy.stop(TIMEOUT).await;
    table.remark("The hooks are detached. The same app again:");
    if let Some(step) = steps::last_step() {
        let observed = watch.unattended(&step).await?;
        play.note(&step, observed);
    }
    watch.app.end().await.context("the app does not end")?;
    Ok(Ended {
        connections: play.observed.len(),
        exchanged: play.exchanged(),
        differences: play.differences,
        objects,
        namespace: network::current().context("cannot tell the network namespace")?,
    })
}

fn start(config: &Config, access_log: AccessLog) -> Result<Proxy> {
    let workers = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let settings = Settings {
        workers: workers.min(MOST_WORKERS),
        max_connections: 64,
        max_pending: 64,
        heartbeat_timeout: config.daemon.heartbeat_timeout,
        idle_timeout: None,
        promote: config.daemon.promote,
        access_log: Some(access_log),
        keeps_sources: false,
        guarded_by: GuardedBy::Pins,
        ingress: IngressHook::Auto,
        log_faults: false,
    };
    let mut proxy = Proxy::start(&settings, None)?;
    proxy.install(&Rules {
        roles: config.roles(),
        upstreams: &config.upstreams,
        groups: &config.groups,
        names: &Names::default(),
    })?;
    Ok(proxy)
}

/// Enough to show that there can be several.
const MOST_WORKERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

fn tell_the_stage(table: &Table, cgroup: &OwnCgroup, app: &App, ipv6: bool) {
    let v6 = if ipv6 {
        "192.0.2.0/24, 2001:db8::20 and 2001:db8::30 are on its loopback"
    } else {
        "192.0.2.0/24 is on its loopback (no IPv6 on this machine)"
    };
    table.fact("Network", &format!("a new namespace; {v6}"));
    table.fact(
        "Servers",
        &format!(
            "an origin on port {ORIGIN_PORT} of every address, a SOCKS5 proxy on {}:{SOCKS_PORT}",
            network::HOME
        ),
    );
    table.fact(
        "App",
        &format!(
            "process {}, alone in cgroup {}; it knows of no proxy",
            app.pid(),
            cgroup.cgroup().path.display()
        ),
    );
    let hooks = HOOKS.map(|hook| hook.program).join(" ");
    table.fact("Hooks", &format!("{hooks}, on that cgroup only"));
}

/// What has been observed so far.
struct Play<'a> {
    table: &'a Table,
    app: u32,
    refusal: Errno,
    observed: Vec<Observed>,
    differences: Vec<String>,
}

impl<'a> Play<'a> {
    fn new(table: &'a Table, app: u32) -> Self {
        Self {
            table,
            app,
            refusal: if Features::probe().set_retval {
                Errno::ECONNREFUSED
            } else {
                Errno::EPERM
            },
            observed: Vec::new(),
            differences: Vec::new(),
        }
    }

    fn note(&mut self, step: &Step, observed: Observed) {
        let differences = steps::differences(step, &observed, self.app, self.refusal);
        self.table.step(step, &observed, differences.is_empty());
        self.differences.extend(differences);
        self.observed.push(observed);
    }

    fn exchanged(&self) -> usize {
        let connected = |it: &&Observed| matches!(it.seen, Seen::Connected { .. });
        self.observed.iter().filter(connected).count()
    }
}

/// Those who see a connection.
struct Watch {
    app: App,
    servers: Servers,
    records: UnboundedReceiver<Vec<u8>>,
}

impl Watch {
    /// One connection while the hooks are attached.
    async fn intercepted(&mut self, proxy: &mut Proxy, step: &Step) -> Result<Observed> {
        let before = proxy.counters()?;
        let observed = supervised(proxy, self.unattended(step)).await?;
        let verdicts = verdicts(&before, &proxy.counters()?);
        let closed = if verdicts.contains(&"relayed") {
            supervised(proxy, self.record()).await?
        } else {
            None
        };
        Ok(Observed {
            verdicts: Some(verdicts),
            closed,
            ..observed
        })
    }

    /// One connection that nobody intercepts.
    async fn unattended(&mut self, step: &Step) -> Result<Observed> {
        let seen = self
            .app
            .connect(step.destination)
            .await
            .context("the app died")?;
        let served = match seen {
            Seen::NotConnected(_) => None,
            Seen::Connected { .. } => timeout(TIMEOUT, self.servers.served.recv()).await.ok(),
        };
        Ok(Observed {
            seen,
            verdicts: None,
            served: served.flatten(),
            asked: self.servers.asked.try_recv().ok(),
            closed: None,
        })
    }

    async fn record(&mut self) -> Result<Option<Closed>> {
        match timeout(TIMEOUT, self.records.recv()).await {
            Ok(Some(line)) => Ok(serde_json::from_slice(&line).context("odd close record")?),
            _ => Ok(None),
        }
    }
}

/// Does something while the proxy keeps its heartbeat.
async fn supervised<T>(proxy: &mut Proxy, work: impl Future<Output = T>) -> T {
    tokio::select! {
        never = proxy.supervise() => match never {},
        done = work => done,
    }
}

/// The counters that went up and say what became of a connection, each as often as it did.
fn verdicts(before: &[(&'static str, u64)], after: &[(&'static str, u64)]) -> Vec<&'static str> {
    const NO_VERDICT: [&str; 3] = ["seen", "published", "withdrawn"];
    let mut found = Vec::new();
    for ((name, before), (_, after)) in before.iter().zip(after) {
        if !NO_VERDICT.contains(name) {
            found.extend((*before..*after).map(|_| *name));
        }
    }
    found
}

/// Hands the lines of the access log on; each is written at once.
struct Lines(UnboundedSender<Vec<u8>>);

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The demonstration may have been given up.
        let _ = self.0.send(line.to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_a_counter_that_went_up() {
        let before = [("seen", 1), ("direct", 1), ("relayed", 4), ("published", 4)];
        let after = [("seen", 3), ("direct", 1), ("relayed", 6), ("published", 6)];
        assert_eq!(verdicts(&before, &after), ["relayed", "relayed"]);
    }
}
