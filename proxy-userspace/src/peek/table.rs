//! Which of many entries takes a name: the same cost for ten as for ten thousand.

use std::collections::HashMap;

use crate::rule::{Kind, Name, NameEntry, Pattern};

use super::Flight;

/// Entries, most specific first: the whole name, then the longest that it is below of, then any; of those with the same
/// pattern the ones that want a protocol first, each in the order in which they were given.
#[derive(Clone, Debug)]
pub struct Table<T> {
    sni: Patterns<T>,
    host: Patterns<T>,
}

#[derive(Clone, Debug)]
struct Patterns<T> {
    exact: HashMap<Name, Choices<T>>,
    below: HashMap<Name, Choices<T>>,
    any: Choices<T>,
}

type Choices<T> = Vec<(Vec<Box<str>>, T)>;

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            below: HashMap::new(),
            any: Vec::new(),
        }
    }
}

impl<T> Table<T> {
    /// Of these entries.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = NameEntry<T>>) -> Self {
        let (mut sni, mut host) = (Patterns::default(), Patterns::default());
        for entry in entries {
            let patterns = match entry.kind {
                Kind::Sni => &mut sni,
                Kind::Host => &mut host,
            };
            let choices = match entry.pattern {
                Pattern::Exact(name) => patterns.exact.entry(name).or_default(),
                Pattern::Below(name) => patterns.below.entry(name).or_default(),
                Pattern::Any => &mut patterns.any,
            };
            choices.push((entry.alpn, entry.to));
        }
        for patterns in [&mut sni, &mut host] {
            let lists = patterns
                .exact
                .values_mut()
                .chain(patterns.below.values_mut());
            for choices in lists.chain([&mut patterns.any]) {
                // Stable: the order of the file stays.
                choices.sort_by_key(|(alpn, _)| alpn.is_empty());
            }
        }
        Self { sni, host }
    }

    /// The entry for what a client asks for.
    #[must_use]
    pub fn find(&self, flight: &Flight) -> Option<&T> {
        let name = flight.name.as_ref()?;
        let patterns = match flight.kind? {
            Kind::Sni => &self.sni,
            Kind::Host => &self.host,
        };
        let below = name.above().filter_map(|above| patterns.below.get(above));
        patterns
            .exact
            .get(name)
            .into_iter()
            .chain(below)
            .chain([&patterns.any])
            .flatten()
            .find(|(alpn, _)| is_offered(alpn, flight))
            .map(|(_, to)| to)
    }
}

fn is_offered(wanted: &[Box<str>], flight: &Flight) -> bool {
    let is_wanted = |offered: &[u8]| wanted.iter().any(|wanted| wanted.as_bytes() == offered);
    wanted.is_empty() || flight.alpn().any(is_wanted)
}
