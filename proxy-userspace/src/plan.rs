//! `culvert plan`: what `run` would attach where with a configuration, and what is missing for it.
//!
//! Reads only. Programs are loaded for a moment to see whether the kernel takes them, which leaves no trace; nothing is
//! attached, pinned, mounted or listened on afterwards.

mod gateway;
mod needs;
mod report;
mod router;
mod sources;

use std::{collections::BTreeSet, path::Path, process::ExitCode};

use anyhow::Result;
use proxy_common::names;

use self::{
    needs::{Needs, lacking_around},
    report::Report,
    sources::Answers,
};
use crate::{
    cgroup::{Cgroup2, Reference, processes, walk},
    config::{self, Config},
    daemon, delivery,
    exec::account::Accounts,
    failure::{Class, Failure},
    intercept::{
        MapShape,
        guard::{self, Bpffs},
        ingress, map_shapes,
    },
    paint::{self, Paint},
    policy::{self, Compiled, ExeRef, Names},
    privileges, resolve,
    rule::{Rule, container_in},
};

/// Prints the plan; the exit code says whether something is missing.
///
/// # Errors
/// When the configuration is wrong: a failure of usage.
pub(crate) fn run(file: &Path) -> Result<ExitCode> {
    let config = daemon::load(file)?;
    let cgroups = Cgroup2::find().ok();
    let names = cgroups.as_ref().map_or_else(Names::default, |cgroups| {
        resolve::resolve(config.roles(), cgroups, &Names::default())
    });
    let compiled = policy::compile(config.roles(), &names)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let bpffs = Bpffs::find();
    let answers = Answers::of(&config);
    let mut needs = Needs::of(&config, &compiled, &bpffs);
    needs.interfaces.extend(answers.program);
    let tables = tables(&config, &compiled);
    let mut missing = needs.lacking(&compiled);
    missing.extend(lacking_around(&config, cgroups.as_ref(), &tables));

    paint::print(config::summary(&config));
    let mut report = Report::new(Paint::for_stdout());
    report.section("attach", &attach(&config, cgroups.as_ref(), &needs, &bpffs));
    report.section("listen", &listen(&config));
    missing.extend(answers.missing);
    if !answers.rows.is_empty() {
        report.section("answers to clients' addresses", &answers.rows);
    }
    report.section(
        "names in rules",
        &resolved(&config, cgroups.as_ref(), &names),
    );
    report.section("kernel tables", &table_rows(&tables));
    report.missing(&missing);
    paint::print(report.into_text());
    Ok(if missing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Class::Missing.exit_code())
    })
}

type Row = (String, String);

fn row(left: impl Into<String>, right: impl Into<String>) -> Row {
    (left.into(), right.into())
}

fn attach(config: &Config, cgroups: Option<&Cgroup2>, needs: &Needs, bpffs: &Bpffs) -> Vec<Row> {
    let mut rows = Vec::new();
    if let Some(cgroups) = cgroups {
        let directory = cgroups.mount().join(&config.daemon.cgroup);
        let below = cgroups.at(&directory).map_or_else(
            || "does not exist".to_owned(),
            |cgroup| format!("id {}, {} processes now", cgroup.id, population(&directory)),
        );
        let shown = directory.display().to_string();
        let shown = shown.trim_end_matches('/');
        rows.push(row("cgroup", format!("{shown}: {below}")));
    }
    rows.push(row("hooks", needs.hooks.join(" ")));
    if !needs.namespace.is_empty() {
        rows.push(row(
            "arrivals",
            format!(
                "{} on this network namespace, {} on the cgroup of the daemon, since rules have `listen`",
                names::REVERSE,
                names::OWN_EVENTS
            ),
        ));
    }
    rows.extend(gateway::rows(config));
    rows.extend(router::rows(config));
    if !needs.tracepoints.is_empty() {
        rows.push(row(
            "tracepoints",
            format!("{}, since rules have `pid`", needs.tracepoints.join(" ")),
        ));
    }
    let pinned = if needs.guard.is_empty() {
        "none, since no rule has `on_relay_failure = \"refuse\"`".to_owned()
    } else {
        let place = match bpffs {
            Bpffs::Mounted(path) => format!("pinned below {}/culvert", path.display()),
            Bpffs::Absent(path) => format!(
                "pinned in a bpffs that is mounted at {} for it",
                path.display()
            ),
        };
        format!(
            "{}, {place}; they stay when the daemon is killed",
            needs.guard.join(" ")
        )
    };
    rows.push(row("guard", pinned));
    let stale = guard::stale();
    if !stale.is_empty() {
        let places: Vec<_> = stale
            .iter()
            .map(|place| place.display().to_string())
            .collect();
        rows.push(row(
            "left over",
            format!("{} of a killed daemon, which is removed", places.join(", ")),
        ));
    }
    let stale = ingress::stale().unwrap_or_default();
    if !stale.is_empty() {
        let interfaces: Vec<_> = stale.into_iter().collect();
        rows.push(row(
            "left over",
            format!(
                "filters on {} of a killed daemon, which are removed",
                interfaces.join(", ")
            ),
        ));
    }
    let stale = delivery::stale().unwrap_or_default();
    if !stale.is_empty() {
        rows.push(row(
            "left over",
            format!(
                "the routing table {} of a killed daemon, which is removed",
                numbers(&stale)
            ),
        ));
    }
    rows
}

fn numbers(tables: &[u32]) -> String {
    let numbers: Vec<_> = tables.iter().map(u32::to_string).collect();
    numbers.join(", ")
}

/// How many processes are in a cgroup and below it.
fn population(directory: &Path) -> usize {
    let mut count = 0;
    walk(directory, &mut |cgroup| {
        count += processes(cgroup).len();
        true
    });
    count
}

fn listen(config: &Config) -> Vec<Row> {
    let wanted = config.daemon.max_connections as usize;
    let allowed =
        privileges::open_files().map_or(wanted, |(_, hard)| privileges::connections_of(hard));
    let connections = if allowed < wanted {
        format!(
            "{allowed}: the limit on open files does not allow the {wanted} configured (LimitNOFILE=)"
        )
    } else {
        wanted.to_string()
    };
    let mut rows = vec![
        row(
            "addresses",
            "127.0.0.1 and [::1], on ports that the kernel chooses; nowhere else, whatever rules have in `listen`",
        ),
        row(
            "workers",
            format!("{}, each with listeners of its own", config.daemon.workers),
        ),
        row("connections", connections),
    ];
    if config.forward.iter().any(Rule::enters_namespaces) {
        rows.push(row(
            "containers",
            "the same addresses in the network namespaces of containers that rules name, by a thread of its own",
        ));
    }
    rows
}

/// What the names in rules stand for now.
fn resolved(config: &Config, cgroups: Option<&Cgroup2>, names: &Names) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, known) in &names.containers {
        let left = format!("container {name}");
        let id = known.id.as_deref().unwrap_or_default();
        if known.directories.is_empty() {
            let problem = known.problem.as_deref();
            let right = problem.unwrap_or("does not run; waits for it");
            rows.push(row(left.clone(), right));
        }
        let directories = known.directories.iter();
        rows.extend(directories.map(|it| row(left.clone(), format!("id {id}, {}", it.display()))));
    }
    let cgroups_alone = names.cgroups.keys().filter(|it| container_in(it).is_none());
    for reference in cgroups_alone {
        let found = cgroups.zip(reference.parse::<Reference>().ok());
        let found = found.map_or_else(Vec::new, |(cgroups, parsed)| cgroups.resolve(&parsed));
        let left = format!("cgroup {reference}");
        if found.is_empty() {
            rows.push(row(left.clone(), "there is none yet; waits for it"));
        }
        rows.extend(found.iter().map(|cgroup| {
            row(
                left.clone(),
                format!("{}, id {}", cgroup.path.display(), cgroup.id),
            )
        }));
    }
    for (name, number) in &names.interfaces {
        let right = number.map_or_else(
            || "there is none yet; waits for it".to_owned(),
            |number| format!("number {number}"),
        );
        rows.push(row(format!("interface {name}"), right));
    }
    for (path, files) in &names.exes {
        let left = format!("exe {}", path.display());
        let right = files
            .first()
            .map_or_else(|| "there is none yet; waits for it".to_owned(), file);
        rows.push(row(left, right));
    }
    let accounts = Accounts::default();
    rows.extend(single_uids(&config.forward).into_iter().map(|uid| {
        let account = accounts.find(&uid.to_string()).ok().flatten();
        let name = account.filter(|account| account.uid == uid);
        row(
            format!("uid {uid}"),
            name.map_or_else(|| "no account has it".to_owned(), |it| it.name),
        )
    }));
    rows
}

/// The kernel's `dev_t`: 20 bits of minor number below the major one.
fn file(exe: &ExeRef) -> String {
    let (major, minor) = (exe.device >> 20, exe.device & 0xf_ffff);
    format!("inode {} on device {major}:{minor}", exe.inode)
}

/// User ids that rules name one by one.
fn single_uids(rules: &[Rule]) -> BTreeSet<u32> {
    let ranges = rules.iter().flat_map(|rule| {
        let uid = &rule.matches.uid;
        uid.include.iter().chain(&uid.exclude)
    });
    ranges
        .filter(|range| range.start() == range.end())
        .map(|range| *range.start())
        .collect()
}

/// The tables that depend on the configuration, with the entries it makes.
fn tables(config: &Config, compiled: &Compiled) -> Vec<(MapShape, usize)> {
    let mut tables = Vec::new();
    for shape in map_shapes() {
        let entries = match shape.name {
            names::PREFIXES => compiled.prefixes.len(),
            names::MEMBERS => compiled.members.len(),
            names::DESCENDANTS => compiled.pids.len(),
            names::ACTIONS => compiled.actions.len(),
            names::HOSTS => compiled.hosts.len(),
            names::AREAS => compiled.areas.len(),
            names::CELLS => compiled.cells.len(),
            names::RECORDS => config.daemon.max_pending as usize,
            _ => continue,
        };
        let room = match shape.name {
            names::RECORDS => config.daemon.max_pending,
            // The other half is for the next generation.
            names::ACTIONS | names::HOSTS => shape.entries / 2,
            _ => shape.entries,
        };
        tables.push((
            MapShape {
                entries: room,
                ..shape
            },
            entries,
        ));
    }
    tables
}

/// The tables of rules for what arrives are shown only where there are such rules.
fn table_rows(tables: &[(MapShape, usize)]) -> Vec<Row> {
    let used = |(shape, entries): &(MapShape, usize)| {
        if shape.name == names::RECORDS {
            let bytes = *entries * (shape.key + shape.value) as usize;
            return row(
                shape.name,
                format!(
                    "room for {entries} connections that are not accepted yet, {} KiB",
                    bytes >> 10
                ),
            );
        }
        row(shape.name, format!("{entries} of {}", shape.entries))
    };
    let is_shown = |(shape, entries): &&(MapShape, usize)| {
        *entries > 0 || ![names::HOSTS, names::AREAS, names::CELLS].contains(&shape.name)
    };
    tables.iter().filter(is_shown).map(used).collect()
}

#[cfg(test)]
mod tests;
