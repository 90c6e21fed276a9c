//! The `culvert` command: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use mimalloc::MiMalloc;
use proxy_userspace::{cli::Cli, commands};

/// See [`proxy_userspace::heap`].
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    commands::start_log(&cli);
    match commands::dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            if cli.verbose > 0 {
                eprintln!("culvert: {error:#}");
            } else {
                eprintln!("culvert: {}", commands::sentence(&error));
            }
            ExitCode::from(commands::class_of(&error).exit_code())
        }
    }
}
