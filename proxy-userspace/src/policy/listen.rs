//! What rules listen on: prefixes of addresses, and in each the ports.
//!
//! Every listed prefix is an area. For an address the longest listed prefix is found by one look-up, or two where single
//! addresses are listed, and with it all that contain it. The bounds of an area's port ranges cut its ports into intervals in which the same rules listen, and each
//! interval is stored as the few prefixes that cover it. Nothing is repeated from area to area, so tables grow with the
//! file and not with its square; areas with the same rules on the same ports, as the addresses of one list are, are one
//! number, so that the ports of thousands of addresses stay in the processor's cache.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::RangeInclusive,
};

use ipnet::IpNet;
use proxy_common::{
    Addr, Areas, Cell, MAX_CANDIDATES, MAX_DEPTH, MAX_HOSTS, MAX_PORTS, PrefixKind,
};

use super::{
    CompileError, Prefix,
    prefix::{prefix_of, roots, unmapped},
};
use crate::rule::Reverse;

/// A range of ports of an area, without its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CellPrefix {
    /// One of [`Areas::ids`].
    pub area: u32,
    /// Leading bits of the port that count, of 16.
    pub len: u32,
    /// The port; bits beyond `len` are 0.
    pub port: u16,
}

/// Length of the prefix that is one address.
const ADDRESS_BITS: u32 = 128;
/// Length of the prefix that is one port.
const PORT_BITS: u32 = 16;

/// What rules listen on.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    pub(super) hosts: Vec<(Addr, Areas)>,
    pub(super) areas: Vec<(Prefix, Areas)>,
    /// Of single ports.
    pub(super) ports: Vec<(CellPrefix, Cell)>,
    pub(super) cells: Vec<(CellPrefix, Cell)>,
}

/// A rule's ports in one area.
type Listener = (usize, RangeInclusive<u16>);

/// The tables of all that rules listen on.
pub(super) fn tables(rules: &[Reverse]) -> Result<Tables, CompileError> {
    let mut listed: BTreeMap<IpNet, Vec<Listener>> = BTreeMap::new();
    for (index, rule) in rules.iter().enumerate() {
        for listen in &rule.listen {
            let listeners = listed.entry(unmapped(listen.net)).or_default();
            listeners.push((index, listen.ports.clone()));
        }
    }
    if listed.is_empty() {
        return Ok(Tables::default());
    }
    // The whole of IPv6 has IPv4 in it where addresses are looked up, but not for who writes `[::]`.
    for root in roots() {
        listed.entry(root).or_default();
    }
    let mut tables = Tables::default();
    // IpNet orders by family, network, then prefix length: a prefix comes after all that contain it.
    let mut around: Vec<(IpNet, u32)> = Vec::new();
    let mut known: HashMap<Vec<(u32, u16, Cell)>, u32> = HashMap::new();
    for (net, listeners) in listed {
        while around
            .last()
            .is_some_and(|(outer, _)| !outer.contains(&net))
        {
            around.pop();
        }
        if !listeners.is_empty() {
            let ports = ports(net, &listeners, rules)?;
            let next = u32::try_from(known.len() + 1).unwrap_or(u32::MAX);
            let id = *known.entry(ports).or_insert_with_key(|ports| {
                for (len, port, cell) in ports {
                    let (area, len, port) = (next, *len, *port);
                    let cells = if len == PORT_BITS && tables.ports.len() < MAX_PORTS {
                        &mut tables.ports
                    } else {
                        &mut tables.cells
                    };
                    cells.push((CellPrefix { area, len, port }, *cell));
                }
                next
            });
            around.push((net, id));
        }
        if around.len() > MAX_DEPTH {
            return Err(CompileError::TooManyPrefixes { net });
        }
        let mut areas = Areas::default();
        for (place, (_, id)) in areas.ids.iter_mut().zip(around.iter().rev()) {
            *place = *id;
        }
        let prefix = prefix_of(PrefixKind::LISTEN, net);
        if prefix.len == ADDRESS_BITS && tables.hosts.len() < MAX_HOSTS {
            tables.hosts.push((prefix.bits, areas));
        } else {
            tables.areas.push((prefix, areas));
        }
    }
    Ok(tables)
}

/// The cells of one area: leading bits that count, port, and who listens.
fn ports(
    net: IpNet,
    listeners: &[Listener],
    rules: &[Reverse],
) -> Result<Vec<(u32, u16, Cell)>, CompileError> {
    let mut cells = Vec::new();
    // At each bound some listeners begin and some end; in between they are the same. Ordered as they are tried.
    let mut bounds: BTreeMap<u32, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for (at, (_, ports)) in listeners.iter().enumerate() {
        let (first, last) = (u32::from(*ports.start()), u32::from(*ports.end()));
        bounds.entry(first).or_default().0.push(at);
        bounds.entry(last + 1).or_default().1.push(at);
    }
    let order = |at: usize| {
        let (rule, ports) = listeners.get(at)?;
        Some((ports.end() - ports.start(), *rule, at))
    };
    let mut active: BTreeSet<(u16, usize, usize)> = BTreeSet::new();
    let mut pending: Option<(u32, Cell)> = None;
    for (start, (begin, end)) in bounds {
        for ended in end.into_iter().filter_map(order) {
            active.remove(&ended);
        }
        active.extend(begin.into_iter().filter_map(order));
        let cell = cell(&active, start, net, rules)?;
        if pending.is_some_and(|(_, before)| before == cell) {
            continue;
        }
        if let Some((first, before)) = pending.replace((start, cell)) {
            cover(first, start - 1, before, &mut cells);
        }
    }
    // After the last bound nobody listens.
    Ok(cells)
}

fn cell(
    active: &BTreeSet<(u16, usize, usize)>,
    port: u32,
    net: IpNet,
    rules: &[Reverse],
) -> Result<Cell, CompileError> {
    let mut cell = Cell::default();
    for (_, rule, _) in active {
        let index = u16::try_from(*rule).unwrap_or(u16::MAX);
        let listed = cell.rules.iter().take(cell.count as usize);
        if listed.into_iter().any(|known| *known == index) {
            continue;
        }
        let Some(place) = cell.rules.get_mut(cell.count as usize) else {
            let name = rules.get(*rule).map_or("", |rule| &rule.name);
            return Err(CompileError::TooManyListeners {
                net,
                port,
                rule: name.to_owned(),
            });
        };
        *place = index;
        cell.count += 1;
    }
    debug_assert!(cell.count as usize <= MAX_CANDIDATES);
    Ok(cell)
}

/// Covers an interval of ports with the largest aligned blocks that fit.
fn cover(first: u32, last: u32, cell: Cell, cells: &mut Vec<(u32, u16, Cell)>) {
    if cell.count == 0 {
        return;
    }
    super::range::blocks(PORT_BITS, first, last, |port, len| {
        let port = u16::try_from(port).unwrap_or(u16::MAX);
        cells.push((len, port, cell));
    });
}
