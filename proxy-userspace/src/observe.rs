//! `culvert watch`: where programs connect, live, and nothing is proxied.
//!
//! [`crate::intercept`] looks on; here is told what it sees ([`mod@line`]), what a configuration would do about it ([`outlook`]), and how
//! much there was ([`summary`]).

mod guess;
mod line;
mod outlook;
mod report;
mod summary;

use std::{
    fs::File,
    future::{Future, pending},
    os::fd::AsFd as _,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::yield_now,
    time::{MissedTickBehavior, interval},
};

use self::report::Report;
use crate::{
    cgroup::{Cgroup2, Reference},
    cli::WatchArgs,
    exec::{
        child::Command,
        ending::Ending,
        job::{Job, Leftovers},
        signals::Signals,
    },
    failure::Failure,
    intercept::{Features, Scope, Sightings},
    privileges, process, run_command,
};

/// How often is looked for what only a look can tell.
const TICK: Duration = Duration::from_secs(1);

/// Lines that are written before anything else gets its turn.
const AT_ONCE: usize = 256;

/// Watches until the command ends, or until told to end.
///
/// # Errors
/// When nothing can be watched, the command cannot be started, or the output not be written.
pub(crate) fn run(args: &WatchArgs) -> Result<ExitCode> {
    privileges::require()?;
    let cgroups = Cgroup2::find().map_err(|error| Failure::missing(error.to_string()))?;
    let report = Report::open(args, &cgroups)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(report.check_rules())?;
    if args.command.is_empty() {
        runtime.block_on(watch_others(args, &cgroups, report))?;
        return Ok(ExitCode::SUCCESS);
    }
    let command = run_command::command(&args.run_as, &args.command)?;
    let leftovers = run_command::leftovers(&args.run_as);
    run_command::ended(runtime.block_on(async {
        let signals = Signals::install().context("cannot take the signals over")?;
        let mut job = Job::prepare(&cgroups, signals)?;
        let ended = watch_command(args, report, &mut job, &command, leftovers).await;
        job.finish()?;
        ended
    }))
}

/// Programs that run already, or will.
async fn watch_others(args: &WatchArgs, cgroups: &Cgroup2, mut report: Report) -> Result<()> {
    let told = told_to_end()?;
    let mut sightings = Sightings::load(&Features::probe(), &scope(args)?)?;
    let places = places(args, cgroups)?;
    attach(&mut sightings, &places)?;
    for place in &places {
        let path = cgroups.at(place).map(|cgroup| cgroup.path);
        report.begin(path.as_deref(), args.pid)?;
    }
    tokio::select! {
        done = tell(&mut sightings, &mut report, args.pid.is_some()) => done?,
        () = told => {}
    }
    finish(sightings, report).await
}

/// The command, in a cgroup of its own as `culvert exec` runs it.
async fn watch_command(
    args: &WatchArgs,
    mut report: Report,
    job: &mut Job,
    command: &Command,
    leftovers: Leftovers,
) -> Result<Ending> {
    let mut sightings = Sightings::load(&Features::probe(), &scope(args)?)?;
    let place = job.cgroup().dir().to_owned();
    attach(&mut sightings, &[place])?;
    report.begin(None, None)?;
    job.spawn(command)?;
    let telling = async {
        if let Err(error) = tell(&mut sightings, &mut report, false).await {
            tracing::warn!("nothing more is told of the command: {error:#}");
        }
        // It goes on.
        pending().await
    };
    let ended = tokio::select! {
        ended = job.wait(leftovers) => ended?,
        never = telling => never,
    };
    finish(sightings, report).await?;
    Ok(ended)
}

fn scope(args: &WatchArgs) -> Result<Scope> {
    let processes = match args.pid {
        None => Vec::new(),
        Some(pid) => {
            process::owner(pid)
                .map_err(|error| Failure::usage(format!("there is no process {pid}: {error}")))?;
            process::with_descendants(pid)
        }
    };
    Ok(Scope {
        processes,
        datagrams: args.udp,
    })
}

/// The directories of the cgroups to watch.
fn places(args: &WatchArgs, cgroups: &Cgroup2) -> Result<Vec<PathBuf>> {
    let Some(text) = &args.cgroup else {
        return Ok(vec![cgroups.mount().to_owned()]);
    };
    let reference = text.parse::<Reference>();
    let reference = reference.map_err(|error| Failure::usage(error.to_string()))?;
    let found = cgroups.resolve(&reference);
    if found.is_empty() {
        return Err(Failure::usage(format!("there is no cgroup {text}")).into());
    }
    let directories = found.iter().map(|cgroup| cgroups.dir(&cgroup.path));
    Ok(directories.collect::<Result<_, _>>()?)
}

fn attach(sightings: &mut Sightings, places: &[PathBuf]) -> Result<()> {
    for place in places {
        let opened = File::open(place);
        let opened = opened.with_context(|| format!("cannot open {}", place.display()))?;
        sightings.attach(opened.as_fd())?;
    }
    Ok(())
}

/// Tells what is seen, until nobody reads it, or until nobody is followed any more.
async fn tell(sightings: &mut Sightings, report: &mut Report, follows: bool) -> Result<()> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !report.is_closed() {
        tokio::select! {
            readable = sightings.readable() => readable.context("cannot wait for the kernel")?,
            _ = tick.tick() => {
                report.lost(sightings.unseen()?)?;
                report.ask_anew();
                if follows && !sightings.follows_anybody() {
                    break;
                }
            }
        }
        while some(sightings, report).await? == AT_ONCE {
            yield_now().await;
        }
    }
    Ok(())
}

/// Tells of what waits, and of how many.
async fn some(sightings: &mut Sightings, report: &mut Report) -> Result<usize> {
    let mut told = 0;
    while told < AT_ONCE
        && let Some(sighting) = sightings.take()
    {
        report.tell(&sighting).await?;
        told += 1;
    }
    report.flush()?;
    Ok(told)
}

/// Tells the rest, and how much there was.
async fn finish(mut sightings: Sightings, mut report: Report) -> Result<()> {
    sightings.detach();
    while some(&mut sightings, &mut report).await? > 0 {}
    report.lost(sightings.unseen()?)?;
    report.end()
}

/// SIGINT, SIGTERM or SIGHUP.
fn told_to_end() -> Result<impl Future<Output = ()>> {
    let listen = |kind| signal(kind).context("cannot watch for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}
