//! What each path costs on this machine, and which is the cheapest for each kind of connection.
//!
//! Pure: `measure` brings the times. Whoever is in doubt copies: a path is taken only where it was clearly cheaper, again
//! and again. Rounds are compared one by one, because what else runs on the machine changes from round to round, and the
//! best rounds of both with each other, because what disturbs a round mostly makes it longer.

use std::time::Duration;

use super::{Kind, Path};

/// Gain over the copy path from which on another path is worth it, in the median round.
const WORTH: f64 = 1.05;
/// The same over any other path for the sockmap, which is not left again for one that is a little better when a connection comes to be
/// used otherwise. Who exchanges messages mostly goes on so.
const WORTH_STAYING: f64 = 1.1;
/// Gain that all rounds but [`OUTLIERS`] and the best times must show.
const CLEAR: f64 = 1.02;
/// Rounds in which anything may happen.
const OUTLIERS: usize = 1;
/// Fewer rounds prove nothing.
const FEWEST_ROUNDS: usize = 4;

/// The paths that are compared, copy first.
pub const COMPARED: [Path; 3] = [Path::Copy, Path::Splice, Path::Sockmap];

/// How long the same work took by each path of [`COMPARED`], for each of [`Kind::ALL`], round by round. A path that cannot
/// be used here has no times.
pub type Times = [[Vec<Duration>; COMPARED.len()]; Kind::ALL.len()];

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    kinds: [Costs; Kind::ALL.len()],
}

/// Of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Costs {
    splice: Option<Gain>,
    sockmap: Option<Gain>,
}

/// Of one path over copying.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Gain {
    /// Work of the path in the time of copying, in the median round.
    median: f64,
    /// Whether the path is worth it.
    clear: bool,
}

impl Calibration {
    /// What follows from times.
    #[must_use]
    pub fn of(times: &Times) -> Self {
        Self {
            kinds: times.each_ref().map(|[copy, splice, sockmap]| Costs {
                splice: Gain::of(copy, splice),
                sockmap: Gain::of(copy, sockmap),
            }),
        }
    }

    /// How much of a kind's work a path does in the time of the copy path; `None` where it was not measured.
    #[must_use]
    pub fn relative(&self, kind: Kind, path: Path) -> Option<f64> {
        let costs = self.costs(kind)?;
        match path {
            Path::Copy => Some(1.0),
            Path::Splice => costs.splice.map(|gain| gain.median),
            Path::Sockmap => costs.sockmap.map(|gain| gain.median),
            Path::Shortcut | Path::BothWays => None,
        }
    }

    /// The path to take for a kind, among those that may be.
    #[must_use]
    pub fn best(&self, kind: Kind, may_take: impl Fn(Path) -> bool) -> Path {
        let Some(costs) = self.costs(kind) else {
            return Path::Copy;
        };
        let staying = match kind {
            Kind::Messages => WORTH,
            Kind::Blocks | Kind::Bulk => WORTH_STAYING,
        };
        let candidates = [
            (Path::Splice, costs.splice, WORTH),
            (Path::Sockmap, costs.sockmap, staying),
        ];
        let mut best = (Path::Copy, 1.0);
        for (path, gain, worth) in candidates {
            if let Some(gain) = gain
                && gain.clear
                && gain.median >= best.1 * worth
                && may_take(path)
            {
                best = (path, gain.median);
            }
        }
        best.0
    }

    /// The best path of a kind, and how the others compare with copying.
    #[must_use]
    pub fn sentence(&self, kind: Kind) -> String {
        let relative: Vec<_> = COMPARED
            .into_iter()
            .filter(|path| *path != Path::Copy)
            .filter_map(|path| {
                let relative = self.relative(kind, path)?;
                Some(format!("{} does {relative:.2}", path.label()))
            })
            .collect();
        let best = self.best(kind, |_| true).label();
        if relative.is_empty() {
            return format!("{best}: nothing else was measured");
        }
        format!("{best}: of the work of copying, {}", relative.join(", "))
    }

    fn costs(&self, kind: Kind) -> Option<&Costs> {
        self.kinds.get(kind as usize)
    }
}

impl Gain {
    fn of(copy: &[Duration], path: &[Duration]) -> Option<Self> {
        let ratio = |copy: &Duration, path: &Duration| copy.as_secs_f64() / path.as_secs_f64();
        let mut gains: Vec<f64> = copy
            .iter()
            .zip(path)
            .map(|(copy, path)| ratio(copy, path))
            .filter(|gain| gain.is_finite())
            .collect();
        gains.sort_by(f64::total_cmp);
        let median = *gains.get(gains.len() / 2)?;
        let lowest = *gains.get(OUTLIERS.min(gains.len() - 1))?;
        let best = ratio(copy.iter().min()?, path.iter().min()?);
        Some(Self {
            median,
            clear: gains.len() >= FEWEST_ROUNDS
                && median >= WORTH
                && lowest >= CLEAR
                && best >= CLEAR,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(micros: &[u64]) -> Vec<Duration> {
        micros
            .iter()
            .map(|micros| Duration::from_micros(*micros))
            .collect()
    }

    /// Of one kind; nothing is known of the others.
    fn messages(copy: &[u64], splice: &[u64], sockmap: &[u64]) -> Calibration {
        let none = || [const { Vec::new() }; 3];
        Calibration::of(&[[times(copy), times(splice), times(sockmap)], none(), none()])
    }

    fn chosen(copy: &[u64], splice: &[u64], sockmap: &[u64]) -> Path {
        messages(copy, splice, sockmap).best(Kind::Messages, |_| true)
    }

    const COPY: [u64; 7] = [1000, 1010, 990, 1000, 1005, 995, 1000];

    #[test]
    fn the_cheapest_path_is_taken() {
        let faster = COPY.map(|micros| micros * 9 / 10);
        let fastest = COPY.map(|micros| micros * 8 / 10);
        assert_eq!(chosen(&COPY, &COPY, &faster), Path::Sockmap);
        assert_eq!(chosen(&COPY, &faster, &fastest), Path::Sockmap);
        let a_little_faster = COPY.map(|micros| micros * 92 / 100);
        assert_eq!(chosen(&COPY, &a_little_faster, &COPY), Path::Splice);
        assert_eq!(chosen(&COPY, &COPY, &a_little_faster), Path::Sockmap);
        assert_eq!(chosen(&COPY, &fastest, &faster), Path::Splice);
        assert_eq!(chosen(&COPY, &faster, &faster), Path::Splice, "a tie");
        let hardly_faster = COPY.map(|micros| micros * 87 / 100);
        assert_eq!(chosen(&COPY, &faster, &hardly_faster), Path::Splice);
    }

    #[test]
    fn what_is_hard_to_leave_has_to_be_worth_more_for_what_may_change() {
        let a_little_faster = COPY.map(|micros| micros * 92 / 100);
        let faster = COPY.map(|micros| micros * 89 / 100);
        for (sockmap, expected) in [(a_little_faster, Path::Copy), (faster, Path::Sockmap)] {
            let of_one = [&COPY, &COPY, &sockmap].map(|micros| times(micros));
            let measured = Calibration::of(&[of_one.clone(), of_one.clone(), of_one]);
            for kind in [Kind::Blocks, Kind::Bulk] {
                assert_eq!(measured.best(kind, |_| true), expected);
            }
            assert_eq!(measured.best(Kind::Messages, |_| true), Path::Sockmap);
        }
    }

    #[test]
    fn who_gains_little_or_loses_copies() {
        let hardly = COPY.map(|micros| micros * 97 / 100);
        let slower = COPY.map(|micros| micros * 12 / 10);
        assert_eq!(chosen(&COPY, &hardly, &slower), Path::Copy);
        assert_eq!(chosen(&COPY, &COPY, &COPY), Path::Copy);
    }

    #[test]
    fn one_disturbed_round_changes_nothing() {
        let mut faster = COPY.map(|micros| micros * 9 / 10);
        faster[3] = 4000;
        assert_eq!(chosen(&COPY, &COPY, &faster), Path::Sockmap);
        let mut disturbed = COPY;
        disturbed[3] = 4000;
        assert_eq!(chosen(&disturbed, &COPY, &COPY), Path::Copy);
    }

    #[test]
    fn noise_is_no_gain() {
        // Faster in the median by a third, but not in every round.
        let noisy = [1000, 3000, 2500, 1000, 2800, 990, 2000];
        let other = [1900, 2000, 1800, 1400, 1700, 1500, 1600];
        assert_eq!(chosen(&noisy, &other, &other), Path::Copy);
        // In every round, but only because copying was disturbed in most: undisturbed, they are the same.
        let disturbed = [2000, 3000, 2500, 1000, 2800, 2100, 2000];
        assert_eq!(chosen(&disturbed, &COPY, &COPY), Path::Copy);
    }

    #[test]
    fn few_rounds_or_none_prove_nothing() {
        let few = [100, 100, 100];
        assert_eq!(chosen(&few, &[50, 50, 50], &[]), Path::Copy);
        assert_eq!(chosen(&[], &[], &[]), Path::Copy);
    }

    #[test]
    fn a_path_that_may_not_be_taken_leaves_the_next() {
        let faster = COPY.map(|micros| micros * 9 / 10);
        let fastest = COPY.map(|micros| micros * 8 / 10);
        let measured = messages(&COPY, &faster, &fastest);
        let best = |not| measured.best(Kind::Messages, |path| path != not);
        assert_eq!(best(Path::Sockmap), Path::Splice);
        assert_eq!(best(Path::Splice), Path::Sockmap);
        assert_eq!(measured.best(Kind::Messages, |_| false), Path::Copy);
    }

    #[test]
    fn what_was_not_measured_is_unknown() {
        let measured = messages(&COPY, &COPY, &[]);
        assert_eq!(measured.relative(Kind::Messages, Path::Copy), Some(1.0));
        assert_eq!(measured.relative(Kind::Messages, Path::Splice), Some(1.0));
        assert_eq!(measured.relative(Kind::Messages, Path::Sockmap), None);
        assert_eq!(measured.relative(Kind::Bulk, Path::Splice), None);
        assert_eq!(
            [Kind::Messages, Kind::Bulk].map(|kind| measured.sentence(kind)),
            [
                "copy: of the work of copying, splice does 1.00",
                "copy: nothing else was measured"
            ]
        );
    }
}
