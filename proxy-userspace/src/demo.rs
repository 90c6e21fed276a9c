//! `culvert demo`: an app, an origin and a proxy on this machine alone, and culvert between them for real.
//!
//! The app is a process of its own in a cgroup of its own, the hooks are attached to that cgroup, and everything is in
//! a network namespace of its own. Each connection is observed by the app, the kernel, the relay, the proxy and the
//! origin, and all have to agree with what the configuration says. `steps` is what is done, `stage` does it; in the
//! end `traces` looks whether anything is left.

mod app;
mod network;
mod payload;
mod servers;
mod stage;
mod steps;
mod table;
mod traces;

use std::{process::ExitCode, thread, time::Instant};

use anyhow::{Context as _, Result, anyhow};

use self::{
    stage::{Ended, play},
    table::Table,
    traces::Traces,
};
use crate::{
    cgroup::{Cgroup2, OwnCgroup},
    exec::reaper::Reaper,
    failure::{Class, Failure},
    privileges,
};

/// Runs the demonstration; the exit code says whether everything was as expected.
///
/// # Errors
/// When it cannot be run to its end; a failure of class "missing" when this machine or these privileges lack something.
pub(crate) fn run() -> Result<ExitCode> {
    let [load, attach, verify] = privileges::NEEDED;
    privileges::require_all(&[load, attach, verify, privileges::NAMESPACE])?;
    let cgroups = Cgroup2::find().map_err(|error| Failure::missing(error.to_string()))?;
    let begun = Instant::now();
    let table = Table::new();
    table.title();

    let dir = OwnCgroup::planned(&cgroups)?;
    // Removes the cgroup should we be killed.
    let reaper = Reaper::start(&dir)?;
    let cgroup = OwnCgroup::create(&cgroups, dir.clone())?;
    let Ended {
        connections,
        exchanged,
        differences: mut wrong,
        objects,
        namespace,
    } = thread::scope(|scope| {
        let stage = thread::Builder::new()
            .name("demo".to_owned())
            .spawn_scoped(scope, || play(&cgroup, &table))
            .context("cannot start a thread")?;
        stage
            .join()
            .map_err(|_| anyhow!("the demonstration panicked"))?
    })?;
    cgroup.remove()?;
    reaper.finish();

    let (programs, links) = (objects.programs.len(), objects.links.len());
    let left = Traces {
        objects,
        namespace,
        cgroup: dir,
    }
    .left();
    if left.is_empty() {
        table.remark(&format!(
            "Nothing is left: {programs} programs, {links} links, the cgroup and the namespace are gone."
        ));
    }
    wrong.extend(left);
    table.end(connections, exchanged, begun.elapsed(), &wrong);
    Ok(if wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Class::Failed.exit_code())
    })
}

/// What the hidden subcommand does: the app.
///
/// # Errors
/// When it is not run by [`run`].
pub(crate) fn app() -> Result<()> {
    app::main().context("the app of the demonstration lost its caller")
}
