//! Man pages and completions, made of the command line itself.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

/// It is types only, so that it is compiled here without the rest of culvert, eBPF programs included.
#[path = "../../../proxy-userspace/src/cli.rs"]
#[expect(unreachable_pub, reason = "it is public where it comes from")]
mod cli;

/// The section of commands for administrators.
const SECTION: &str = "8";
/// What every command uses.
const FILES: &str = r#".SH FILES
.TP
/etc/culvert/culvert.toml
The configuration, unless \-\-config names another one.
.TP
/run/culvert/admin.sock
Where a running daemon is asked how it is, unless its configuration says otherwise.
.TP
/sys/fs/bpf/culvert
Rules with on_relay_failure = "refuse", which outlive a daemon that is killed.
"#;

/// A file, by its name.
pub(super) type Page = (String, Vec<u8>);

/// The completions of one shell: the name of their file, and what is in it.
pub(super) fn completions(shell: Shell) -> Page {
    let mut command = command();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "culvert", &mut script);
    let name = match shell {
        Shell::Zsh => "_culvert",
        Shell::Fish => "culvert.fish",
        _ => "culvert",
    };
    (name.to_owned(), script)
}

/// A man page for culvert, and one for each of its commands.
pub(super) fn manual(version: &str) -> Result<Vec<Page>> {
    let mut command = command();
    command.build();
    let mut pages = vec![page(&command, version)?];
    for command in command.get_subcommands() {
        if !command.is_hide_set() && command.get_name() != "help" {
            pages.push(page(command, version)?);
        }
    }
    Ok(pages)
}

fn command() -> Command {
    cli::Cli::command()
}

fn page(command: &Command, version: &str) -> Result<Page> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let mut text = Vec::new();
    Man::new(command.clone())
        .section(SECTION)
        .source(format!("culvert {version}"))
        .manual("System administration")
        .render(&mut text)
        .with_context(|| format!("the man page of {name}"))?;
    text.extend(FILES.bytes());
    Ok((format!("{name}.{SECTION}"), text))
}

/// Where a man page stands below `man`.
pub(super) fn place(name: &str) -> impl AsRef<Path> + use<> {
    format!("man{SECTION}/{name}")
}
