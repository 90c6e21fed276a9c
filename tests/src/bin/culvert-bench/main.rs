//! culvert beside its peers: what each costs and how fast it is, measured in one run.
//!
//! `cargo xtask bench`, as root. Rounds go through the contenders in turn, and each figure is compared with that of no proxy,
//! and of the best peer, in the same round: those ratios are the result. Each contender has a sandbox of its own with
//! a client, a server and the proxy, which are processes of their own; client and server are this program again.

#![allow(
    clippy::cast_precision_loss,
    reason = "figures of a measurement, and sixteen digits of them"
)]

mod comparison;
mod contender;
mod intercept;
mod interrupt;
mod load;
mod machine;
mod metric;
mod progress;
mod report;
mod results;
mod rounds;
mod run;
mod scene;
mod summary;
mod targets;
mod usage;
mod work;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Measures culvert beside its peers
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    bench: Bench,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What is measured, and where the results go.
#[derive(Args)]
struct Bench {
    /// Measure everything, but too short for the figures to mean anything
    #[arg(long)]
    quick: bool,
    /// Run everything on one core, the first or the one that is named, so that rates show what the work costs
    #[arg(long, value_name = "CORE", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    pin: Option<usize>,
    /// Measure on a host that client and server, two others, are routed by: what passes through, without idle and slow-reader
    #[arg(long)]
    gateway: bool,
    /// Measure only work whose name begins so: rr, rr-64-1, bulk-up, connect, idle, slow-reader, intercept
    #[arg(long, value_name = "WORK")]
    only: Vec<String>,
    /// Measure only contenders whose name begins so; direct is always measured
    #[arg(long, value_name = "NAME")]
    contender: Vec<String>,
    /// Measure that often
    #[arg(long, value_name = "NUMBER")]
    rounds: Option<u32>,
    /// Write everything that was found to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report for a browser to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Compare with an earlier run's --json file
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

/// What this program is started as by itself.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    /// Makes connections as it is told
    Client {
        #[arg(long)]
        threads: usize,
    },
    /// Serves them
    Server {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        threads: usize,
    },
    /// The plainest proxy
    Relay {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        threads: usize,
    },
}

fn main() -> ExitCode {
    let Arguments { bench, role } = Arguments::parse();
    let done = match role {
        None => run::run(&bench),
        Some(role) => play(&role),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(role: &Role) -> Result<()> {
    match *role {
        Role::Client { threads } => load::client::serve(threads),
        Role::Server { port, threads } => load::server::serve(port, threads),
        Role::Relay { port, to, threads } => contender::relay(port, to, threads),
    }
}
