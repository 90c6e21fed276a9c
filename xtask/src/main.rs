//! Builds, runs, tests and lints culvert; started as `cargo xtask`.

mod command;
mod packages;
mod progress;
mod toolchain;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Builds, runs, tests and lints culvert
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
}

fn main() -> Result<()> {
    let task = Arguments::parse().task;
    let workspace = Workspace::locate()?;
    match task {
        Task::Setup => {
            let toolchain = toolchain::set_up(&workspace)?;
            println!("compiler  {}", toolchain.compiler.version);
            println!("          {}", toolchain.compiler.rustc.display());
            println!("linker    {}", toolchain.linker.display());
            println!("described {}", toolchain.config.display());
        }
    }
    Ok(())
}
