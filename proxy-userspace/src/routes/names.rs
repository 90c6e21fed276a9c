//! Where the connections of a rule go by the name that their clients ask for.

use crate::{
    peek::{Seen, Table},
    rule::{Limits, NameEntry, Names, ReverseVia},
};

use super::Target;

/// What the names of a rule stand for. `None` is a reset.
#[derive(Clone, Debug)]
pub struct ByName {
    table: Table<Option<Target>>,
    /// For names that are in no table.
    unlisted: Option<Target>,
    unnamed: Option<Target>,
    malformed: Option<Target>,
    /// How far to look.
    pub limits: Limits,
}

impl ByName {
    /// Of a rule whose other connections go to `unlisted`.
    pub(super) fn new<E>(
        names: &Names,
        unlisted: Option<Target>,
        target: impl Fn(&ReverseVia) -> Result<Option<Target>, E>,
    ) -> Result<Self, E> {
        let entries = names.entries.iter().map(|entry| {
            Ok(NameEntry {
                kind: entry.kind,
                pattern: entry.pattern.clone(),
                alpn: entry.alpn.clone(),
                to: target(&entry.to)?,
            })
        });
        let entries: Result<Vec<_>, E> = entries.collect();
        Ok(Self {
            table: Table::new(entries?),
            unnamed: match &names.unnamed {
                None => unlisted.clone(),
                Some(via) => target(via)?,
            },
            malformed: target(&names.malformed)?,
            unlisted,
            limits: names.limits,
        })
    }

    /// Where a connection goes.
    #[must_use]
    pub fn target(&self, seen: &Seen) -> Option<&Target> {
        match seen {
            Seen::Whole(flight) if flight.name.is_some() => {
                self.table.find(flight).unwrap_or(&self.unlisted)
            }
            Seen::Whole(_) | Seen::Late => &self.unnamed,
            Seen::Malformed(_) => &self.malformed,
        }
        .as_ref()
    }
}
