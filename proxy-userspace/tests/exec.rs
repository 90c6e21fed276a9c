//! `exec` with real processes, cgroups and terminals, but without interception. Needs root.
//!
//! This binary is also the program under test: called with `exec` it runs a command the way culvert does, called with
//! `__reap` it is the reaper.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its functions too"
)]

/// Lists the tests of a module.
macro_rules! tests {
    [$($name:ident,)*] => {
        pub(crate) const TESTS: &[crate::Test] = &[$((stringify!($name), $name),)*];
    };
}

#[path = "exec/cgroups.rs"]
mod cgroups;
#[path = "exec/command.rs"]
mod command;
#[path = "exec/driver.rs"]
mod driver;
#[path = "exec/environment.rs"]
mod environment;
#[path = "exec/harness.rs"]
mod harness;
#[path = "exec/leftovers.rs"]
mod leftovers;
#[path = "exec/reaper.rs"]
mod reaper;
#[path = "exec/terminal.rs"]
mod terminal;

use std::{ffi::OsString, path::Path, process::ExitCode};

use libtest_mimic::{Arguments, Trial};
use proxy_userspace::exec::reaper as subject;

/// A test by name.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|word| word.to_str()) {
        Some(subject::SUBCOMMAND) => {
            let reaped = subject::main(Path::new(&args[1]));
            ExitCode::from(u8::from(reaped.is_err()))
        }
        Some(driver::SUBCOMMAND) => ExitCode::from(driver::main(&args[1..])),
        _ => run_tests(),
    }
}

fn run_tests() -> ExitCode {
    let groups: [(&str, &[Test]); 6] = [
        ("cgroups", cgroups::TESTS),
        ("command", command::TESTS),
        ("environment", environment::TESTS),
        ("leftovers", leftovers::TESTS),
        ("reaper", reaper::TESTS),
        ("terminal", terminal::TESTS),
    ];
    let trial = |group: &str, (name, test): Test| {
        Trial::test(format!("{group}::{name}"), move || {
            if !nix::unistd::geteuid().is_root() {
                return Err("needs root: it makes cgroups and becomes other users".into());
            }
            test();
            Ok(())
        })
    };
    let trials = groups
        .iter()
        .flat_map(|(group, tests)| tests.iter().map(|test| trial(group, *test)))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
