//! The README's table of what works on which kernel: written from a run, never by hand.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::report::{Outcome, Report};
use crate::progress;

/// The table stands between these lines.
const BEGIN: &str = "<!-- written by `cargo xtask test --kernels --write-readme` -->";
const END: &str = "<!-- end -->";

/// A row, and what culvert says about it on a kernel.
const ROWS: [(&str, &str); 7] = [
    ("rules with `exe` or `pid`", "task_selectors"),
    ("`[[reverse]]` rules with `interface`", "interface_selector"),
    ("a refused `connect()` sees ECONNREFUSED", "refusal"),
    ("`path = \"sockmap\"`", "sockmap"),
    ("`path = \"shortcut\"`", "shortcut"),
    ("`path = \"shortcut-both-ways\"`", "shortcut_both_ways"),
    ("IPv6", "ipv6"),
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
        .map(|(name, id)| row(name, &|report| check(report, id)))
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
        Some(check) if check.status == "ok" => "yes".to_owned(),
        Some(_) => "no".to_owned(),
    }
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
