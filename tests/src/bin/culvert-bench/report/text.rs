//! On a terminal.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    comparison::Comparison,
    intercept,
    results::Results,
    summary::{Spread, Table, tables},
    targets::Target,
};

/// The whole report.
pub(crate) fn render(results: &Results, comparison: Option<&Comparison>) -> String {
    let mut text = String::new();
    heading(&mut text, results);
    for compared in tables(results) {
        table(&mut text, &compared);
    }
    costs(&mut text, results);
    targets(&mut text, results);
    if let Some(comparison) = comparison {
        changes(&mut text, comparison);
    }
    remarks(&mut text, results);
    text
}

/// A line; writing to a string cannot fail.
fn line(text: &mut String, what: &str) {
    text.push_str(what.trim_end());
    text.push('\n');
}

fn heading(text: &mut String, results: &Results) {
    let machine = &results.machine;
    line(text, "");
    line(
        text,
        &format!(
            "culvert {} on {}, {}, {} cores, {}",
            machine.revision, machine.kernel, machine.processor, machine.cores, machine.date
        ),
    );
    let where_it_ran = if results.pinned {
        "client, proxy and server on one core: rates show what the work costs the processor"
    } else {
        "client, proxy and server on all cores"
    };
    let (relay, load) = (results.relay_threads, results.load_threads);
    line(
        text,
        &format!("{where_it_ran}; threads: proxy {relay}, client {load}, server {load}"),
    );
    line(
        text,
        "ratios: median (lowest .. highest) of the rounds, each to direct, and to the best peer, of the same round",
    );
    line(
        text,
        "CPU: processor seconds per GB, or per million messages or connections; all: client, proxy, server, kernel threads",
    );
    line(
        text,
        "by CPU: what direct takes of the processors as a share of what this takes; says more than rates while the machine is busy",
    );
}

fn table(text: &mut String, table: &Table<'_>) {
    line(text, "");
    line(text, &format!("{}: {}", table.work.name, table.work.title));
    let best = format!("of {}", table.best_peer.unwrap_or("best peer"));
    let mut columns = vec![column("", table.rows.iter().map(|row| row.name.to_owned()))];
    let mut metrics = table.metrics.iter();
    if let Some(headline) = metrics.next() {
        let values = table
            .rows
            .iter()
            .map(|row| figure(row.figures.get(headline), |value| headline.print(value)));
        columns.push(column(headline.heading(), values));
    }
    columns.push(column(
        "of direct",
        table.rows.iter().map(|row| ratio(row.of_direct)),
    ));
    if table.rows.iter().any(|row| row.by_cpu.is_some()) {
        columns.push(column(
            "by CPU",
            table.rows.iter().map(|row| ratio(row.by_cpu)),
        ));
    }
    columns.push(column(
        &best,
        table.rows.iter().map(|row| ratio(row.of_best_peer)),
    ));
    for metric in metrics {
        let values = table
            .rows
            .iter()
            .map(|row| figure(row.figures.get(metric), |value| metric.print(value)));
        columns.push(column(metric.heading(), values));
    }
    print(text, &columns);
}

/// What the hooks cost.
fn costs(text: &mut String, results: &Results) {
    let costs = intercept::summary(&results.intercept);
    if costs.is_empty() {
        return;
    }
    line(text, "");
    line(
        text,
        "intercept: time in the hooks for each connection, as the kernel measures its programs",
    );
    let number = |spread: Spread| {
        let Spread {
            median,
            lowest,
            highest,
        } = spread;
        format!("{median:.0} ({lowest:.0} .. {highest:.0})")
    };
    let cells = |of: &dyn Fn(&intercept::Costs) -> String| costs.iter().map(of).collect::<Vec<_>>();
    print(
        text,
        &[
            column("", cells(&|cost| cost.outcome.to_owned()).into_iter()),
            column("rules", cells(&|cost| cost.rules.to_string()).into_iter()),
            column(
                "prefixes",
                cells(&|cost| cost.prefixes.to_string()).into_iter(),
            ),
            column("ns", cells(&|cost| number(cost.nanoseconds)).into_iter()),
            column("programs run", cells(&|cost| number(cost.runs)).into_iter()),
        ],
    );
}

/// What is to be reached.
fn targets(text: &mut String, results: &Results) {
    let targets = &results.targets;
    if targets.is_empty() {
        return;
    }
    line(text, "");
    line(
        text,
        "targets; of the paths that auto chooses among the best is known only afterwards, so chance favours it",
    );
    let cells = |of: &dyn Fn(&Target) -> String| targets.iter().map(of).collect::<Vec<_>>();
    print(
        text,
        &[
            column("", cells(&|target| target.work.clone()).into_iter()),
            column("", cells(&|target| target.contender.clone()).into_iter()),
            column("", cells(&Target::subject).into_iter()),
            column("target", cells(&Target::wanted).into_iter()),
            column("measured", cells(&Target::to_string).into_iter()),
            column("", cells(&|target| target.verdict().to_owned()).into_iter()),
        ],
    );
}

/// Against an earlier run.
fn changes(text: &mut String, comparison: &Comparison) {
    line(text, "");
    line(text, &format!("since {}", comparison.earlier));
    for remark in &comparison.remarks {
        line(text, remark);
    }
    let changes = comparison.changes.iter();
    print(
        text,
        &[
            column("work", changes.clone().map(|change| change.work.clone())),
            column(
                "contender",
                changes.clone().map(|change| change.contender.clone()),
            ),
            column("of", changes.clone().map(|change| change.base.clone())),
            column(
                "then",
                changes.clone().map(|change| ratio(Some(change.then))),
            ),
            column("now", changes.clone().map(|change| ratio(Some(change.now)))),
            column(
                "change",
                changes
                    .clone()
                    .map(|change| format!("{:+.0} %", change.percent())),
            ),
            column(
                "beyond both spreads",
                changes.map(|change| change.verdict.to_string()),
            ),
        ],
    );
}

/// Columns beside each other, all of the same length.
fn print(text: &mut String, columns: &[Vec<String>]) {
    let lines = columns.iter().map(Vec::len).max().unwrap_or(0);
    for number in 0..lines {
        let mut cells = String::new();
        for (place, column) in columns.iter().enumerate() {
            let width = column.iter().map(|cell| cell.chars().count());
            let width = width.max().unwrap_or(0);
            let cell = column.get(number).map_or("", String::as_str);
            // Names are read from the left, numbers from the right.
            let _ = if place == 0 {
                write!(cells, "{cell:<width$}")
            } else {
                write!(cells, "  {cell:>width$}")
            };
        }
        line(text, &cells);
    }
}

fn column(heading: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(heading.to_owned()).chain(cells).collect()
}

fn figure(spread: Option<&Spread>, print: impl Fn(f64) -> String) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| print(spread.median))
}

/// A ratio with its spread.
pub(super) fn ratio(spread: Option<Spread>) -> String {
    spread.map_or_else(
        || "-".to_owned(),
        |Spread {
             median,
             lowest,
             highest,
         }| format!("{median:.2} ({lowest:.2} .. {highest:.2})"),
    )
}

fn remarks(text: &mut String, results: &Results) {
    let mut said = Vec::new();
    for missing in &results.missing {
        said.push(format!("missing: {}: {}", missing.name, missing.reason));
    }
    for failure in &results.failures {
        said.push(format!(
            "failed: {}, {}, round {}: {}",
            failure.contender, failure.work, failure.round, failure.error
        ));
    }
    said.extend(detours(results));
    said.extend(results.remarks.iter().cloned());
    if said.is_empty() {
        return;
    }
    line(text, "");
    for remark in said {
        line(text, &remark);
    }
}

/// Where culvert did not take the path that its name says, or left the shortcut.
fn detours(results: &Results) -> Vec<String> {
    let mut works = BTreeMap::<_, Vec<&str>>::new();
    for way in results.ways.iter().filter(|way| way.is_other) {
        works
            .entry((&way.contender, way.kind()))
            .or_default()
            .push(&way.work);
    }
    let detours = works
        .into_iter()
        .map(|((contender, kind), works)| format!("{contender}: {kind}: {}", works.join(", ")));
    detours.collect()
}
