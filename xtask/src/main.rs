//! Builds, runs, tests, lints and packs culvert; started as `cargo xtask`.

mod bench;
mod build;
mod command;
mod dist;
mod kernels;
mod lint;
mod packages;
mod progress;
mod run;
mod test;
mod toolchain;
mod workspace;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{build::Profile, workspace::Workspace};

/// Builds, runs, tests, lints and packs culvert
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what building the eBPF programs needs
    Setup,
    /// Build the culvert binary and print its path
    Build {
        /// Build for debugging instead of for use
        #[arg(long)]
        debug: bool,
    },
    /// Build culvert and run it as root
    Run {
        /// Arguments for culvert
        #[arg(last = true, default_value = "demo")]
        arguments: Vec<OsString>,
    },
    /// Run all tests, those that need root and the running kernel included
    Test {
        /// Run only tests whose name contains this
        filter: Option<String>,
        /// Run a selection on Debian's kernels instead, under QEMU
        #[arg(long)]
        kernels: bool,
        /// Only on kernels of this series, such as 6.1
        #[arg(long, requires = "kernels")]
        series: Vec<String>,
        /// All of the selection, not only what shows that everything does its main job
        #[arg(long, requires = "kernels")]
        whole: bool,
        /// With culvert built for debugging
        #[arg(long, requires = "kernels")]
        debug: bool,
        /// Put the result into the README
        #[arg(long, requires = "whole", conflicts_with_all = ["debug", "series", "filter"])]
        write_readme: bool,
        /// Succeed where QEMU or the kernels cannot be had, and say so
        #[arg(long, requires = "kernels")]
        if_possible: bool,
    },
    /// Run verified traffic in all roles while everything around it changes, and look that nothing is lost and nothing grows
    Soak {
        /// For how long
        #[arg(long, default_value_t = 60)]
        minutes: u64,
    },
    /// Measure culvert beside its peers
    Bench {
        /// Arguments for the benchmark: --quick, --pin, --only, --json, --html, --compare; --help tells all
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Make a tarball and a Debian package, and print their paths
    Dist {
        /// Of culvert built for debugging
        #[arg(long)]
        debug: bool,
        /// Of a binary that is there already
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
        /// Put them into this folder instead of `dist` in Cargo's target folder
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
    /// Check formatting, lints, documentation, layers, sizes and dependencies
    Lint,
}

fn main() -> ExitCode {
    let task = Arguments::parse().task;
    perform(task).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn perform(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Setup => println!("{}", toolchain::set_up(&workspace)?),
        Task::Build { debug } => print_path(&workspace, Profile::of(debug))?,
        Task::Run { arguments } => run::run(&workspace, &arguments)?,
        Task::Test {
            filter,
            kernels: true,
            series,
            whole,
            debug,
            write_readme,
            if_possible,
        } => {
            let wanted = kernels::Wanted {
                profile: Profile::of(debug),
                series: &series,
                whole,
                filter: filter.as_deref(),
                writes_readme: write_readme,
                if_possible,
            };
            return kernels::test(&workspace, &wanted);
        }
        Task::Test { filter, .. } => return test::test(&workspace, filter.as_deref()),
        Task::Soak { minutes } => test::soak(&workspace, minutes)?,
        Task::Bench { arguments } => bench::bench(&workspace, &arguments)?,
        Task::Dist { debug, binary, out } => {
            let wanted = dist::Wanted {
                profile: Profile::of(debug),
                binary: binary.as_deref(),
                folder: out.as_deref(),
            };
            for package in dist::dist(&workspace, &wanted)? {
                println!("{}", package.display());
            }
        }
        Task::Lint => return lint::lint(&workspace),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_path(workspace: &Workspace, profile: Profile) -> Result<()> {
    println!("{}", build::build(workspace, profile)?.display());
    Ok(())
}
