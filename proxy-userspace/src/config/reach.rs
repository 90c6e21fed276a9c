//! Rules that can never decide a connection: because of what they say, or because an earlier rule takes everything.
//!
//! Sound, not complete: every rule reported here is dead, but a dead rule may pass. It would have to be covered by
//! several earlier rules together, or by what only the running system knows (two paths of one executable, the
//! cgroup of a unit). Knows rules and where they stand, not TOML. Rules for what arrives, of which the most specific decides, are in
//! `arrivals`.

pub(super) mod arrivals;

use std::{net::Ipv4Addr, ops::RangeInclusive};

use ipnet::IpNet;

use crate::rule::{LOOPBACK, Match, Selector, is_cgroup_path, is_loopback};

use super::{
    forward::PlacedRule,
    intervals::Intervals,
    report::{Finding, Findings},
};

/// Reports dead rules. `attached` is the cgroup below which connections are intercepted.
pub(super) fn check(rules: &[PlacedRule], attached: &str, findings: &mut Findings) {
    let mut earlier: Vec<(&PlacedRule, Reach<'_>)> = Vec::new();
    for placed in rules {
        let name = &placed.rule.name;
        let reach = Reach::of(&placed.rule.matches);
        if let Some((key, why)) = reach.nothing(attached) {
            let place = placed.selectors.get(key).unwrap_or(&placed.name);
            findings.push(
                Finding::error(format!("rule `{name}` can never match"))
                    .at(place)
                    .label(why),
            );
            continue;
        }
        let covering = earlier.iter().find(|(_, earlier)| earlier.covers(&reach));
        if let Some((first, _)) = covering {
            let taker = &first.rule.name;
            findings.push(
                Finding::error(format!("rule `{name}` can never be reached"))
                    .at(&placed.name)
                    .also(&first.name, "this rule selects all of its connections")
                    .label("the first rule that matches decides")
                    .help(format!(
                        "move `{name}` before `{taker}`, or let `{taker}` select less"
                    )),
            );
        } else {
            earlier.push((placed, reach));
        }
    }
}

/// What a rule selects, in a form that can be compared.
struct Reach<'r> {
    matches: &'r Match,
    uid: Intervals,
    gid: Intervals,
    dest: Intervals,
    port: Intervals,
}

impl<'r> Reach<'r> {
    fn of(matches: &'r Match) -> Self {
        Self {
            matches,
            uid: numbers(&matches.uid, u32::MAX),
            gid: numbers(&matches.gid, u32::MAX),
            dest: destinations(&matches.dest),
            port: numbers(&matches.port, u16::MAX),
        }
    }

    /// The key that leaves nothing to select, and why.
    fn nothing(&self, attached: &str) -> Option<(&'static str, &'static str)> {
        const EXCLUDED: &str = "the exclusions leave nothing to select";
        let Match {
            cgroup, exe, pid, ..
        } = self.matches;
        let outside = |path: &String| is_cgroup_path(path) && apart(path, attached);
        let detached = !cgroup.include.is_empty() && cgroup.include.iter().all(outside);
        [
            ("cgroup", all_excluded(cgroup, cgroup_within), EXCLUDED),
            ("exe", all_excluded(exe, PartialEq::eq), EXCLUDED),
            ("uid", self.uid.is_empty(), EXCLUDED),
            ("gid", self.gid.is_empty(), EXCLUDED),
            ("pid", all_excluded(pid, PartialEq::eq), EXCLUDED),
            ("dest", self.dest.is_empty(), EXCLUDED),
            ("port", self.port.is_empty(), EXCLUDED),
            (
                "cgroup",
                detached,
                "not below `cgroup` of `[daemon]`, where connections are intercepted",
            ),
        ]
        .into_iter()
        .find_map(|(key, nothing, why)| nothing.then_some((key, why)))
    }

    /// Whether every connection that `later` selects is selected here.
    fn covers(&self, later: &Self) -> bool {
        let (ours, theirs) = (self.matches, later.matches);
        // Two paths may lead to one executable, and one process may descend from two others: only equal values are
        // known to be related, and none to be apart.
        self.port.covers(&later.port)
            && self.uid.covers(&later.uid)
            && self.gid.covers(&later.gid)
            && covers(&ours.exe, &theirs.exe, PartialEq::eq, |_, _| false)
            && covers(&ours.pid, &theirs.pid, PartialEq::eq, |_, _| false)
            && covers(&ours.cgroup, &theirs.cgroup, cgroup_within, |a, b| {
                is_cgroup_path(a) && is_cgroup_path(b) && apart(a, b)
            })
            && self.dest.covers(&later.dest)
    }
}

fn numbers<N: Copy + Into<u128>>(selector: &Selector<RangeInclusive<N>>, most: N) -> Intervals {
    let set = |ranges: &[RangeInclusive<N>]| -> Intervals {
        let wide = |range: &RangeInclusive<N>| (*range.start()).into()..=(*range.end()).into();
        ranges.iter().map(wide).collect()
    };
    let included = if selector.include.is_empty() {
        std::iter::once(0..=most.into()).collect()
    } else {
        set(&selector.include)
    };
    included.minus(&set(&selector.exclude))
}

/// The destinations of a selector, with IPv4 at the place of its mapped addresses among those of IPv6.
fn destinations(selector: &Selector<IpNet>) -> Intervals {
    let (loopback, other): (Vec<&IpNet>, Vec<&IpNet>) = selector
        .include
        .iter()
        .partition(|prefix| is_loopback(prefix));
    let network = if selector.include.is_empty() {
        std::iter::once(0..=u128::MAX).collect()
    } else {
        addresses(other)
    };
    network
        .minus(&addresses(&LOOPBACK))
        .union(&addresses(loopback))
        .minus(&addresses(&selector.exclude))
}

fn addresses<'p>(prefixes: impl IntoIterator<Item = &'p IpNet>) -> Intervals {
    /// `::ffff:0:0/96`: as a destination, these are IPv4 and no prefix of IPv6 holds them.
    const MAPPED: RangeInclusive<u128> = 0xffff_0000_0000..=0xffff_ffff_ffff;
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for prefix in prefixes {
        match prefix {
            IpNet::V4(prefix) => {
                let place = |address: Ipv4Addr| MAPPED.start() + u128::from(address.to_bits());
                v4.push(place(prefix.network())..=place(prefix.broadcast()));
            }
            IpNet::V6(prefix) => {
                v6.push(prefix.network().to_bits()..=prefix.broadcast().to_bits());
            }
        }
    }
    let v6: Intervals = v6.into_iter().collect();
    v6.minus(&std::iter::once(MAPPED).collect())
        .union(&v4.into_iter().collect())
}

/// Whether `earlier` selects every value that `later` selects. `within(a, b)` says that each value of `a` is one
/// of `b`, `apart(a, b)` that none is.
fn covers<T>(
    earlier: &Selector<T>,
    later: &Selector<T>,
    within: impl Fn(&T, &T) -> bool,
    apart: impl Fn(&T, &T) -> bool,
) -> bool {
    let every_later =
        |holds: &dyn Fn(&T) -> bool| !later.include.is_empty() && later.include.iter().all(holds);
    let included = earlier.include.is_empty()
        || every_later(&|value| earlier.include.iter().any(|ours| within(value, ours)));
    let excluded = |ours: &T| {
        later.exclude.iter().any(|theirs| within(ours, theirs))
            || every_later(&|value| apart(value, ours))
    };
    included && earlier.exclude.iter().all(excluded)
}

/// Whether the exclusions cover every alternative.
fn all_excluded<T>(selector: &Selector<T>, within: impl Fn(&T, &T) -> bool) -> bool {
    let excluded = |value: &T| selector.exclude.iter().any(|hole| within(value, hole));
    !selector.include.is_empty() && selector.include.iter().all(excluded)
}

/// Whether one cgroup is the other or below it. Where a unit's cgroup is only the running system knows.
fn cgroup_within(inner: &String, outer: &String) -> bool {
    inner == outer || is_cgroup_path(inner) && is_cgroup_path(outer) && is_below(inner, outer)
}

/// Whether neither of two cgroup paths is the other or below it.
fn apart(one: &str, other: &str) -> bool {
    !is_below(one, other) && !is_below(other, one)
}

fn is_below(inner: &str, outer: &str) -> bool {
    outer.is_empty()
        || inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests;
