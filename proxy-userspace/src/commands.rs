//! From a parsed command line to the module that does it.

mod explain;
mod look;
mod ready;
mod remote;

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    admin,
    cgroup::Cgroup2,
    cli::{Cli, Command, DetachArgs, LogFormat},
    config, daemon, delivery, demo, doctor, exec,
    failure::{Class, Failure},
    intercept::{InterceptError, guard, ingress, standing},
    observe, paint, plan, privileges,
    proxy::ProxyError,
    run_command,
};

/// Starts logging to standard error. `RUST_LOG` wins over `-v`.
pub fn start_log(cli: &Cli) {
    let quiet = !matches!(cli.command, Command::Run(_) | Command::Sidecar(_));
    let level = match cli.verbose {
        0 if quiet => "warn",
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    // The libraries below us log every relocation and every handshake at their debug level.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        let own = format!("{level},aya=warn,aya_obj=warn,hickory_resolver=warn,rustls=warn");
        EnvFilter::new(if cli.verbose > 1 {
            level.to_owned()
        } else {
            own
        })
    });
    let log = fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_target(false);
    let colours = paint::is_wanted(&std::io::stderr());
    match cli.log_format {
        LogFormat::Text => log.with_ansi(colours).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Does what the command line says.
///
/// # Errors
/// With a [`Failure`] in the chain where the exit code is not 1.
pub fn dispatch(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Run(args) => daemon::run(args, cli.verbose > 0)?,
        Command::Sidecar(args) => daemon::sidecar(args, cli.verbose > 0)?,
        Command::Ready(args) => ready::run(args)?,
        Command::Check { file } => {
            let config = daemon::load(file)?;
            paint::print(config::summary(&config));
        }
        Command::Status(args) => look::status(args)?,
        Command::Conns(args) => look::conns(args)?,
        Command::Top(args) => look::top(args)?,
        Command::Rules(args) => look::rules(args)?,
        Command::Upstreams(args) => look::upstreams(args)?,
        Command::Metrics(daemon) => look::metrics(daemon)?,
        Command::Explain(args) => explain::run(args)?,
        Command::End(args) => look::end(args)?,
        Command::Drain(args) => remote::drain(args)?,
        Command::Restore(args) => remote::restore(args)?,
        Command::Detach(args) => detach(args)?,
        Command::Exec(args) => return run_command::run(args, cli.verbose > 0),
        Command::Watch(args) => return observe::run(args),
        Command::Reap { cgroup } => exec::reaper::main(cgroup)?,
        Command::Plan(arg) => return plan::run(&arg.config),
        Command::Doctor { json } => return Ok(doctor::run(*json)),
        Command::Demo => return demo::run(),
        Command::DemoApp => demo::app()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn detach(args: &DetachArgs) -> Result<()> {
    // Without them the pins cannot even be seen.
    privileges::require()?;
    admin::remove_stale()?;
    // All of it, also where something cannot be removed.
    let (guards, filters) = (guard::remove_stale(), ingress::remove_stale());
    let routing = delivery::remove_stale();
    let standing = args.cgroup.as_deref().map_or(Ok(0), detach_sidecars);
    match guards?.max(filters?).max(routing?).max(standing?) {
        0 => println!("nothing was left in force"),
        1 => println!("removed what a killed daemon had left in force"),
        count => println!("removed what {count} killed daemons had left in force"),
    }
    Ok(())
}

fn detach_sidecars(cgroup: &Path) -> Result<usize> {
    privileges::require_all(&[privileges::SURVEY])?;
    let cgroups = Cgroup2::find()?;
    let directory = cgroups.dir(&Path::new("/").join(cgroup))?;
    Ok(standing::remove_stale(&directory)?)
}

/// An error as one sentence: what failed, and the first cause.
#[must_use]
pub fn sentence(error: &anyhow::Error) -> String {
    match error.chain().nth(1) {
        Some(cause) => format!("{error}: {cause} (-v shows all causes)"),
        None => error.to_string(),
    }
}

/// The class of an error: what a [`Failure`] in its chain says, or what kind of [`ProxyError`] or [`InterceptError`] it is.
#[must_use]
pub fn class_of(error: &anyhow::Error) -> Class {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.class();
    }
    let of_proxy = error.downcast_ref::<ProxyError>();
    let of_programs = error.downcast_ref::<InterceptError>();
    if of_proxy.is_some_and(ProxyError::is_missing_feature)
        || of_programs.is_some_and(InterceptError::is_missing_feature)
    {
        Class::Missing
    } else {
        Class::Failed
    }
}
