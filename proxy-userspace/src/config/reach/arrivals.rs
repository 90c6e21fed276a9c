//! Rules for what arrives that never decide: others listen on all that they do, more specifically or earlier in the file.

use std::{
    cmp::Reverse as Descending,
    collections::{BTreeSet, HashMap},
    ops::RangeInclusive,
};

use ipnet::IpNet;

use super::{Intervals, addresses, all_excluded, covers};
use crate::{
    config::{
        report::{Finding, Findings},
        reverse::PlacedReverse,
    },
    rule::{Listen, Reverse, Selector},
};

/// Steps after which a rule is taken for alive: nobody writes such files by hand, and whoever makes them by a program hears of it
/// from that.
const MOST_STEPS: usize = 10_000_000;

/// Reports dead rules.
pub(in crate::config) fn check(rules: &[PlacedReverse], findings: &mut Findings) {
    let areas = Areas::of(rules);
    let mut reach = Reach::of(rules);
    for (index, placed) in rules.iter().enumerate() {
        let name = &placed.rule.name;
        if let Some(key) = nothing(&placed.rule) {
            findings.push(
                Finding::error(format!("rule `{name}` can never match"))
                    .at(&placed.name)
                    .label(format!("the exclusions of `{key}` leave nothing to select")),
            );
        } else if let Some(takers) = areas.takers(index, &placed.rule, &mut reach)
            && let Some(first) = takers.first().and_then(|taker| rules.get(*taker))
        {
            let others = if takers.len() == 1 {
                "this rule takes all of its connections"
            } else {
                "this rule and others take all of its connections"
            };
            findings.push(
                Finding::error(format!("rule `{name}` can never be reached"))
                    .at(&placed.name)
                    .also(&first.name, others)
                    .label("the most specific of `listen` decides, then the first rule")
                    .help(format!(
                        "let `{name}` listen on more, or `{}` on less",
                        first.rule.name
                    )),
            );
        }
    }
}

/// The key that leaves nothing to select.
fn nothing(rule: &Reverse) -> Option<&'static str> {
    let no_source = !rule.source.exclude.is_empty() && sources(&rule.source).is_empty();
    if no_source {
        return Some("source");
    }
    all_excluded(&rule.interface, PartialEq::eq).then_some("interface")
}

fn sources(selector: &Selector<IpNet>) -> Intervals {
    let included = if selector.include.is_empty() {
        std::iter::once(0..=u128::MAX).collect()
    } else {
        addresses(&selector.include)
    };
    included.minus(&addresses(&selector.exclude))
}

/// Which rules select whatever another one selects, beside what they listen on.
struct Reach<'r> {
    rules: &'r [PlacedReverse],
    sources: Vec<Intervals>,
    known: HashMap<(usize, usize), bool>,
}

impl<'r> Reach<'r> {
    fn of(rules: &'r [PlacedReverse]) -> Self {
        Self {
            rules,
            sources: rules
                .iter()
                .map(|placed| sources(&placed.rule.source))
                .collect(),
            known: HashMap::new(),
        }
    }

    fn covers(&mut self, one: usize, other: usize) -> bool {
        let (rules, sources) = (self.rules, &self.sources);
        *self.known.entry((one, other)).or_insert_with(|| {
            let interface = |index: usize| rules.get(index).map(|placed| &placed.rule.interface);
            let source = |index: usize| sources.get(index);
            // Two names may be of one interface: only equal ones are known to be related, and none to be apart.
            interface(one)
                .zip(interface(other))
                .is_some_and(|(one, other)| covers(one, other, PartialEq::eq, |_, _| false))
                && source(one)
                    .zip(source(other))
                    .is_some_and(|(one, other)| one.covers(other))
        })
    }
}

/// What a rule listens on.
#[derive(Clone, Debug)]
struct Area {
    is_v6: bool,
    first: u128,
    last: u128,
    ports: RangeInclusive<u16>,
    rule: usize,
}

impl Area {
    fn of(rule: usize, listen: &Listen) -> Self {
        let (is_v6, first, last) = match listen.net {
            IpNet::V4(net) => (
                false,
                net.network().to_bits().into(),
                net.broadcast().to_bits().into(),
            ),
            IpNet::V6(net) => (true, net.network().to_bits(), net.broadcast().to_bits()),
        };
        Self {
            is_v6,
            first,
            last,
            ports: listen.ports.clone(),
            rule,
        }
    }

    /// Less is asked before, where both lie in each other.
    fn order(&self) -> (u128, u16, usize) {
        let width = self.ports.end() - self.ports.start();
        (self.last - self.first, width, self.rule)
    }

    fn meets(&self, ports: &RangeInclusive<u16>) -> bool {
        self.ports.start() <= ports.end() && ports.start() <= self.ports.end()
    }
}

/// All of them, a prefix before those that lie in it.
struct Areas(Vec<Area>);

impl Areas {
    fn of(rules: &[PlacedReverse]) -> Self {
        let areas = rules.iter().enumerate().flat_map(|(index, placed)| {
            let listen = placed.rule.listen.iter();
            listen.map(move |listen| Area::of(index, listen))
        });
        let mut areas: Vec<_> = areas.collect();
        areas.sort_by_key(|area| (area.is_v6, area.first, Descending(area.last)));
        Self(areas)
    }

    /// The rules that take all connections of one before it can; `None` if there are some left.
    fn takers(&self, index: usize, rule: &Reverse, reach: &mut Reach<'_>) -> Option<Vec<usize>> {
        let mut takers = BTreeSet::new();
        for listen in &rule.listen {
            let area = Area::of(index, listen);
            let before: Vec<&Area> = self
                .within(&area)
                .filter(|other| other.rule != index && other.order() < area.order())
                .filter(|other| other.meets(&area.ports) && reach.covers(other.rule, index))
                .collect();
            if !is_covered(&area, &before) {
                return None;
            }
            match before.iter().find(|other| is_covered(&area, &[**other])) {
                Some(alone) => takers.extend([alone.rule]),
                None => takers.extend(before.iter().map(|other| other.rule)),
            }
        }
        Some(takers.into_iter().collect())
    }

    /// Those on the same addresses or some of them.
    fn within(&self, area: &Area) -> impl Iterator<Item = &Area> {
        let start = |other: &Area| (other.is_v6, other.first) < (area.is_v6, area.first);
        let from = self.0.partition_point(start);
        let (is_v6, last) = (area.is_v6, area.last);
        let rest = self.0.iter().skip(from);
        // Prefixes lie in each other, or apart.
        rest.take_while(move |other| other.is_v6 == is_v6 && other.first <= last)
            .filter(move |other| other.last <= last)
    }
}

/// Whether others listen on everything that one does.
fn is_covered(area: &Area, others: &[&Area]) -> bool {
    // Between two bounds the same ones listen.
    let (first, last) = (u32::from(*area.ports.start()), u32::from(*area.ports.end()));
    let mut bounds = BTreeSet::from([first]);
    for other in others {
        bounds.insert(u32::from(*other.ports.start()).max(first));
        bounds.insert(u32::from(*other.ports.end()) + 1);
    }
    bounds.retain(|bound| (first..=last).contains(bound));
    if bounds.len().saturating_mul(others.len()) > MOST_STEPS {
        return false;
    }
    let whole: Intervals = std::iter::once(area.first..=area.last).collect();
    bounds.into_iter().all(|bound| {
        let listens = |other: &&&Area| {
            let ports = u32::from(*other.ports.start())..=u32::from(*other.ports.end());
            ports.contains(&bound)
        };
        let there = others.iter().filter(listens);
        let taken: Intervals = there.map(|other| other.first..=other.last).collect();
        taken.covers(&whole)
    })
}

#[cfg(test)]
mod tests;
