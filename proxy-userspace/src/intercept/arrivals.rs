//! The hook on what arrives: a `sk_lookup` program on our network namespace, and the listeners that it gives connections to.
//!
//! Nothing here listens anywhere but on loopback. The program finds the listeners in a sockmap, and the kernel compares
//! neither address nor port of what a program chose; whoever connects to a listener itself is found out by that.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    net::TcpListener,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, SockHash, SockMap},
    programs::{Program, SkLookup, SockOps},
};
use aya_obj::generated::bpf_attach_type;
use proxy_common::{MAX_RULES, RuleRef, listener, names};

use super::{
    InterceptError, MODE, attach_error,
    guard::Guard,
    handles::{duplicate, map_error},
    load_error, survey, syscall,
};

/// The hook of this process. Dropping it detaches.
#[derive(Default)]
pub(super) struct Arrivals {
    link: Option<OwnedFd>,
    has_listeners: bool,
    watches_own: bool,
}

impl Arrivals {
    /// Loads the program and tells it the listeners, if that was not done. Nothing is attached yet.
    pub(super) fn prepare(
        &mut self,
        ebpf: &mut Ebpf,
        listeners: &[TcpListener],
        predecessor: Option<u32>,
    ) -> Result<(), InterceptError> {
        if self.link.is_none()
            && let Some(pid) = survey::arrivals_taken_by()
            && Some(pid) != predecessor
        {
            return Err(InterceptError::Taken { pid });
        }
        load(ebpf, names::REVERSE)?;
        if !self.has_listeners {
            let data: MapData = duplicate(ebpf, names::LISTENERS)?;
            let mut map = SockMap::try_from(Map::SockMap(data))
                .map_err(map_error("open", names::LISTENERS))?;
            // The last one stands; the kernel spreads connections over all that share its port.
            for socket in listeners {
                let is_v4 = socket.local_addr().is_ok_and(|address| address.is_ipv4());
                let index = if is_v4 { listener::V4 } else { listener::V6 };
                map.set(index, &socket.as_raw_fd(), 0)
                    .map_err(map_error("insert into", names::LISTENERS))?;
            }
            self.has_listeners = true;
        }
        Ok(())
    }

    /// Attaches the program, if it is not: from here on what arrives is ours.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        own: BorrowedFd<'_>,
    ) -> Result<(), InterceptError> {
        if self.link.is_none() {
            self.watch_own(ebpf, own)?;
            self.link = Some(link(ebpf, names::REVERSE)?);
        }
        Ok(())
    }

    /// Has our own connections registered. This goes on when the program is detached: connections may outlive it.
    fn watch_own(&mut self, ebpf: &mut Ebpf, own: BorrowedFd<'_>) -> Result<(), InterceptError> {
        if self.watches_own {
            return Ok(());
        }
        let program: &mut SockOps = program(ebpf, names::OWN_EVENTS)?;
        program.load().map_err(load_error(names::OWN_EVENTS))?;
        program
            .attach(own, MODE)
            .map_err(attach_error(names::OWN_EVENTS))?;
        self.watches_own = true;
        Ok(())
    }

    /// Detaches the program at once.
    pub(super) fn detach(&mut self) {
        if let Some(link) = self.link.take()
            && let Err(error) = syscall::detach_link(link.as_fd())
        {
            tracing::debug!(%error, "a link is not detached at once, but a little later");
        }
    }
}

/// The listeners of services that connections are given to. The kernel forgets one that closes.
pub(super) struct Services {
    map: SockHash<MapData, u32>,
    /// By slot: the inode number of the listener that was put there, which may have closed.
    put: HashMap<u32, u64>,
}

impl Services {
    pub(super) fn take(ebpf: &Ebpf) -> Result<Self, InterceptError> {
        let map = SockHash::try_from(Map::SockHash(duplicate(ebpf, names::SERVICES)?))
            .map_err(map_error("open", names::SERVICES))?;
        let put = HashMap::new();
        Ok(Self { map, put })
    }

    /// Forgets those of a generation that is to be written.
    pub(super) fn clear(&mut self, generation: u32) -> Result<(), InterceptError> {
        for slot in self.slots() {
            if slot / RULES == generation % 2
                && let Err(error) = self.map.remove(&slot)
                // One that closed meanwhile is gone already.
                && self.slots().contains(&slot)
            {
                return Err(map_error("remove from", names::SERVICES)(error));
            }
        }
        Ok(())
    }

    fn slots(&self) -> Vec<u32> {
        self.map.keys().filter_map(Result::ok).collect()
    }

    /// Those of a generation that are still open.
    pub(super) fn held(&mut self, generation: u32) -> HashMap<RuleRef, u64> {
        let open: HashSet<u32> = self.slots().into_iter().collect();
        self.put.retain(|slot, _| open.contains(slot));
        let of = |(slot, inode): (&u32, &u64)| {
            let index = slot % RULES;
            let rule = RuleRef { generation, index };
            (rule.slot() == *slot).then_some((rule, *inode))
        };
        self.put.iter().filter_map(of).collect()
    }

    /// Has the connections of a rule given to a listener.
    pub(super) fn set(
        &mut self,
        rule: RuleRef,
        listener: &impl AsRawFd,
        inode: u64,
    ) -> Result<(), InterceptError> {
        self.map
            .insert(rule.slot(), listener.as_raw_fd(), 0)
            .map_err(map_error("insert into", names::SERVICES))?;
        self.put.insert(rule.slot(), inode);
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const RULES: u32 = MAX_RULES as u32;

/// Attaches and pins what keeps rules for what arrives in force without us.
pub(super) fn pin_guard(ebpf: &mut Ebpf, guard: &mut Guard) -> Result<(), InterceptError> {
    let link = attach(ebpf, names::REVERSE_GUARD)?;
    Ok(guard.pin(names::REVERSE_GUARD, link.as_fd())?)
}

/// Attaches a program to our network namespace, as long as what is returned is there.
pub(super) fn attach(ebpf: &mut Ebpf, name: &'static str) -> Result<OwnedFd, InterceptError> {
    load(ebpf, name)?;
    link(ebpf, name)
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), InterceptError> {
    let program: &mut SkLookup = program(ebpf, name)?;
    if program.fd().is_err() {
        program.load().map_err(load_error(name))?;
    }
    Ok(())
}

fn link(ebpf: &mut Ebpf, name: &'static str) -> Result<OwnedFd, InterceptError> {
    let failed = |source| InterceptError::Namespace {
        program: name,
        source,
    };
    // Of the thread: the main thread, and with it the process, may be elsewhere.
    let namespace = File::open(OWN_NAMESPACE).map_err(failed)?;
    let program: &mut SkLookup = program(ebpf, name)?;
    let fd = program.fd().map_err(load_error(name))?;
    syscall::create_link(
        fd.as_fd(),
        namespace.as_fd(),
        bpf_attach_type::BPF_SK_LOOKUP as u32,
        0,
    )
    .map_err(failed)
}

/// The network namespace that we live in.
pub(super) const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

pub(super) fn program<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut P, InterceptError>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(InterceptError::Missing(name))
}
