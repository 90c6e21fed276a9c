//! The fast path: a `tc` program on the interfaces that it sends packets on between.

use std::{collections::BTreeMap, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
    programs::SchedClassifier,
};
use proxy_common::{Doubts, FastLink, names};

use super::{
    InterceptError, Interceptor,
    arrivals::program,
    handles::{duplicate, map_error},
    ingress::{Attachment, Ingress},
    load_error,
};

/// The hooks of this process. Dropping them detaches.
#[derive(Default)]
pub(super) struct Router {
    links: BTreeMap<u32, (FastLink, Attachment)>,
    doubts: Doubts,
}

impl Interceptor {
    /// Sends packets on between these interfaces, by their numbers, and no others, where their sources are not doubtful. To be called
    /// after all that attaches to interfaces: what is sent on is seen by no program behind.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn route(
        &mut self,
        links: &BTreeMap<u32, FastLink>,
        doubts: &Doubts,
    ) -> Result<(), InterceptError> {
        let (ebpf, ingress) = (&mut self.ebpf, &mut self.ingress);
        self.router.doubt(ebpf, doubts)?;
        self.router.follow(ebpf, ingress, links)
    }
}

impl Router {
    /// Where the program is.
    pub(super) fn attached(&self) -> impl Iterator<Item = (u32, &'static str, &Attachment)> {
        let links = self.links.iter();
        links.map(|(number, (_, it))| (*number, names::ROUTER, it))
    }

    /// Has the program look twice at some sources.
    fn doubt(&mut self, ebpf: &Ebpf, doubts: &Doubts) -> Result<(), InterceptError> {
        if self.doubts == *doubts {
            return Ok(());
        }
        let data: MapData = duplicate(ebpf, names::DOUBTS)?;
        let mut map: Array<MapData, Doubts> =
            Array::try_from(Map::Array(data)).map_err(map_error("open", names::DOUBTS))?;
        map.set(0, *doubts, 0)
            .map_err(map_error("write to", names::DOUBTS))?;
        self.doubts = *doubts;
        Ok(())
    }

    /// Sends packets on between these interfaces, by their numbers, and no others. The program is the last one of ours on each.
    pub(super) fn follow(
        &mut self,
        ebpf: &mut Ebpf,
        ingress: &mut Ingress,
        wanted: &BTreeMap<u32, FastLink>,
    ) -> Result<(), InterceptError> {
        if wanted.is_empty() && self.links.is_empty() {
            return Ok(());
        }
        let data: MapData = duplicate(ebpf, names::FAST_LINKS)?;
        let mut map: Array<MapData, FastLink> =
            Array::try_from(Map::Array(data)).map_err(map_error("open", names::FAST_LINKS))?;
        // The number of one that has vanished may be another one's by now.
        let surplus: Vec<_> = self
            .links
            .iter()
            .filter(|(number, (_, attached))| {
                !wanted.contains_key(number) || !ingress.is_last(**number, attached)
            })
            .map(|(number, _)| *number)
            .collect();
        for number in surplus {
            map.set(number, FastLink::default(), 0)
                .map_err(map_error("write to", names::FAST_LINKS))?;
            self.links.remove(&number);
        }
        for (number, link) in wanted {
            let known = self.links.get_mut(number);
            if known.as_ref().is_some_and(|(known, _)| known == link) {
                continue;
            }
            map.set(*number, *link, 0)
                .map_err(map_error("write to", names::FAST_LINKS))?;
            if let Some((known, _)) = known {
                *known = *link;
            } else {
                let attached = attach(ebpf, ingress, *number)?;
                self.links.insert(*number, (*link, attached));
            }
        }
        Ok(())
    }
}

fn attach(
    ebpf: &mut Ebpf,
    ingress: &mut Ingress,
    interface: u32,
) -> Result<Attachment, InterceptError> {
    let program: &mut SchedClassifier = program(ebpf, names::ROUTER)?;
    if program.fd().is_err() {
        program.load().map_err(load_error(names::ROUTER))?;
    }
    let fd = program.fd().map_err(load_error(names::ROUTER))?;
    ingress
        .attach(fd.as_fd(), names::ROUTER, interface)
        .map_err(|source| InterceptError::Interface {
            program: names::ROUTER,
            interface,
            source,
        })
}
