//! The compiled tables in memory, read as the kernel reads its maps.
//!
//! The relay asks them which rule took a connection that it accepted; the kernel only says that one did. It could
//! leave a note for each SYN, but nobody would take the notes of those that never become a connection.

use std::collections::{BTreeMap, HashMap};

use proxy_common::{
    Action, Addr, Areas, Bindings, Cell, CellKey, Crossings, MemberKey, MemberKind, Membership,
    Policy, PrefixKey, PrefixKind, RuleRef, RuleSet, Tables,
};

use super::{CellPrefix, Compiled, Member, Prefix};

/// The tables of one generation.
#[derive(Clone, Debug)]
pub struct MemoryTables {
    policy: Policy,
    prefixes: Longest<RuleSet>,
    members: BTreeMap<Member, Membership>,
    actions: Vec<Action>,
    hosts: HashMap<Addr, Areas>,
    areas: Longest<Areas>,
    cells: HashMap<CellPrefix, Cell>,
    arrival_actions: Vec<Action>,
    transit_actions: Vec<Action>,
}

impl MemoryTables {
    /// All tables.
    #[must_use]
    pub fn new(generation: u32, compiled: &Compiled) -> Self {
        Self::with(generation, compiled, |_| true, |_| true)
    }

    /// Those for what arrives.
    #[must_use]
    pub fn for_arrivals(generation: u32, compiled: &Compiled) -> Self {
        Self::with(
            generation,
            compiled,
            |kind| kind == PrefixKind::SOURCE,
            |kind| kind == MemberKind::INTERFACE,
        )
    }

    /// Those for what passes through.
    #[must_use]
    pub fn for_transits(generation: u32, compiled: &Compiled) -> Self {
        let kinds = [
            PrefixKind::TRANSIT_SOURCE,
            PrefixKind::TRANSIT_DEST,
            PrefixKind::TRANSIT_PORT,
        ];
        let mut tables = Self::with(
            generation,
            compiled,
            |kind| kinds.contains(&kind),
            |kind| kind == MemberKind::TRANSIT_INTERFACE,
        );
        tables.areas = Longest::default();
        tables.cells = HashMap::new();
        tables
    }

    fn with(
        generation: u32,
        compiled: &Compiled,
        prefixes: impl Fn(u32) -> bool,
        members: impl Fn(u32) -> bool,
    ) -> Self {
        let of = |prefix: &&(Prefix, RuleSet)| prefixes(prefix.0.kind);
        Self {
            policy: Policy {
                generation,
                ..compiled.policy
            },
            prefixes: compiled.prefixes.iter().filter(of).copied().collect(),
            members: compiled
                .members
                .iter()
                .filter(|(member, _)| members(member.kind))
                .copied()
                .collect(),
            actions: compiled.actions.clone(),
            hosts: compiled.hosts.iter().copied().collect(),
            areas: compiled.areas.iter().copied().collect(),
            cells: compiled
                .ports
                .iter()
                .chain(&compiled.cells)
                .copied()
                .collect(),
            arrival_actions: compiled.arrival_actions.clone(),
            transit_actions: compiled.transit_actions.clone(),
        }
    }
}

impl Tables for MemoryTables {
    fn policy(&self) -> Option<&Policy> {
        Some(&self.policy)
    }

    fn prefix(&self, key: &PrefixKey) -> Option<&RuleSet> {
        self.prefixes.find(key)
    }

    fn member(&self, key: &MemberKey) -> Option<&Membership> {
        self.members.get(&Member {
            kind: key.kind,
            id: key.id,
            device: key.device,
        })
    }

    fn action(&self, rule: RuleRef) -> Option<&Action> {
        self.actions.get(rule.index as usize)
    }
}

impl Bindings for MemoryTables {
    fn host(&self, key: &PrefixKey) -> Option<&Areas> {
        self.hosts.get(&key.bits)
    }

    fn areas(&self, key: &PrefixKey) -> Option<&Areas> {
        self.areas.find(key)
    }

    fn single(&self, key: &CellKey) -> Option<&Cell> {
        self.cells.get(&CellPrefix {
            area: key.area,
            len: 16,
            port: key.port.get(),
        })
    }

    fn cell(&self, key: &CellKey) -> Option<&Cell> {
        (0..=16).rev().find_map(|len| {
            let mask = u16::MAX.checked_shl(16 - len).unwrap_or(0);
            self.cells.get(&CellPrefix {
                area: key.area,
                len,
                port: key.port.get() & mask,
            })
        })
    }

    fn arrival_action(&self, rule: RuleRef) -> Option<&Action> {
        self.arrival_actions.get(rule.index as usize)
    }
}

impl Crossings for MemoryTables {
    fn transit_action(&self, rule: RuleRef) -> Option<&Action> {
        self.transit_actions.get(rule.index as usize)
    }
}

/// Finds the longest prefix: one look-up for each length that occurs.
#[derive(Clone, Debug, Default)]
struct Longest<V> {
    entries: HashMap<Prefix, V>,
    /// By kind, longest first.
    lengths: BTreeMap<u32, Vec<u32>>,
}

impl<V> Longest<V> {
    fn find(&self, key: &PrefixKey) -> Option<&V> {
        self.lengths.get(&key.kind)?.iter().find_map(|len| {
            self.entries.get(&Prefix {
                kind: key.kind,
                len: *len,
                bits: leading(key.bits, *len),
            })
        })
    }
}

impl<V> FromIterator<(Prefix, V)> for Longest<V> {
    fn from_iter<I: IntoIterator<Item = (Prefix, V)>>(entries: I) -> Self {
        let entries: HashMap<Prefix, V> = entries.into_iter().collect();
        let mut lengths: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for prefix in entries.keys() {
            lengths.entry(prefix.kind).or_default().push(prefix.len);
        }
        for lengths in lengths.values_mut() {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        Self { entries, lengths }
    }
}

/// The leading bits, the others 0.
fn leading(bits: Addr, len: u32) -> Addr {
    let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
    Addr::from_v6((u128::from_be_bytes(bits.octets()) & mask).to_be_bytes())
}
