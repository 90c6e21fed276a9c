//! What culvert is to reach: figures of a run against the bounds that were set for them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    contender::Family,
    metric::Metric,
    results::{Results, WorkDone},
    summary::{Series, Spread, ratio, series},
};

/// One bound, and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) work: String,
    pub(crate) contender: String,
    /// What is bounded: a figure itself if there is nothing that it is the ratio to.
    pub(crate) metric: Metric,
    pub(crate) base: Option<String>,
    pub(crate) bound: Bound,
    pub(crate) measured: Spread,
}

/// Where the median has to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    pub(crate) fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(least) => self.measured.median >= least,
            Bound::AtMost(most) => self.measured.median <= most,
        }
    }

    /// In a word.
    pub(crate) fn verdict(&self) -> &'static str {
        if self.is_met() { "met" } else { "missed" }
    }

    /// What is bounded, in words.
    pub(crate) fn subject(&self) -> String {
        match &self.base {
            Some(base) => format!("of {base}"),
            None => self.metric.heading().to_owned(),
        }
    }

    /// A number of its kind.
    fn print(&self, value: f64) -> String {
        match self.base {
            Some(_) => format!("{value:.2}"),
            None => self.metric.print(value),
        }
    }

    /// The bound, in words.
    pub(crate) fn wanted(&self) -> String {
        match self.bound {
            Bound::AtLeast(least) => format!("at least {}", self.print(least)),
            Bound::AtMost(most) => format!("at most {}", self.print(most)),
        }
    }
}

/// What was measured.
impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread {
            median,
            lowest,
            highest,
        } = self.measured;
        let [median, lowest, highest] = [median, lowest, highest].map(|value| self.print(value));
        write!(formatter, "{median} ({lowest} .. {highest})")
    }
}

/// What the headline of a contender is divided by, round by round.
#[derive(Clone, Copy)]
enum Base {
    Direct,
    /// The peer with the best median.
    BestPeer,
    /// The same of those that the client knows nothing of.
    BestTransparentPeer,
    /// The best of some contenders.
    Best(&'static [&'static str]),
}

/// Bytes of user space for an idle connection.
const IDLE: f64 = 6.0 * 1024.0;
/// Bytes held for a slow reader beyond the buffers of the sockets.
const HELD: f64 = 4.0 * 1024.0 * 1024.0;
/// What the choice may cost.
const OF_BEST_PATH: f64 = 0.95;

/// The paths that a rule may choose among without permission.
const CHOICE: [&str; 3] = ["copy", "splice", "sockmap"];

/// Those of it that a kernel refuses copy.
const SHORTCUTS: &[&str] = &[
    "culvert-shortcut",
    "culvert-shortcut-without-fionread",
    "culvert-shortcut-both-ways",
];

/// Ratios: work, the contenders of which the best counts, what to, and the least of it.
const RATIOS: [(&str, &[&str], Base, f64); 10] = [
    ("rr-64-1", SHORTCUTS, Base::Direct, 0.65),
    ("rr-64-1", SHORTCUTS, Base::BestPeer, 1.4),
    ("rr-64-1", &["culvert-sockmap"], Base::BestPeer, 1.05),
    ("bulk-up-1", &["culvert-auto"], Base::BestPeer, 1.1),
    ("bulk-down-1", &["culvert-auto"], Base::BestPeer, 1.1),
    ("bulk-up-16", &["culvert-auto"], Base::BestPeer, 1.1),
    ("bulk-down-16", &["culvert-auto"], Base::BestPeer, 1.1),
    ("bulk-up-1", SHORTCUTS, Base::Best(&["culvert-copy"]), 1.2),
    (
        "connect-1",
        &["culvert-auto"],
        Base::BestTransparentPeer,
        1.0,
    ),
    (
        "connect-16",
        &["culvert-auto"],
        Base::BestTransparentPeer,
        1.0,
    ),
];

/// Figures: work, contender, which, and the most of it.
const FIGURES: [(&str, &str, Metric, f64); 3] = [
    ("idle", "culvert-auto", Metric::RelayMemory, IDLE),
    ("slow-reader", "culvert-auto", Metric::Held, HELD),
    ("slow-reader", "culvert-sockmap", Metric::Held, HELD),
];

/// All targets for which this run has the figures; first those of single works, then for each work what `auto` has of the best path
/// that it may choose.
pub(crate) fn targets(results: &Results) -> Vec<Target> {
    let ratios = RATIOS.iter().filter_map(|(work, contenders, base, least)| {
        let work = results.works.iter().find(|done| done.name == *work)?;
        let (contender, own) = best(results, work, contenders.iter().copied())?;
        let (base, other) = base.find(results, work)?;
        Some(Target {
            work: work.name.clone(),
            contender: contender.to_owned(),
            metric: work.headline,
            base: Some(base.to_owned()),
            bound: Bound::AtLeast(*least),
            measured: ratio(Some(&own), Some(&other))?,
        })
    });
    let figures = FIGURES
        .iter()
        .filter_map(|(work, contender, metric, most)| {
            let own = series(results, work, contender).remove(metric)?;
            Some(Target {
                work: (*work).to_owned(),
                contender: (*contender).to_owned(),
                metric: *metric,
                base: None,
                bound: Bound::AtMost(*most),
                // Fewer bytes than none: so little was done that other things decide.
                measured: Spread::of(own.into_values()).filter(|spread| spread.median >= 0.0)?,
            })
        });
    let works = results.works.iter();
    ratios
        .chain(figures)
        .chain(works.flat_map(|work| choices(results, work)))
        .collect()
}

/// What contenders that choose their path have of the best path that they may choose. What is not a rate is left out.
fn choices(results: &Results, work: &WorkDone) -> Vec<Target> {
    if !work.headline.is_better_higher() {
        return Vec::new();
    }
    let choosing = results
        .contenders
        .iter()
        .filter_map(|entrant| Some((entrant, entrant.name.strip_suffix("auto")?)));
    let choices = choosing.filter_map(|(entrant, form)| {
        let own = series(results, &work.name, &entrant.name).remove(&work.headline)?;
        let paths = CHOICE.map(|path| format!("{form}{path}"));
        let (base, other) = best(results, work, paths.iter().map(String::as_str))?;
        Some(Target {
            work: work.name.clone(),
            contender: entrant.name.clone(),
            metric: work.headline,
            base: Some(base.to_owned()),
            bound: Bound::AtLeast(OF_BEST_PATH),
            measured: ratio(Some(&own), Some(&other))?,
        })
    });
    choices.collect()
}

/// The one with the best median of the headline, and that by round.
fn best<'a>(
    results: &Results,
    work: &WorkDone,
    names: impl Iterator<Item = &'a str>,
) -> Option<(&'a str, Series)> {
    let measured = names.filter_map(|name| {
        let series = series(results, &work.name, name).remove(&work.headline)?;
        let median = Spread::of(series.values().copied())?.median;
        Some((name, series, median))
    });
    let better = measured.max_by(|(.., one), (.., other)| {
        let order = one.total_cmp(other);
        if work.headline.is_better_higher() {
            order
        } else {
            order.reverse()
        }
    });
    better.map(|(name, series, _)| (name, series))
}

impl Base {
    fn find<'a>(self, results: &'a Results, work: &WorkDone) -> Option<(&'a str, Series)> {
        let of = |family| {
            let all = results.contenders.iter();
            all.filter(move |entrant| entrant.family == family)
                .map(|entrant| entrant.name.as_str())
        };
        match self {
            Self::Direct => best(results, work, of(Family::Direct)),
            Self::BestPeer => best(results, work, of(Family::Peer)),
            Self::BestTransparentPeer => {
                let transparent = of(Family::Peer).filter(|name| name.ends_with("-redirect"));
                best(results, work, transparent)
            }
            Self::Best(names) => best(results, work, names.iter().copied()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        machine::Machine,
        results::{Entrant, FORMAT, Sample},
        work::Effort,
    };

    /// Contenders with what each has in the rounds of a work.
    fn results(work: &str, headline: Metric, figures: &[(&str, Family, [f64; 3])]) -> Results {
        let entrant = |(name, family, _): &(&str, Family, [f64; 3])| Entrant {
            name: (*name).to_owned(),
            family: *family,
            version: String::new(),
            configuration: String::new(),
        };
        let samples = figures.iter().flat_map(|(name, _, rounds)| {
            let sample = |(round, value): (u32, &f64)| Sample {
                work: work.to_owned(),
                contender: (*name).to_owned(),
                round,
                figures: BTreeMap::from([(headline, *value)]),
            };
            (0..).zip(rounds).map(sample)
        });
        Results {
            format: FORMAT,
            machine: Machine::look(),
            pinned: true,
            relay_threads: 1,
            load_threads: 1,
            effort: Effort::QUICK,
            contenders: figures.iter().map(entrant).collect(),
            missing: Vec::new(),
            works: vec![WorkDone {
                name: work.to_owned(),
                title: String::new(),
                headline,
            }],
            samples: samples.collect(),
            intercept: Vec::new(),
            failures: Vec::new(),
            ways: Vec::new(),
            targets: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Each target as the report has it.
    fn told(results: &Results) -> Vec<String> {
        let tell = |target: &Target| {
            let (contender, subject, wanted) =
                (&target.contender, target.subject(), target.wanted());
            let verdict = target.verdict();
            format!("{contender} {subject}, {wanted}: {target}, {verdict}")
        };
        targets(results).iter().map(tell).collect()
    }

    #[test]
    fn ratios_are_those_of_a_round_and_the_best_counts() {
        let results = results(
            "rr-64-1",
            Metric::Exchanges,
            &[
                ("direct", Family::Direct, [100.0, 200.0, 100.0]),
                ("nginx", Family::Peer, [40.0, 80.0, 40.0]),
                ("haproxy-redirect", Family::Peer, [10.0, 20.0, 10.0]),
                ("culvert-shortcut", Family::Culvert, [50.0, 90.0, 50.0]),
                (
                    "culvert-shortcut-both-ways",
                    Family::Culvert,
                    [65.0, 130.0, 66.0],
                ),
                ("culvert-sockmap", Family::Culvert, [41.0, 82.0, 41.0]),
            ],
        );
        assert_eq!(
            told(&results),
            [
                "culvert-shortcut-both-ways of direct, at least 0.65: 0.65 (0.65 .. 0.66), met",
                "culvert-shortcut-both-ways of nginx, at least 1.40: 1.62 (1.62 .. 1.65), met",
                "culvert-sockmap of nginx, at least 1.05: 1.02 (1.02 .. 1.02), missed",
            ]
        );
    }

    #[test]
    fn transparent_peers_only_count_among_each_other() {
        let results = results(
            "connect-16",
            Metric::Connections,
            &[
                ("nginx", Family::Peer, [40.0, 40.0, 40.0]),
                ("haproxy-redirect", Family::Peer, [10.0, 10.0, 10.0]),
                ("culvert-auto", Family::Culvert, [10.0, 9.0, 11.0]),
            ],
        );
        assert_eq!(
            told(&results),
            ["culvert-auto of haproxy-redirect, at least 1.00: 1.00 (0.90 .. 1.10), met"]
        );
    }

    #[test]
    fn auto_is_compared_with_the_best_path_of_its_own_form() {
        let results = results(
            "rr-1-64",
            Metric::Exchanges,
            &[
                ("culvert-auto", Family::Culvert, [94.0, 94.0, 94.0]),
                ("culvert-copy", Family::Culvert, [90.0, 90.0, 90.0]),
                ("culvert-sockmap", Family::Culvert, [100.0, 100.0, 100.0]),
                ("culvert-shortcut", Family::Culvert, [200.0, 200.0, 200.0]),
                ("culvert-reverse-auto", Family::Culvert, [95.0, 95.0, 95.0]),
                ("culvert-reverse-copy", Family::Culvert, [95.0, 95.0, 95.0]),
            ],
        );
        assert_eq!(
            told(&results),
            [
                "culvert-auto of culvert-sockmap, at least 0.95: 0.94 (0.94 .. 0.94), missed",
                "culvert-reverse-auto of culvert-reverse-copy, at least 0.95: 1.00 (1.00 .. 1.00), met",
            ]
        );
    }

    #[test]
    fn figures_have_bounds_of_their_own() {
        let idle = results(
            "idle",
            Metric::RelayMemory,
            &[
                ("culvert-auto", Family::Culvert, [6144.0, 5000.0, 7000.0]),
                ("culvert-copy", Family::Culvert, [5000.0, 5000.0, 5000.0]),
            ],
        );
        assert_eq!(
            told(&idle),
            ["culvert-auto relay B/conn, at most 6,144: 6,144 (5,000 .. 7,000), met"]
        );
        let nothing = results(
            "idle",
            Metric::RelayMemory,
            &[("culvert-auto", Family::Culvert, [-1.0; 3])],
        );
        assert_eq!(told(&nothing), [""; 0]);
        let held = f64::from(5 << 20);
        let slow = results(
            "slow-reader",
            Metric::Held,
            &[("culvert-sockmap", Family::Culvert, [held; 3])],
        );
        assert_eq!(
            told(&slow),
            ["culvert-sockmap held KiB, at most 4,096: 5,120 (5,120 .. 5,120), missed"]
        );
    }
}
