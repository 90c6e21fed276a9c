//! `culvert exec`: one command, with all TCP connections of it and of what it starts sent through a proxy.

use std::{
    collections::BTreeMap, ffi::OsString, os::fd::AsFd, path::Path, process::ExitCode, sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    arguments,
    cgroup::Cgroup2,
    cli::{ExecArgs, RunAsArgs},
    config::{self, AccessLog, Config, Daemon, LogFormat, LogTarget},
    daemon,
    exec::{
        child::{Command, SpawnError},
        ending::Ending,
        identity::RunAs,
        job::{Job, JobError, Leftovers},
        signals::Signals,
    },
    failure::Failure,
    privileges,
    proxy::GuardedBy,
    rule::{Departure, FailMode, Match, PathChoice, Router, Rule, Via},
    service::Service,
};

/// How long the last bytes of a command that has ended may take. A server that answers nobody for ever is not waited for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The one upstream and the one rule of `--via`.
const NAME: &str = "exec";

/// Runs the command and returns its status.
///
/// # Errors
/// When the command cannot be started, or its connections not be taken.
pub(crate) fn run(args: &ExecArgs, log_faults: bool) -> Result<ExitCode> {
    if let Err(error) = arguments::hide_passwords() {
        tracing::warn!(%error, "cannot hide passwords in the command line");
    }
    let config = configuration(args)?;
    privileges::require()?;
    let cgroups = Cgroup2::find().map_err(|error| Failure::missing(error.to_string()))?;
    let command = command(&args.run_as, &args.command)?;
    let leftovers = leftovers(&args.run_as);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    ended(runtime.block_on(serve(config, cgroups, &command, leftovers, log_faults)))
}

/// Ends as the command did, or with the status that a shell has for one that does not run.
///
/// # Errors
/// Any other.
pub(crate) fn ended(ended: Result<Ending>) -> Result<ExitCode> {
    match ended {
        Ok(ending) => Ok(ExitCode::from(ending.reproduce())),
        Err(error) => match error.downcast_ref::<JobError>() {
            Some(JobError::Spawn(spawn)) => {
                eprintln!("culvert: {}", cause_of(spawn));
                Ok(ExitCode::from(spawn.code()))
            }
            _ => Err(error),
        },
    }
}

async fn serve(
    config: Config,
    cgroups: Cgroup2,
    command: &Command,
    leftovers: Leftovers,
    log_faults: bool,
) -> Result<Ending> {
    let signals = Signals::install().context("cannot take the signals over")?;
    let mut job = Job::prepare(&cgroups, signals)?;
    let attach_point = job.cgroup().dir().to_owned();
    let drain_timeout = config.daemon.drain_timeout;
    let mut service = Service::start(
        config,
        cgroups,
        attach_point,
        log_faults,
        None,
        GuardedBy::Pins,
    )?;
    // If we are killed the command is killed too, but not at the same instant.
    let guard = service.lend_guard()?;
    job.hold(&guard.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    drop(guard);
    service.route()?;
    let ended = match job.spawn(command) {
        Ok(()) => tokio::select! {
            never = service.run() => match never {},
            ended = job.wait(leftovers) => ended,
        },
        Err(error) => Err(error),
    };
    // Everybody who was connected has ended; what they sent last may still be on its way.
    Box::pin(service.stop(drain_timeout)).await;
    job.finish()?;
    Ok(ended?)
}

/// From the file, or one rule for everything that is not on this host.
fn configuration(args: &ExecArgs) -> Result<Config> {
    let mut config = match &args.config {
        Some(file) => daemon::load(file)?,
        None => through(&args.via)?,
    };
    if !config.reverse.is_empty() || !config.gateway.is_empty() {
        return Err(Failure::usage(
            "`culvert exec` takes what one command opens, and no `[[reverse]]` or `[[gateway]]` rules; `culvert run` does",
        )
        .into());
    }
    if let Some(path) = &args.access_log {
        config.daemon.access_log = Some(access_log(path));
    }
    Ok(config)
}

fn through(urls: &[String]) -> Result<Config> {
    let upstream =
        config::upstream_from_urls(urls).map_err(|error| Failure::usage(error.to_string()))?;
    let name: Arc<str> = NAME.into();
    let rule = Rule {
        name: Arc::clone(&name),
        matches: Match::default(),
        via: Via::Upstream(Arc::clone(&name)),
        // Better no connection than one past the proxy that was asked for.
        on_relay_failure: FailMode::Refuse,
        path: PathChoice::Auto,
        rewrite: false,
        from: Departure::Host,
    };
    Ok(Config {
        daemon: Daemon {
            drain_timeout: DRAIN_TIMEOUT,
            ..Daemon::default()
        },
        upstreams: BTreeMap::from([(name, Arc::new(upstream))]),
        groups: BTreeMap::new(),
        forward: vec![rule],
        reverse: Vec::new(),
        gateway: Vec::new(),
        router: Router::default(),
    })
}

/// `-` is standard error here: standard output belongs to the command.
fn access_log(path: &Path) -> AccessLog {
    if path == Path::new("-") {
        AccessLog::whole(LogTarget::Stderr, LogFormat::Text)
    } else {
        AccessLog::whole(LogTarget::File(path.to_owned()), LogFormat::Json)
    }
}

/// What becomes of processes that outlive the command.
pub(crate) const fn leftovers(args: &RunAsArgs) -> Leftovers {
    if args.wait {
        Leftovers::Wait
    } else {
        Leftovers::End
    }
}

/// What to run, and as whom.
///
/// # Errors
/// When there is no such user.
pub(crate) fn command(args: &RunAsArgs, words: &[OsString]) -> Result<Command> {
    let run_as = match (&args.user, args.root) {
        (Some(user), _) => RunAs::User(user.clone()),
        (None, true) => RunAs::Root,
        (None, false) => RunAs::Invoker,
    };
    let mut words = words.iter().cloned();
    Ok(Command {
        program: words.next().unwrap_or_default(),
        args: words.collect(),
        identity: run_as
            .resolve()
            .map_err(|error| Failure::usage(error.to_string()))?,
        open_files: privileges::open_files(),
    })
}

/// A spawn error with the system's word for it.
fn cause_of(error: &SpawnError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
