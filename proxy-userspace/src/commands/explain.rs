//! Why a connection is captured, or is not.

use std::{os::unix::process::parent_id, path::Path};

use anyhow::{Context as _, Result};

use super::remote::{OTHER_VERSION, place, runtime};
use crate::{
    admin::{self, AskError},
    cgroup::{self, Cgroup2, Reference},
    cli::ExplainArgs,
    daemon,
    exec::{account::Accounts, identity::RunAs},
    explain::{
        self, FastPath, hooks,
        subject::{self, Changes},
    },
    failure::Failure,
    paint::{self, Paint},
    proxy::obstacle,
    resolve,
    status::explanation::{Explanation, Request},
};

pub(super) fn run(args: &ExplainArgs) -> Result<()> {
    let cgroups = Cgroup2::find()?;
    let connection = connection(args, &cgroups)?;
    let mut explanation = match &args.config {
        Some(file) => by_file(file, &cgroups, connection)?,
        None => by_daemon(args, &connection)?,
    };
    match hooks::on_the_way(&cgroups, &explanation.connection) {
        Ok(hooks) => explanation.hooks = hooks,
        Err(error) => tracing::warn!("cannot list what is attached on its way: {error}"),
    }
    if args.json {
        paint::print(format_args!("{}\n", serde_json::to_string(&explanation)?));
    } else {
        paint::print(explanation.text(Paint::for_stdout()));
    }
    Ok(())
}

/// What is asked about.
fn connection(args: &ExplainArgs, cgroups: &Cgroup2) -> Result<Request> {
    let source = args.inbound.or(args.passing);
    let process = if source.is_some() {
        None
    } else {
        let pid = match &args.container {
            Some(name) => Some(first_of(name, cgroups)?),
            None => args.pid,
        };
        let changes = changes(args, pid.is_some(), cgroups)?;
        let pid = pid.unwrap_or_else(parent_id);
        let opener = subject::opener(pid, &changes);
        Some(opener.with_context(|| format!("cannot tell who process {pid} is"))?)
    };
    Ok(Request {
        to: args.to,
        process,
        source,
        interface: args.interface.clone(),
        passes: args.passing.is_some(),
    })
}

/// The first process of a container.
fn first_of(name: &str, cgroups: &Cgroup2) -> Result<u32> {
    let container = resolve::container(cgroups, name);
    if let Some(problem) = container.problem {
        return Err(Failure::usage(format!("container {name:?}: {problem}")).into());
    }
    let mut first = None;
    for directory in &container.directories {
        cgroup::walk(directory, &mut |directory| {
            first = first.or_else(|| cgroup::processes(directory).into_iter().next());
            first.is_none()
        });
    }
    Ok(first.ok_or_else(|| {
        Failure::usage(format!(
            "container {name:?} does not run, as far as cgroups show"
        ))
    })?)
}

fn changes(args: &ExplainArgs, is_named: bool, cgroups: &Cgroup2) -> Result<Changes> {
    let account = match &args.user {
        Some(user) => Some(account(user)?),
        None if is_named => None,
        // Who called through sudo does not ask about root.
        None => RunAs::Invoker
            .resolve()?
            .map(|invoker| (invoker.uid, Some(invoker.gid))),
    };
    let cgroup = match &args.cgroup {
        None => None,
        Some(text) => {
            let reference = text.parse::<Reference>();
            let reference = reference.map_err(|error| Failure::usage(error.to_string()))?;
            let mut found = cgroups.resolve(&reference).into_iter();
            let first = found.next();
            Some(
                first
                    .ok_or_else(|| Failure::usage(format!("there is no cgroup {text}")))?
                    .path,
            )
        }
    };
    Ok(Changes {
        account,
        cgroup,
        exe: args.exe.clone(),
    })
}

/// A user and its group; the number of one that no account has is taken as it is.
fn account(user: &str) -> Result<(u32, Option<u32>)> {
    if let Some(account) = Accounts::default().find(user)? {
        return Ok((account.uid, Some(account.gid)));
    }
    let uid = user
        .parse()
        .map_err(|_| Failure::usage(format!("there is no user {user:?}")))?;
    Ok((uid, None))
}

/// By the rules in force.
fn by_daemon(args: &ExplainArgs, connection: &Request) -> Result<Explanation> {
    let told = admin::tell(place(&args.daemon), admin::EXPLAIN, connection);
    let json = runtime()?.block_on(told).map_err(|error| {
        let hint = matches!(error, AskError::NoDaemon { .. });
        let error = anyhow::Error::from(error);
        if hint {
            return error.context("no daemon is running whose rules could be asked; --config FILE asks those of a file");
        }
        error
    })?;
    serde_json::from_slice(&json).context(OTHER_VERSION)
}

/// By those of a file, as if they were in force.
fn by_file(file: &Path, cgroups: &Cgroup2, connection: Request) -> Result<Explanation> {
    let config = daemon::load(file)?;
    let fast_path = FastPath {
        router: &config.router,
        rests: config.router.allow().err().map(|error| error.to_string()),
        obstacle,
    };
    Ok(explain::by_file(&config, fast_path, cgroups, connection)?)
}
