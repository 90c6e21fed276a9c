//! The one decision about a connection that arrives at this host.
//!
//! Most specific first, then file order: the longest prefix that a rule listens on, in it the narrowest range of ports, then
//! the first rule of the file. What a look-up costs depends on how deep prefixes lie in each other, not on how many there are:
//! single addresses and their ports, of which there may be thousands, are in hashes.

use crate::{
    Action, Addr, BePort, Decision, Dimensions, MemberKey, MemberKind, Policy, PrefixKey,
    PrefixKind, RuleRef, RuleSet, Tables, decide::named,
};

/// Prefixes that may lie in each other where an address is, the innermost included.
pub const MAX_DEPTH: usize = 8;
/// Rules that may listen on one port of one prefix.
pub const MAX_CANDIDATES: usize = 16;
/// Single addresses that are found by hash; what is beyond is found as other prefixes are.
pub const MAX_HOSTS: usize = 32_768;
/// Single ports of prefixes that are found by hash; what is beyond is found as ranges are.
pub const MAX_PORTS: usize = 32_768;

/// The prefixes with listening rules around an address: value of the maps [`HOSTS`](crate::names::HOSTS) and
/// [`AREAS`](crate::names::AREAS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Areas {
    /// Their numbers, the innermost first; 0 ends them. Prefixes with the same rules on the same ports have one number.
    pub ids: [u32; MAX_DEPTH],
}

/// A port of a prefix: key of the map [`PORTS`](crate::names::PORTS), and of [`CELLS`](crate::names::CELLS), a prefix of it for a range
/// of ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CellKey {
    /// [`Policy::generation`].
    pub generation: u32,
    /// One of [`Areas::ids`].
    pub area: u32,
    /// The port, or the beginning of those of a range.
    pub port: BePort,
    /// Always 0.
    pub reserved: u16,
}

impl CellKey {
    /// Bits before [`CellKey::port`].
    pub const HEAD_BITS: u32 = 64;
    /// Prefix length of a look-up: all of it.
    pub const FULL_BITS: u32 = Self::HEAD_BITS + 16;
}

/// Who listens there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Rules, those with the narrowest range of ports first, then in file order.
    pub rules: [u16; MAX_CANDIDATES],
    /// How many of them count.
    pub count: u32,
}

impl Cell {
    /// The first rule that a set allows.
    #[inline(always)]
    #[must_use]
    pub fn first(&self, allowed: &RuleSet) -> Option<u32> {
        let mut at = 0;
        while at < MAX_CANDIDATES {
            if at >= self.count as usize {
                break;
            }
            let rule = *self.rules.get(at)?;
            // Of the two bytes the first is all that a number below `MAX_RULES` has.
            let [index, _] = rule.to_le_bytes();
            if allowed.contains(index) {
                return Some(u32::from(rule));
            }
            at += 1;
        }
        None
    }
}

/// The compiled rules for what arrives, beside the tables that both roles use.
pub trait Bindings: Tables {
    /// The prefixes around an address that is listed itself.
    fn host(&self, key: &PrefixKey) -> Option<&Areas>;
    /// The prefixes around any other one.
    fn areas(&self, key: &PrefixKey) -> Option<&Areas>;
    /// Who listens on a port of a prefix, if that is listed itself.
    fn single(&self, key: &CellKey) -> Option<&Cell>;
    /// Who listens on any other one.
    fn cell(&self, key: &CellKey) -> Option<&Cell>;
    /// What a rule does with what arrives.
    fn arrival_action(&self, rule: RuleRef) -> Option<&Action>;
}

/// Who connects to what of this host.
pub trait Arrival {
    /// The address it was sent to.
    fn local(&self) -> Addr;
    /// The port it was sent to.
    fn port(&self) -> BePort;
    /// Where it comes from.
    fn source(&self) -> Addr;
    /// Number of the interface it came in by; 0 when it cannot be told. Asked for only when some rule needs it.
    fn interface(&self) -> u32;
}

/// Finds the rule that takes a connection.
#[inline(always)]
pub fn select(bindings: &impl Bindings, arrival: &impl Arrival) -> Decision {
    let Some(policy) = bindings.policy() else {
        return Decision::Unselected;
    };
    if policy.dimensions & Dimensions::LISTEN == 0 {
        return Decision::Unselected;
    }
    let generation = policy.generation;
    let key = PrefixKey {
        generation,
        kind: PrefixKind::LISTEN,
        bits: arrival.local(),
    };
    let listed = policy.dimensions & Dimensions::HOST != 0;
    let host = if listed { bindings.host(&key) } else { None };
    let Some(areas) = host.or_else(|| bindings.areas(&key)) else {
        return Decision::Unselected;
    };
    let mut key = CellKey {
        generation,
        area: 0,
        port: arrival.port(),
        reserved: 0,
    };
    // What no rule listens for, which is most, need not be looked at closer.
    if policy.dimensions & (Dimensions::SOURCE | Dimensions::INTERFACE) != 0
        && !is_listened_for(bindings, areas, &mut key)
    {
        return Decision::Unselected;
    }
    let allowed = allowed_for(bindings, policy, arrival);
    let mut depth = 0;
    while depth < MAX_DEPTH {
        key.area = areas.ids.get(depth).copied().unwrap_or(0);
        if key.area == 0 {
            break;
        }
        // A copy: the verifier goes through what follows once, and not once for each map that it may be from.
        if let Some(cell) = cell_at(bindings, &key).copied()
            && let Some(index) = cell.first(&allowed)
        {
            let rule = RuleRef { generation, index };
            return match bindings.arrival_action(rule) {
                Some(action) => Decision::Selected(rule, *action),
                None => Decision::Unselected,
            };
        }
        depth += 1;
    }
    Decision::Unselected
}

/// Who listens on a port of a prefix. Cells do not overlap, so the first that is found is the only one.
#[inline(always)]
fn cell_at<'a>(bindings: &'a impl Bindings, key: &CellKey) -> Option<&'a Cell> {
    bindings.single(key).or_else(|| bindings.cell(key))
}

/// Whether any rule listens there.
#[inline(always)]
fn is_listened_for(bindings: &impl Bindings, areas: &Areas, key: &mut CellKey) -> bool {
    let mut depth = 0;
    while depth < MAX_DEPTH {
        key.area = areas.ids.get(depth).copied().unwrap_or(0);
        if key.area == 0 {
            return false;
        }
        if cell_at(bindings, key).is_some() {
            return true;
        }
        depth += 1;
    }
    false
}

/// The rules that take connections from there.
#[inline(always)]
fn allowed_for(bindings: &impl Bindings, policy: &Policy, arrival: &impl Arrival) -> RuleSet {
    let generation = policy.generation;
    let mut allowed = RuleSet::ALL;
    if policy.dimensions & Dimensions::SOURCE != 0 {
        let key = PrefixKey {
            generation,
            kind: PrefixKind::SOURCE,
            bits: arrival.source(),
        };
        allowed = match bindings.prefix(&key) {
            Some(rules) => *rules,
            None => RuleSet::EMPTY,
        };
    }
    if policy.dimensions & Dimensions::INTERFACE != 0 {
        let key = MemberKey {
            generation,
            kind: MemberKind::INTERFACE,
            id: u64::from(arrival.interface()),
            device: 0,
        };
        allowed = named(bindings.member(&key), allowed, &policy.any_interface);
    }
    allowed
}
