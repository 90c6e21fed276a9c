//! From the figures of all rounds to the ratios that are the result.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    contender::Family,
    metric::Metric,
    results::{Results, WorkDone},
};

/// Median, lowest and highest of some rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
}

impl Spread {
    /// None of no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(*values.get(middle.checked_sub(1)?)?, upper)
        } else {
            upper
        };
        Some(Self {
            median,
            lowest: *values.first()?,
            highest: *values.last()?,
        })
    }

    /// Whether both could be the same: their ranges have something in common.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.lowest <= other.highest && other.lowest <= self.highest
    }
}

/// One figure of one contender at one work, by round.
pub(crate) type Series = BTreeMap<u32, f64>;

/// One work, compared.
pub(crate) struct Table<'a> {
    pub(crate) work: &'a WorkDone,
    /// The figures that there are, the headline first.
    pub(crate) metrics: Vec<Metric>,
    /// The peer with the best headline.
    pub(crate) best_peer: Option<&'a str>,
    pub(crate) rows: Vec<Row<'a>>,
}

/// One contender at one work.
pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    pub(crate) family: Family,
    pub(crate) figures: BTreeMap<Metric, Spread>,
    /// The headline as a multiple of that of no proxy in the same round.
    pub(crate) of_direct: Option<Spread>,
    /// The same of the best peer.
    pub(crate) of_best_peer: Option<Spread>,
    /// What no proxy takes of the processors for the same work, as a share of what this takes: the same ratio, if nobody had to
    /// wait for anybody.
    pub(crate) by_cpu: Option<Spread>,
}

/// Compares everything.
pub(crate) fn tables(results: &Results) -> Vec<Table<'_>> {
    results
        .works
        .iter()
        .map(|work| table(results, work))
        .filter(|table| !table.rows.is_empty())
        .collect()
}

fn table<'a>(results: &'a Results, work: &'a WorkDone) -> Table<'a> {
    let all: Vec<_> = results
        .contenders
        .iter()
        .map(|entrant| (entrant, series(results, &work.name, &entrant.name)))
        .filter(|(_, series)| !series.is_empty())
        .collect();
    let headline = work.headline;
    let direct = |metric| {
        let mut direct = all
            .iter()
            .filter(|(entrant, _)| entrant.family == Family::Direct);
        direct.find_map(|(_, series)| series.get(&metric))
    };
    let best_peer = all
        .iter()
        .filter(|(entrant, _)| entrant.family == Family::Peer)
        .filter_map(|(entrant, series)| {
            let series = series.get(&headline)?;
            let median = Spread::of(series.values().copied())?.median;
            Some((entrant, series, median))
        })
        .max_by(|(.., one), (.., other)| {
            let order = one.total_cmp(other);
            if headline.is_better_higher() {
                order
            } else {
                order.reverse()
            }
        });
    let rows = all.iter().map(|(entrant, series)| Row {
        name: &entrant.name,
        family: entrant.family,
        figures: series
            .iter()
            .filter_map(|(metric, series)| Some((*metric, Spread::of(series.values().copied())?)))
            .collect(),
        of_direct: ratio(series.get(&headline), direct(headline)),
        of_best_peer: ratio(
            series.get(&headline),
            best_peer.map(|(_, series, _)| series),
        ),
        by_cpu: ratio(direct(Metric::AllCpu), series.get(&Metric::AllCpu)),
    });
    let mut metrics: Vec<_> = all
        .iter()
        .flat_map(|(_, series)| series.keys().copied())
        .collect();
    metrics.sort_unstable_by_key(|metric| (*metric != headline, *metric));
    metrics.dedup();
    Table {
        work,
        metrics,
        best_peer: best_peer.map(|(entrant, ..)| entrant.name.as_str()),
        rows: rows.collect(),
    }
}

/// All figures of a contender at a work.
pub(crate) fn series(results: &Results, work: &str, contender: &str) -> BTreeMap<Metric, Series> {
    let mut series = BTreeMap::<_, Series>::new();
    let samples = results.samples.iter();
    for sample in samples.filter(|sample| sample.work == work && sample.contender == contender) {
        for (metric, value) in &sample.figures {
            series
                .entry(*metric)
                .or_default()
                .insert(sample.round, *value);
        }
    }
    series
}

/// Round by round.
pub(crate) fn ratio(one: Option<&Series>, other: Option<&Series>) -> Option<Spread> {
    let (one, other) = (one?, other?);
    let ratios = one
        .iter()
        .filter_map(|(round, value)| Some(value / other.get(round)?));
    Spread::of(ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_finite_values() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN]), None);
        let spread = Spread::of([3.0, 1.0, 2.0, f64::INFINITY, 10.0]).unwrap();
        assert_eq!(
            (spread.lowest, spread.median, spread.highest),
            (1.0, 2.5, 10.0)
        );
    }

    #[test]
    fn ratios_are_those_of_a_round() {
        let one = Series::from([(0, 10.0), (1, 40.0), (2, 9.0)]);
        let other = Series::from([(0, 20.0), (1, 80.0), (3, 1.0)]);
        let ratio = ratio(Some(&one), Some(&other)).unwrap();
        assert_eq!((ratio.lowest, ratio.highest), (0.5, 0.5));
    }
}
