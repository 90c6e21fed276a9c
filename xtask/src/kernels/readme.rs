//! The README's table of what works on which kernel: written from a run, never by hand.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::{
    guests,
    report::{Outcome, Ran, Report},
};
use crate::progress;

/// The table stands between these lines.
const BEGIN: &str = "<!-- written by `cargo xtask test --kernels --whole --write-readme` -->";
const END: &str = "<!-- end -->";

/// What a cell tells.
enum Row {
    /// What culvert says about something on a kernel.
    Check(&'static str),
    /// Whether the tests of a subject passed.
    Tests(&'static str),
}

const ROWS: [(&str, Row); 24] = [
    ("`[[forward]]` rules", Row::Tests(guests::FORWARD)),
    (
        "a refused `connect()` sees ECONNREFUSED",
        Row::Check("refusal"),
    ),
    ("rules with `exe` or `pid`", Row::Check("task_selectors")),
    ("`culvert exec`", Row::Tests(guests::EXEC)),
    ("`culvert sidecar`", Row::Tests(guests::SIDECAR)),
    ("`[[reverse]]` rules", Row::Tests(guests::REVERSE)),
    ("those with `interface`", Row::Tests(guests::BY_INTERFACE)),
    (
        "`keep_source`, service on loopback",
        Row::Tests(guests::SOURCE_LOOPBACK),
    ),
    (
        "on another address of this host",
        Row::Tests(guests::SOURCE_HERE),
    ),
    ("on another host", Row::Tests(guests::SOURCE_ABROAD)),
    ("`[[gateway]]` rules", Row::Tests(guests::GATEWAY)),
    (
        "those with `keep_source`",
        Row::Tests(guests::SOURCE_GATEWAY),
    ),
    ("`[router] fast_path`", Row::Tests(guests::ROUTER)),
    (
        "containers with networks of their own",
        Row::Tests(guests::CONTAINERS),
    ),
    ("`culvert watch`", Row::Tests(guests::WATCH)),
    (
        "fail modes, and nothing left after a kill",
        Row::Tests(guests::FAILURE),
    ),
    ("IPv6", Row::Check("ipv6")),
    (
        "each path whole, or off for a reason",
        Row::Tests(guests::PATHS),
    ),
    ("`path = \"sockmap\"`", Row::Check("sockmap")),
    ("`path = \"shortcut\"`", Row::Check("shortcut")),
    (
        "`path = \"shortcut-both-ways\"`",
        Row::Check("shortcut_both_ways"),
    ),
    ("`path = \"rewrite\"`", Row::Tests(guests::REWRITE)),
    ("`path = \"steer\"`", Row::Tests(guests::STEER)),
    (
        "what a kernel lacks is refused and named",
        Row::Tests(guests::NEEDS),
    ),
];
const PROGRAMS: &str = "programs loaded and attached";
const TESTS: &str = "kernel tests passed";

/// Puts the table of a run into the README.
pub(super) fn write(root: &Path, reports: &[Report]) -> Result<()> {
    let path = root.join("README.md");
    let readme = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (before, rest) = readme
        .split_once(BEGIN)
        .with_context(|| format!("{} has no line {BEGIN}", path.display()))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{} has no line {END} below", path.display()))?;
    let written = format!("{before}{BEGIN}\n{}{END}{after}", table(reports));
    fs::write(&path, written).with_context(|| path.display().to_string())?;
    progress::step(&format!("wrote the table of kernels in {}", path.display()));
    Ok(())
}

fn table(reports: &[Report]) -> String {
    let row = |name: &str, cell: &dyn Fn(&Report) -> String| {
        let cells: Vec<_> = reports.iter().map(cell).collect();
        format!("| {name} | {} |\n", cells.join(" | "))
    };
    let heading = row("Debian's kernel", &|report| {
        let setting = Some(report.setting).filter(|setting| !setting.is_empty());
        report.version.clone() + &setting.map_or(String::new(), |setting| format!(", {setting}"))
    });
    let line = format!("|{}\n", "---|".repeat(reports.len() + 1));
    let rows: String = ROWS
        .iter()
        .map(|(name, kind)| match kind {
            Row::Check(id) => row(name, &|report| check(report, id)),
            Row::Tests(subject) => row(name, &|report| tests(report, subject)),
        })
        .collect();
    let programs = row(PROGRAMS, &|report| {
        let works = report
            .programs
            .iter()
            .filter(|program| program.works)
            .count();
        of(works, report.programs.len())
    });
    let tests = row(TESTS, &|report| {
        let tests = report.tests.iter();
        let apply = tests.filter(|ran| ran.outcome != Outcome::TooOld);
        let passed = apply
            .clone()
            .filter(|ran| matches!(ran.outcome, Outcome::Passed { .. }));
        of(passed.count(), apply.count())
    });
    [heading, line, programs, rows, tests].concat()
}

fn of(some: usize, all: usize) -> String {
    if some == all {
        all.to_string()
    } else {
        format!("{some} of {all}")
    }
}

fn check(report: &Report, id: &str) -> String {
    match report.checks.iter().find(|check| check.id == id) {
        None => "?".to_owned(),
        Some(check) if id == "refusal" && check.found.contains("EPERM") => "no, EPERM".to_owned(),
        Some(check) => yes(check.status == "ok").to_owned(),
    }
}

/// What became of the tests of a subject.
fn tests(report: &Report, subject: &str) -> String {
    let ran = report
        .tests
        .iter()
        .filter(|ran| ran.test.subject == subject);
    let ran: Vec<_> = ran.collect();
    let too_old = ran.iter().find(|ran| ran.outcome == Outcome::TooOld);
    match (too_old, &*ran) {
        (_, []) => "not tried".to_owned(),
        (Some(ran), _) => {
            let (major, minor) = ran.test.since;
            format!("no, {major}.{minor} has it")
        }
        (None, all) => {
            let passed = |ran: &&Ran| matches!(ran.outcome, Outcome::Passed { .. });
            yes(all.iter().all(passed)).to_owned()
        }
    }
}

const fn yes(it_is: bool) -> &'static str {
    if it_is { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::guests::GUESTS;

    #[test]
    fn the_readme_tells_of_each_guest_and_each_row() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let readme = fs::read_to_string(root.join("README.md")).unwrap();
        let (_, rest) = readme.split_once(BEGIN).unwrap();
        let (table, _) = rest.split_once(END).unwrap();
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|')
                .split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect()
        };
        let mut lines = table.trim().lines();
        let heading = cells(lines.next().unwrap());
        assert_eq!(heading.len(), 1 + GUESTS.len(), "{heading:?}");
        for (guest, title) in GUESTS.iter().zip(heading.iter().skip(1)) {
            let version = format!("{}.", guest.series);
            assert!(
                title.starts_with(&version) && title.ends_with(guest.setting),
                "{title}"
            );
        }
        let rows: Vec<_> = lines.skip(1).map(cells).collect();
        let expected: Vec<_> = [PROGRAMS]
            .into_iter()
            .chain(ROWS.map(|(name, _)| name))
            .chain([TESTS])
            .collect();
        let found: Vec<_> = rows.iter().filter_map(|row| row.first()).collect();
        assert_eq!(found, expected);
        assert!(
            rows.iter().all(|row| row.len() == heading.len()),
            "{rows:?}"
        );
    }
}
