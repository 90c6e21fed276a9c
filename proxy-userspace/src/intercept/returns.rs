//! The hook on answers of other hosts to the addresses of clients: a `tc` program on the interfaces that they come in by.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
    programs::SchedClassifier,
};
use nix::errno::Errno;
use proxy_common::names;

use super::{
    InterceptError,
    arrivals::program,
    handles::{duplicate, map_error},
    load_error,
    object::MissingFeature,
    syscall,
};
use crate::socket;

/// The hooks of this process. Dropping them detaches.
#[derive(Default)]
pub(super) struct Returns {
    links: BTreeMap<u32, OwnedFd>,
}

impl Returns {
    /// Attaches the program to interfaces where it is not, and tells it the mark. It stays where it is as long as the interface
    /// does: connections may be open whose answers come in there.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
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
            self.links.insert(*number, link(fd.as_fd(), *number)?);
        }
        Ok(())
    }
}

fn link(program: BorrowedFd<'_>, interface: u32) -> Result<OwnedFd, InterceptError> {
    syscall::create_interface_link(program, interface).map_err(|source| {
        match source.raw_os_error().map(Errno::from_raw) {
            // A kernel that does not know the hook.
            Some(Errno::EINVAL) => MissingFeature::InterfacePrograms.into(),
            _ => InterceptError::Interface {
                program: names::RETURNS,
                interface,
                source,
            },
        }
    })
}

/// Whether the program can be attached to interfaces, found out by one that there never is: a kernel that knows the hook misses it.
pub(super) fn try_link(program: BorrowedFd<'_>) -> Result<(), InterceptError> {
    const NONE: u32 = 0;
    match link(program, NONE) {
        Err(InterceptError::Interface { source, .. })
            if source.raw_os_error() == Some(Errno::ENODEV as i32) =>
        {
            Ok(())
        }
        tried => tried.map(drop),
    }
}
