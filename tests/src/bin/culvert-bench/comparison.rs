//! Against an earlier run: how each ratio has changed.

use std::{fmt, fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    results::Results,
    summary::{self, Row, Spread, Table},
};

/// All changes.
pub(crate) struct Comparison {
    /// Date and revision of the earlier run.
    pub(crate) earlier: String,
    pub(crate) changes: Vec<Change>,
    /// Why the runs are hard to compare, if they are.
    pub(crate) remarks: Vec<String>,
}

/// One ratio, then and now.
pub(crate) struct Change {
    pub(crate) work: String,
    pub(crate) contender: String,
    /// What it is the ratio to.
    pub(crate) base: String,
    pub(crate) then: Spread,
    pub(crate) now: Spread,
    pub(crate) verdict: Verdict,
}

/// What a change means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing: the rounds differ as much among each other.
    WithinSpread,
    Better,
    Worse,
}

impl Verdict {
    fn of(then: Spread, now: Spread, is_better_higher: bool) -> Self {
        if then.overlaps(now) {
            Self::WithinSpread
        } else if (now.median > then.median) == is_better_higher {
            Self::Better
        } else {
            Self::Worse
        }
    }

    /// As a class of a style sheet.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::WithinSpread => "same",
            Self::Better => "better",
            Self::Worse => "worse",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::WithinSpread => "",
            Self::Better => "better",
            Self::Worse => "worse",
        })
    }
}

impl Change {
    pub(crate) fn percent(&self) -> f64 {
        (self.now.median / self.then.median - 1.0) * 100.0
    }
}

/// Reads an earlier run's file.
pub(crate) fn read(file: &Path) -> Result<Results> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Results::from_json(&text)
        .with_context(|| format!("{} is no result of this benchmark", file.display()))
}

/// Compares all that both have.
pub(crate) fn compare(then: &Results, now: &Results) -> Comparison {
    let (earlier, later) = (summary::tables(then), summary::tables(now));
    let mut changes = Vec::new();
    for table in &later {
        let same = |other: &&Table<'_>| other.work.name == table.work.name;
        let Some(before) = earlier.iter().find(same) else {
            continue;
        };
        for row in &table.rows {
            let same = |other: &&Row<'_>| other.name == row.name;
            let old = before.rows.iter().find(same);
            changes.extend(old.and_then(|old| change(before, old, table, row)));
        }
    }
    Comparison {
        earlier: format!("{} ({})", then.machine.date, then.machine.revision),
        changes,
        remarks: remarks(then, now),
    }
}

/// The ratio to direct, or where that has no such figure, to the best peer if it is still the same.
fn change(before: &Table<'_>, old: &Row<'_>, table: &Table<'_>, row: &Row<'_>) -> Option<Change> {
    let of_direct = old.of_direct.zip(row.of_direct);
    let (base, (then, now)) = match of_direct {
        Some(both) => ("direct", both),
        None if before.best_peer == table.best_peer => {
            (table.best_peer?, old.of_best_peer.zip(row.of_best_peer)?)
        }
        None => return None,
    };
    // What everything is divided by has not changed.
    if row.name == base {
        return None;
    }
    let headline = table.work.headline;
    Some(Change {
        work: table.work.name.clone(),
        contender: row.name.to_owned(),
        base: base.to_owned(),
        then,
        now,
        verdict: Verdict::of(then, now, headline.is_better_higher()),
    })
}

fn remarks(then: &Results, now: &Results) -> Vec<String> {
    let mut remarks = Vec::new();
    let mut differ = |what: &str, then: String, now: String| {
        if then != now {
            remarks.push(format!("{what} was {then} then and is {now} now"));
        }
    };
    let place = |results: &Results| {
        let place = if results.pinned {
            "one core"
        } else {
            "all cores"
        };
        place.to_owned()
    };
    differ("the place", place(then), place(now));
    differ(
        "the kernel",
        then.machine.kernel.clone(),
        now.machine.kernel.clone(),
    );
    differ(
        "the processor",
        then.machine.processor.clone(),
        now.machine.processor.clone(),
    );
    differ(
        "the time of a round",
        format!("{} ms", then.effort.milliseconds),
        format!("{} ms", now.effort.milliseconds),
    );
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_beyond_both_spreads_counts() {
        let spread = |lowest, median, highest| Spread {
            median,
            lowest,
            highest,
        };
        let (then, near, far) = (
            spread(0.4, 0.45, 0.5),
            spread(0.48, 0.6, 0.7),
            spread(0.55, 0.6, 0.7),
        );
        assert_eq!(Verdict::of(then, near, true), Verdict::WithinSpread);
        assert_eq!(Verdict::of(then, far, true), Verdict::Better);
        assert_eq!(Verdict::of(then, far, false), Verdict::Worse);
        assert_eq!(Verdict::of(far, then, true), Verdict::Worse);
    }
}
