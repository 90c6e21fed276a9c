//! The hook on what passes through: a `tc` program on interfaces, and the listeners that it gives connections to.
//!
//! The listeners are bound to loopback, as all are, each to a port of its own, and transparent: they answer from the addresses
//! that clients connect to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, SkStorage, SockMap},
    programs::SchedClassifier,
};
use proxy_common::{FAST_LINK_NUMBERS, Passage, beginning, listener, names};

use super::{
    InterceptError, Interceptor,
    arrivals::{self, program},
    guard::Guard,
    handles::{duplicate, map_error},
    id_of,
    ingress::{Attachment, Ingress},
    load_error,
    traces::{Fading, Trail},
};
use crate::{
    netlink::{Conversation, Header},
    socket,
};

/// The hooks of this process. Dropping them detaches.
#[derive(Default)]
pub(super) struct Gateway {
    links: BTreeMap<u32, Attachment>,
    /// What goes on without us, as far as it is not pinned.
    guards: BTreeMap<u32, Attachment>,
    /// Once it is prepared.
    fading: Option<Fading>,
    /// On our network namespace.
    again: Option<OwnedFd>,
}

impl Interceptor {
    /// Loads the hook on what passes through, and tells it the listeners and the mark that has packets delivered to this host.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn prepare_gateway(
        &mut self,
        mark: u32,
        listeners: &[TcpListener],
    ) -> Result<(), InterceptError> {
        self.gateway.prepare(&mut self.ebpf, mark, listeners)
    }

    /// Attaches the hook on what passes through to these interfaces, by their numbers, and to no others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_gateway(&mut self, interfaces: &BTreeSet<u32>) -> Result<(), InterceptError> {
        let (ebpf, ingress) = (&mut self.ebpf, &mut self.ingress);
        self.gateway.attach(ebpf, ingress, interfaces)
    }

    /// Where it is, by their numbers.
    pub fn gateway_interfaces(&self) -> impl Iterator<Item = u32> {
        self.gateway.links.keys().copied()
    }

    /// Forgets where packets may have been that the hook on what passes through looks at twice, as far as that was long ago, but not
    /// those of connections that are open. To be called often.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn follow_gateway<I: IntoIterator<Item = Trail>>(
        &mut self,
        open: impl FnOnce() -> I,
    ) -> Result<(), InterceptError> {
        let fading = self.gateway.fading.as_mut();
        fading.map_or(Ok(()), |fading| fading.follow(open))
    }
}

impl Gateway {
    /// Loads the program, and tells it the mark and the listeners, two of which are one worker's: IPv4, then IPv6.
    pub(super) fn prepare(
        &mut self,
        ebpf: &mut Ebpf,
        mark: u32,
        listeners: &[TcpListener],
    ) -> Result<(), InterceptError> {
        load(ebpf, names::GATEWAY)?;
        if self.fading.is_some() {
            return Ok(());
        }
        let mut storage = SkStorage::try_from(Map::SkStorage(duplicate(ebpf, names::ABROAD)?))
            .map_err(map_error("open", names::ABROAD))?;
        let mut gates = [0; listener::COUNT];
        let data: MapData = duplicate(ebpf, names::GATES)?;
        let mut map =
            SockMap::try_from(Map::SockMap(data)).map_err(map_error("open", names::GATES))?;
        for socket in listeners {
            let is_v4 = socket.local_addr().is_ok_and(|address| address.is_ipv4());
            let family = if is_v4 { listener::V4 } else { listener::V6 };
            let Some(count) = gates.get_mut(family as usize) else {
                continue;
            };
            storage
                .insert(socket, 1_u32, 0)
                .map_err(map_error("insert into", names::ABROAD))?;
            map.set(*count * FAMILIES + family, &socket.as_raw_fd(), 0)
                .map_err(map_error("insert into", names::GATES))?;
            *count += 1;
        }
        let passage = Passage {
            mark,
            // Without IPv6 here there is nothing at its places, which is a failure of the relay.
            gates: gates.into_iter().max().unwrap_or(0),
        };
        Array::try_from(Map::Array(duplicate(ebpf, names::PASSAGE)?))
            .and_then(|mut map: Array<MapData, Passage>| map.set(0, passage, 0))
            .map_err(map_error("write", names::PASSAGE))?;
        self.fading = Some(Fading::new(ebpf)?);
        self.again = Some(arrivals::attach(ebpf, names::GATEWAY_AGAIN)?);
        Ok(())
    }

    /// Attaches the program to interfaces where it is not. It stays where it is as long as the interface does: connections may be
    /// open that came in there.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        ingress: &mut Ingress,
        interfaces: &BTreeSet<u32>,
    ) -> Result<(), InterceptError> {
        // Their links are dead: the kernel detached the program with the interface.
        self.links
            .retain(|number, _| socket::has_interface(*number));
        let new = interfaces.iter().copied();
        let new: BTreeSet<_> = new
            .filter(|number| !self.links.contains_key(number))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        begin(ebpf, &new)?;
        for number in new {
            let link = link(ebpf, ingress, names::GATEWAY, number)?;
            self.links.extend(link.map(|link| (number, link)));
        }
        Ok(())
    }

    /// Where programs of this are, but for pinned ones.
    pub(super) fn attached(&self) -> impl Iterator<Item = (u32, &'static str, &Attachment)> {
        let of = |name| move |(number, it): (&u32, _)| (*number, name, it);
        let links = self.links.iter().map(of(names::GATEWAY));
        links.chain(self.guards.iter().map(of(names::GATEWAY_GUARD)))
    }

    /// Programs of this that somebody has taken off interfaces which are there.
    pub(super) fn missing<'a>(
        &'a self,
        ebpf: &'a Ebpf,
    ) -> impl Iterator<Item = (u32, &'static str)> + 'a {
        let own = self.links.iter().filter(move |(number, link)| {
            let id = id_of(ebpf, names::GATEWAY);
            let is_there = id.is_some_and(|id| link.is_there(**number, id));
            !is_there && socket::has_interface(**number)
        });
        own.map(|(number, _)| (*number, names::GATEWAY))
    }

    /// Attaches what goes on without us, behind each of our programs, and removes it where there is none. What ends with this process
    /// unless it is pinned is pinned.
    pub(super) fn guard(
        &mut self,
        ebpf: &mut Ebpf,
        ingress: &mut Ingress,
        pins: Option<&mut Guard>,
    ) -> Result<(), InterceptError> {
        load(ebpf, names::GATEWAY_GUARD)?;
        self.guards
            .retain(|number, _| self.links.contains_key(number));
        if let Some(pins) = pins.filter(|_| ingress.ends_with_process()) {
            return self.pin_guards(ebpf, ingress, pins);
        }
        for number in self.links.keys() {
            if !self.guards.contains_key(number) {
                let filter = link(ebpf, ingress, names::GATEWAY_GUARD, *number)?;
                self.guards.extend(filter.map(|filter| (*number, filter)));
            }
        }
        Ok(())
    }

    /// Removes what goes on without us, as far as it is not pinned.
    pub(super) fn remove_guards(&mut self) {
        self.guards.clear();
    }

    fn pin_guards(
        &self,
        ebpf: &mut Ebpf,
        ingress: &mut Ingress,
        guard: &mut Guard,
    ) -> Result<(), InterceptError> {
        let wanted: BTreeMap<_, _> = self
            .links
            .keys()
            .map(|number| (format!("{}-{number}", names::GATEWAY_GUARD), *number))
            .collect();
        let mut surplus = guard.begin_with(names::GATEWAY_GUARD);
        surplus.retain(|pin| !wanted.contains_key(pin));
        guard.unpin(&surplus)?;
        for (pin, number) in wanted {
            if !guard.has(&pin) {
                let attached = link(ebpf, ingress, names::GATEWAY_GUARD, number)?;
                if let Some(link) = attached.as_ref().and_then(Attachment::link) {
                    guard.pin(&pin, link)?;
                }
            }
        }
        Ok(())
    }
}

/// Tells how packets of interfaces begin.
fn begin(ebpf: &Ebpf, interfaces: &BTreeSet<u32>) -> Result<(), InterceptError> {
    let data: MapData = duplicate(ebpf, names::BEGINNINGS)?;
    let mut map: Array<MapData, u32> =
        Array::try_from(Map::Array(data)).map_err(map_error("open", names::BEGINNINGS))?;
    let listed = Conversation::open().and_then(|mut kernel| kernel.interfaces());
    let listed = listed.map_err(InterceptError::Interfaces)?;
    // Those with higher numbers have no place: their packets are read in a way that is right for all.
    let known = listed.iter().filter(|interface| {
        interfaces.contains(&interface.number) && (interface.number as usize) < FAST_LINK_NUMBERS
    });
    for interface in known {
        let beginning = match interface.header {
            Header::Ethernet => beginning::ETHERNET,
            Header::None => beginning::IP,
            Header::Other => beginning::UNKNOWN,
        };
        map.set(interface.number, beginning, 0)
            .map_err(map_error("write to", names::BEGINNINGS))?;
    }
    Ok(())
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), InterceptError> {
    let program: &mut SchedClassifier = program(ebpf, name)?;
    if program.fd().is_err() {
        program.load().map_err(load_error(name))?;
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const FAMILIES: u32 = listener::COUNT as u32;

/// Attaches a program to an interface, unless that is gone.
fn link(
    ebpf: &mut Ebpf,
    ingress: &mut Ingress,
    name: &'static str,
    interface: u32,
) -> Result<Option<Attachment>, InterceptError> {
    let program: &mut SchedClassifier = program(ebpf, name)?;
    let fd = program.fd().map_err(load_error(name))?;
    match ingress.attach(fd.as_fd(), name, interface) {
        Err(_) if !socket::has_interface(interface) => Ok(None),
        attached => attached
            .map(Some)
            .map_err(|source| InterceptError::Interface {
                program: name,
                interface,
                source,
            }),
    }
}
