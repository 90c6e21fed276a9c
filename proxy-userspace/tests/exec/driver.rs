//! The program under test: `culvert exec` without interception.

use std::ffi::OsString;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_userspace::{
    cgroup::Cgroup2,
    exec::{
        child::Command,
        ending::Ending,
        identity::RunAs,
        job::{Job, JobError, Leftovers},
        signals::Signals,
    },
};

pub(crate) const SUBCOMMAND: &str = "exec";

/// `[--wait] [--user NAME | --root] [--raise-limit] COMMAND ARGS`
pub(crate) fn main(args: &[OsString]) -> u8 {
    match run(args) {
        Ok(ending) => ending.reproduce(),
        Err(error) => {
            eprintln!("culvert: {error:#}");
            match error.downcast_ref() {
                Some(JobError::Spawn(spawn)) => spawn.code(),
                _ => 1,
            }
        }
    }
}

fn run(args: &[OsString]) -> Result<Ending> {
    let mut leftovers = Leftovers::End;
    let mut run_as = RunAs::Invoker;
    let mut open_files = None;
    let mut args = args.iter();
    let program = loop {
        let arg = args.next().context("no command")?;
        match arg.to_str() {
            Some("--wait") => leftovers = Leftovers::Wait,
            Some("--root") => run_as = RunAs::Root,
            Some("--user") => {
                let name = args.next().context("no user")?;
                run_as = RunAs::User(name.to_string_lossy().into_owned());
            }
            Some("--raise-limit") => {
                let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
                setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
                open_files = Some((soft, hard));
            }
            _ => break arg,
        }
    };
    let command = Command {
        program: program.clone(),
        args: args.cloned().collect(),
        identity: run_as.resolve()?,
        open_files,
    };
    // As culvert does: everything is set up before the runtime starts.
    let signals = Signals::install()?;
    let mut job = Job::prepare(&Cgroup2::find()?, signals)?;
    job.spawn(&command)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ending = runtime.block_on(job.wait(leftovers))?;
    job.finish()?;
    Ok(ending)
}
