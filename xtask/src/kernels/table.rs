//! The table: a row for everything that was tried, a column for every guest.

use std::{fmt::Write as _, ptr};

use super::{
    guests::Test,
    report::{Outcome, Program, Report, STAGES},
};

/// The checks that say what becomes of bytes on a kernel.
const PATHS: [&str; 3] = ["sockmap", "shortcut", "shortcut_both_ways"];
/// Beyond so many letters a reason is below the table.
const WIDE: usize = 34;

/// The table, and below it the reasons that are too long for it.
pub(super) fn text(reports: &[Report]) -> String {
    let mut rows = vec![Row::heading(
        "",
        reports.iter().map(|report| report.version.clone()),
    )];
    let mut notes = Vec::new();
    let cells = |what: &dyn Fn(&Report) -> String| reports.iter().map(what).collect::<Vec<_>>();

    rows.push(Row::heading("program: instructions, verified, ms", []));
    for name in programs(reports) {
        let cells = cells(&|report| program_cell(report, name));
        rows.push(Row::new(name, cells));
    }
    rows.push(Row::heading("path", []));
    for id in PATHS {
        let cells = cells(&|report| path_cell(report, id));
        rows.push(Row::new(id, note_long(cells, &mut notes)));
    }
    rows.push(Row::heading("test: s", []));
    for test in tests(reports) {
        let name = format!(
            "{}: {}",
            test.subject,
            test.name.replace("::", ": ").replace('_', " ")
        );
        rows.push(Row::new(&name, cells(&|report| test_cell(report, test))));
    }
    rows.push(Row::heading("up since, s", []));
    for (stage, (name, _)) in STAGES.iter().enumerate() {
        let uptime = |report: &Report| report.uptimes.get(stage).copied().flatten();
        let cell = |report: &Report| uptime(report).map_or("-".to_owned(), |it| format!("{it:.1}"));
        rows.push(Row::new(name, cells(&cell)));
    }
    let mut table = layout(&rows);
    let settings = reports.iter().filter(|report| !report.setting.is_empty());
    let settings = settings.map(|report| format!("{}: {}", report.version, report.setting));
    for line in settings.chain(notes) {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{line}");
    }
    table
}

/// Everything that failed, with all that was said of it.
pub(super) fn failures(reports: &[Report]) -> Vec<String> {
    reports.iter().flat_map(Report::failures).collect()
}

/// How much was tried.
pub(super) fn counted(reports: &[Report]) -> String {
    let programs: usize = reports.iter().map(|report| report.programs.len()).sum();
    let passed = |report: &Report| {
        let tests = report.tests.iter();
        tests
            .filter(|ran| matches!(ran.outcome, Outcome::Passed { .. }))
            .count()
    };
    let passed: usize = reports.iter().map(passed).sum();
    format!(
        "{} guests, {programs} programs loaded, {passed} tests passed",
        reports.len()
    )
}

/// The programs that any report names, each once.
fn programs(reports: &[Report]) -> Vec<&str> {
    let mut names = Vec::new();
    for program in reports.iter().flat_map(|report| &report.programs) {
        if !names.contains(&&*program.name) {
            names.push(&*program.name);
        }
    }
    names
}

fn program_cell(report: &Report, name: &str) -> String {
    let Some(program) = report.programs.iter().find(|program| program.name == name) else {
        return "-".to_owned();
    };
    let Program {
        works: true,
        instructions,
        verified,
        milliseconds,
        ..
    } = program
    else {
        return "REFUSED".to_owned();
    };
    let count = |count: &Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
    format!(
        "{} {} {milliseconds:.1}",
        count(instructions),
        count(verified)
    )
}

fn path_cell(report: &Report, id: &str) -> String {
    let check = report.checks.iter().find(|check| check.id == id);
    match check {
        None => "-".to_owned(),
        Some(check) if check.status == "ok" => "on".to_owned(),
        Some(check) => format!("off: {}", check.found),
    }
}

/// The tests of all guests, each once.
fn tests(reports: &[Report]) -> Vec<&'static Test> {
    let mut tests: Vec<&'static Test> = Vec::new();
    for ran in reports.iter().flat_map(|report| &report.tests) {
        if !tests.iter().any(|test| ptr::eq(*test, ran.test)) {
            tests.push(ran.test);
        }
    }
    tests
}

fn test_cell(report: &Report, test: &Test) -> String {
    let ran = report.tests.iter().find(|ran| ptr::eq(ran.test, test));
    match ran.map(|ran| (&ran.outcome, ran.test.since)) {
        None => "-".to_owned(),
        Some((Outcome::Passed { seconds }, _)) => format!("{seconds:.1}"),
        Some((Outcome::TooOld, (major, minor))) => format!("needs {major}.{minor}"),
        Some((Outcome::Failed { .. }, _)) => "FAILED".to_owned(),
        Some((Outcome::Missing, _)) => "DID NOT RUN".to_owned(),
    }
}

/// Gives long texts a number, and keeps them for below.
fn note_long(cells: Vec<String>, notes: &mut Vec<String>) -> Vec<String> {
    let note = |cell: String| {
        if cell.len() <= WIDE {
            return cell;
        }
        let is_same = |note: &String| note.ends_with(&format!(") {cell}"));
        let number = notes.iter().position(is_same).unwrap_or_else(|| {
            notes.push(format!("({}) {cell}", notes.len() + 1));
            notes.len() - 1
        });
        format!("off ({})", number + 1)
    };
    cells.into_iter().map(note).collect()
}

struct Row {
    name: String,
    cells: Vec<String>,
    is_heading: bool,
}

impl Row {
    fn new(name: &str, cells: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            cells,
            is_heading: false,
        }
    }

    fn heading(name: &str, cells: impl IntoIterator<Item = String>) -> Self {
        Self {
            is_heading: true,
            ..Self::new(name, cells.into_iter().collect())
        }
    }
}

fn layout(rows: &[Row]) -> String {
    let columns = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
    let widest = |of: &dyn Fn(&Row) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let first = widest(&|row| row.name.len());
    let widths: Vec<_> = (0..columns)
        .map(|column| widest(&|row| row.cells.get(column).map_or(0, String::len)))
        .collect();
    let mut text = String::new();
    for row in rows {
        if row.is_heading && !row.name.is_empty() {
            text.push('\n');
        }
        let mut line = format!("{:first$}", row.name);
        for (cell, width) in row.cells.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "  {cell:>width$}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push('\n');
    text
}
