//! The hook on answers of other hosts to the addresses of clients: a `tc` program on the interfaces that they come in by.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
    programs::SchedClassifier,
};
use proxy_common::names;

use super::{
    InterceptError,
    arrivals::program,
    handles::{duplicate, map_error},
    ingress::{Attachment, Ingress},
    load_error,
};
use crate::socket;

/// The hooks of this process. Dropping them detaches.
#[derive(Default)]
pub(super) struct Returns {
    links: BTreeMap<u32, Attachment>,
}

impl Returns {
    /// Where the program is.
    pub(super) fn attached(&self) -> impl Iterator<Item = (u32, &'static str, &Attachment)> {
        let links = self.links.iter();
        links.map(|(number, it)| (*number, names::RETURNS, it))
    }

    /// Attaches the program to interfaces where it is not, and tells it the mark. It stays where it is as long as the interface
    /// does: connections may be open whose answers come in there.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        ingress: &mut Ingress,
        mark: u32,
        interfaces: &BTreeSet<u32>,
    ) -> Result<(), InterceptError> {
        // Their links are dead: the kernel detached the program with the interface.
        self.links
            .retain(|number, _| socket::has_interface(*number));
        let new: Vec<_> = interfaces
            .iter()
            .filter(|number| !self.links.contains_key(number))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let data: MapData = duplicate(ebpf, names::RETURN_MARK)?;
        Array::try_from(Map::Array(data))
            .and_then(|mut map: Array<MapData, u32>| map.set(0, mark, 0))
            .map_err(map_error("write", names::RETURN_MARK))?;
        let program: &mut SchedClassifier = program(ebpf, names::RETURNS)?;
        if program.fd().is_err() {
            program.load().map_err(load_error(names::RETURNS))?;
        }
        let fd = program.fd().map_err(load_error(names::RETURNS))?;
        for number in new {
            let link = ingress
                .attach(fd.as_fd(), names::RETURNS, *number)
                .map_err(|source| InterceptError::Interface {
                    program: names::RETURNS,
                    interface: *number,
                    source,
                })?;
            self.links.insert(*number, link);
        }
        Ok(())
    }
}
