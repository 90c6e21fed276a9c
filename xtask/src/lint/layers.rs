//! Who may use whom inside `proxy-userspace`: one crate cannot say it in its manifest, so a table does.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Result, bail};

use super::source::{self, Source};

/// The modules, lowest layer first. A module uses only modules of lower layers and those that
/// [`SIBLINGS`] allows it.
const LAYERS: [&[&str]; 11] = [
    // Plain types, and what needs the standard library and system calls only.
    &[
        "arguments",
        "balance",
        "cgroup",
        "cli",
        "clock",
        "close",
        "failure",
        "forwarding",
        "heap",
        "lock",
        "netlink",
        "netns",
        "paint",
        "process",
        "rule",
        "socket",
    ],
    // One thing each, which knows neither the other things nor the kernel's programs.
    &[
        "admin",
        "delivery",
        "exec",
        "metrics",
        "netfilter",
        "peek",
        "policy",
        "privileges",
        "proxy_protocol",
        "record",
        "relay",
        "status",
        "upstream",
        "watch",
    ],
    // Upstreams that connections have a choice of.
    &["group"],
    // What a file's text becomes, and what becomes of that.
    &["config", "live", "resolve", "routes"],
    // What the connections of one thread share, and what they ask the kernel side for; what is drained.
    &["access_log", "drain", "shared"],
    // The kernel side, and the life of a connection. Neither knows the other.
    &["connection", "intercept", "listener", "origin"],
    // Both together.
    &["explain", "proxy", "pulse", "worker"],
    // A proxy kept right while the machine and its configuration change.
    &["service"],
    // What is done with it, and statements about a configuration and a machine.
    &["daemon", "demo", "doctor", "plan", "top"],
    &["observe", "run_command"],
    // What the user typed.
    &["commands", "main"],
];

/// What a module may use in its own layer.
const SIBLINGS: [(&str, &[&str]); 11] = [
    ("cgroup", &["rule"]),
    ("connection", &["origin"]),
    ("listener", &["connection"]),
    ("main", &["commands"]),
    ("metrics", &["status"]),
    ("observe", &["run_command"]),
    ("plan", &["daemon"]),
    ("process", &["cgroup", "netlink"]),
    ("proxy", &["pulse", "worker"]),
    ("pulse", &["worker"]),
    ("upstream", &["delivery"]),
];

/// Where errors are only reported, so that their types no longer matter.
const REPORTERS: &[&str] = &[
    "access_log",
    "commands",
    "daemon",
    "demo",
    "doctor",
    "main",
    "observe",
    "plan",
    "privileges",
    "run_command",
    "service",
    "top",
];

/// Crates that are the business of few modules.
const OWNERS: [(&str, &[&str]); 11] = [
    ("anyhow", REPORTERS),
    ("aya", &["intercept"]),
    ("aya_log", &["intercept"]),
    ("clap", &["cli", "main"]),
    (
        "serde",
        &[
            "admin", "config", "demo", "doctor", "drain", "observe", "record", "status",
        ],
    ),
    (
        "netlink_packet_route",
        &["delivery", "intercept", "netlink"],
    ),
    ("netlink_packet_sock_diag", &["netlink"]),
    ("netlink_sys", &["netlink"]),
    ("prost", &["resolve"]),
    ("ratatui", &["top"]),
    ("toml", &["config"]),
];

/// Compares every file of `proxy-userspace` with the tables.
pub(super) fn check(root: &Path) -> Result<()> {
    let sources = Source::below(&root.join("proxy-userspace/src"))?;
    let modules: BTreeSet<_> = sources
        .iter()
        .filter_map(|source| module(&source.path))
        .filter(|module| *module != "lib")
        .collect();
    let mut wrong: Vec<_> = modules
        .iter()
        .filter(|module| layer(module).is_none())
        .map(|module| format!("{module}: give it a layer in {}", file!()))
        .collect();
    for source in sources.iter().filter(|source| !source.is_tests()) {
        if let Some(user) = module(&source.path).filter(|user| layer(user).is_some()) {
            let offences = offences(user, source, &modules).into_iter();
            wrong.extend(offences.map(|what| format!("{}:{what}", source.path.display())));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

/// Each place where a file of the module `user` breaks a table: line and rule.
fn offences(user: &str, source: &Source, modules: &BTreeSet<&str>) -> Vec<String> {
    let lines: Vec<_> = source
        .product()
        .map(|(_, line)| source::code(line))
        .collect();
    let code = lines.join("\n");
    let mut found = Vec::new();
    for start in root_paths(user, &source.path) {
        for (line, rest) in paths(&code, &start) {
            for used in heads(rest)
                .into_iter()
                .filter(|used| modules.contains(used))
            {
                if layer(used).is_some() && !may_use(user, used) {
                    found.push(format!("{line}: {user} must not use {used}"));
                }
            }
        }
    }
    for (name, owners) in OWNERS {
        if !owners.contains(&user) {
            for (line, _) in paths(&code, &format!("{name}::")) {
                found.push(format!("{line}: {name} is for {} only", owners.join(", ")));
            }
        }
    }
    found
}

fn may_use(module: &str, used: &str) -> bool {
    module == used
        || layer(used) < layer(module)
        || SIBLINGS
            .iter()
            .any(|(user, siblings)| *user == module && siblings.contains(&used))
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The top-level module that a file belongs to: `relay` for `relay.rs` and `relay/copy.rs`.
fn module(path: &Path) -> Option<&str> {
    let first = path.components().next()?.as_os_str().to_str()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

/// How paths from the crate's root are written in a file of `module`.
fn root_paths(module: &str, path: &Path) -> [String; 2] {
    let relative = match module {
        // The binary is a crate of its own beside the library.
        "main" => "proxy_userspace::".to_owned(),
        _ => "super::".repeat(path.components().count()),
    };
    ["crate::".to_owned(), relative]
}

/// Every path that begins with `start`: its line and what follows.
fn paths<'a>(code: &'a str, start: &str) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(start) {
        let (before, from) = code.split_at(at);
        let continues = |last: char| last == ':' || is_name(last);
        if !before.ends_with(continues) {
            let line = before.matches('\n').count() + 1;
            found.push((line, from.strip_prefix(start).unwrap_or(from)));
        }
    }
    found
}

/// The first name of a path, or of each path in a group: `a` and `b` for `{a::C, b::{d, e}}`.
fn heads(path: &str) -> Vec<&str> {
    let Some(group) = path.strip_prefix('{') else {
        return vec![first_name(path)];
    };
    let mut names = vec![first_name(group)];
    let mut depth = 1;
    for (at, next) in group.char_indices() {
        match next {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => names.extend(group.get(at + 1..).map(first_name)),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn first_name(path: &str) -> &str {
    let path = path.trim_start();
    path.split_once(|next| !is_name(next))
        .map_or(path, |(name, _)| name)
}

fn is_name(next: char) -> bool {
    next.is_ascii_alphanumeric() || next == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offences_of(path: &str, text: &str) -> Vec<String> {
        let modules = LAYERS
            .iter()
            .flat_map(|layer| layer.iter().copied())
            .collect();
        let source = Source::new(path, text);
        offences(module(&source.path).unwrap(), &source, &modules)
    }

    #[test]
    fn a_module_uses_lower_layers_only() {
        assert_eq!(
            offences_of("listener.rs", "use crate::{close::Why, connection};"),
            [""; 0]
        );
        assert_eq!(
            offences_of("relay/copy.rs", "use crate::relay::Side;"),
            [""; 0]
        );
        assert_eq!(
            offences_of(
                "relay/copy.rs",
                "use std::io;\nuse crate::{\n    close::{A, B},\n    intercept::C,\n};"
            ),
            ["2: relay must not use intercept"]
        );
        assert_eq!(
            offences_of("connection.rs", "fn f() { crate::listener::g() }"),
            ["1: connection must not use listener"]
        );
    }

    #[test]
    fn every_spelling_of_the_root_counts() {
        let wrong = ["1: relay must not use daemon"];
        assert_eq!(offences_of("relay.rs", "use super::daemon;"), wrong);
        assert_eq!(
            offences_of("relay/copy.rs", "use super::super::daemon;"),
            wrong
        );
        assert_eq!(offences_of("relay/copy.rs", "use super::daemon;"), [""; 0]);
        assert_eq!(
            offences_of("exec.rs", "use crate::policy;"),
            ["1: exec must not use policy"]
        );
        assert_eq!(
            offences_of("main.rs", "use proxy_userspace::commands;"),
            [""; 0]
        );
    }

    #[test]
    fn crates_stay_with_their_owners() {
        assert_eq!(
            offences_of("intercept/maps.rs", "use aya::maps::Map;"),
            [""; 0]
        );
        assert_eq!(
            offences_of("relay.rs", "use aya::maps::Map;"),
            ["1: aya is for intercept only"]
        );
        assert_eq!(
            offences_of("relay.rs", "use other::aya::Map; // aya::x"),
            [""; 0]
        );
    }

    #[test]
    fn tests_may_use_anything() {
        let text = "#[cfg(test)]\nmod tests {\n    use crate::daemon;\n}\n";
        assert_eq!(offences_of("relay.rs", text), [""; 0]);
    }
}
