//! Looking on while processes connect, for `culvert watch`: programs of their own, which change nothing and end with this process.
//!
//! They may be attached beside those of a daemon, and of another such process.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
    programs::{CgroupSock, CgroupSockAddr, ProgramError, ProgramFd, SockOps},
};
use aya_obj::generated::bpf_attach_type;
use proxy_common::{Sighting, names, watched};

use super::{
    Features, InterceptError, Settings,
    arrivals::program,
    attach_error,
    events::Ring,
    follow_tasks,
    handles::{duplicate, map_error, typed},
    load_error, object,
    syscall::create_link,
    tables::threads,
};

/// `BPF_F_PREORDER` of `linux/bpf.h` (kernel 6.15): the program runs before those of cgroups below, and before those that were
/// attached to the same cgroup earlier without it. So it sees where the app wanted to go, and not where a daemon sends it.
const BEFORE_OTHERS: u32 = 1 << 6;

/// Of whom is told what.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only of these processes, and of what they start from now on; of all if there are none.
    pub processes: Vec<u32>,
    /// Of datagram sockets as well.
    pub datagrams: bool,
}

/// The programs. Dropping it detaches them.
pub struct Sightings {
    ebpf: Ebpf,
    links: Vec<OwnedFd>,
    ring: Ring,
    unseen: PerCpuArray<MapData, u64>,
}

impl Sightings {
    /// Loads them.
    ///
    /// # Errors
    /// When the kernel refuses one without which nothing is seen: too old (before 5.9), or without the privileges.
    pub fn load(features: &Features, scope: &Scope) -> Result<Self, InterceptError> {
        if !scope.processes.is_empty()
            && let Err(missing) = &features.offsets
        {
            return Err(missing.clone().into());
        }
        let mut ebpf = object::load(Settings::UNCONFIGURED, features, &[])?;
        for name in [names::WATCH4, names::WATCH6] {
            let program: &mut CgroupSockAddr = program(&mut ebpf, name)?;
            program.load().map_err(load_error(name))?;
        }
        let events: &mut SockOps = program(&mut ebpf, names::WATCH_EVENTS)?;
        events.load().map_err(load_error(names::WATCH_EVENTS))?;
        let released: &mut CgroupSock = program(&mut ebpf, names::WATCH_RELEASE)?;
        released.load().map_err(load_error(names::WATCH_RELEASE))?;
        let unseen = PerCpuArray::try_from(Map::PerCpuArray(duplicate(&ebpf, names::UNSEEN)?))
            .map_err(map_error("open", names::UNSEEN))?;
        let mut sightings = Self {
            ring: Ring::new(&ebpf, names::SIGHTINGS)?,
            ebpf,
            links: Vec::new(),
            unseen,
        };
        sightings.narrow(scope)?;
        Ok(sightings)
    }

    fn narrow(&mut self, scope: &Scope) -> Result<(), InterceptError> {
        let mut word = 0;
        if scope.datagrams {
            word |= watched::DATAGRAMS;
        }
        if !scope.processes.is_empty() {
            word |= watched::DESCENDANTS;
            follow_tasks(&mut self.ebpf)?;
            let mut followed = followed(&self.ebpf)?;
            for process in &scope.processes {
                for task in threads(*process) {
                    followed
                        .insert(task, process, 0)
                        .map_err(map_error("insert into", names::DESCENDANTS))?;
                }
            }
        }
        let mut map: Array<_, u32> =
            Array::try_from(Map::Array(duplicate(&self.ebpf, names::WATCHED)?))
                .map_err(map_error("open", names::WATCHED))?;
        map.set(0, word, 0)
            .map_err(map_error("write", names::WATCHED))
    }

    /// Attaches them to a cgroup: from here on what is below it is seen. May be called for several.
    ///
    /// # Errors
    /// When the kernel refuses one; those attached before it are detached again by dropping `self`.
    pub fn attach(&mut self, cgroup: BorrowedFd<'_>) -> Result<(), InterceptError> {
        use bpf_attach_type as at;
        // `connect` comes last: what is seen to begin is seen to end.
        let released: &mut CgroupSock = program(&mut self.ebpf, names::WATCH_RELEASE)?;
        let attached = link(released.fd(), cgroup, at::BPF_CGROUP_INET_SOCK_RELEASE);
        self.links
            .push(attached.map_err(attach_error(names::WATCH_RELEASE))?);
        let events: &mut SockOps = program(&mut self.ebpf, names::WATCH_EVENTS)?;
        let attached = link(events.fd(), cgroup, at::BPF_CGROUP_SOCK_OPS);
        self.links
            .push(attached.map_err(attach_error(names::WATCH_EVENTS))?);
        for (name, hook) in [
            (names::WATCH4, at::BPF_CGROUP_INET4_CONNECT),
            (names::WATCH6, at::BPF_CGROUP_INET6_CONNECT),
        ] {
            let connect: &mut CgroupSockAddr = program(&mut self.ebpf, name)?;
            let attached = link(connect.fd(), cgroup, hook);
            self.links.push(attached.map_err(attach_error(name))?);
        }
        Ok(())
    }

    /// Takes them off; what they have told can still be read.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    /// Whether any of the processes, or of what they have started, is left.
    #[must_use]
    pub fn follows_anybody(&self) -> bool {
        followed(&self.ebpf).is_ok_and(|followed| followed.keys().next().is_some())
    }

    /// Waits until there may be something to read.
    ///
    /// # Errors
    /// When the runtime does not take the descriptor.
    pub async fn readable(&mut self) -> io::Result<()> {
        self.ring.readable().await
    }

    /// The next one, if there is one.
    pub fn take(&mut self) -> Option<Sighting> {
        let event = self.ring.next()?;
        let bytes = event.get(..size_of::<Sighting>())?;
        // SAFETY: as many bytes as it has, of which any are one; they need not be aligned.
        Some(unsafe { bytes.as_ptr().cast::<Sighting>().read_unaligned() })
    }

    /// How many there was no room for.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn unseen(&self) -> Result<u64, InterceptError> {
        let values = self.unseen.get(&0, 0);
        let values = values.map_err(map_error("read", names::UNSEEN))?;
        Ok(values.iter().sum())
    }
}

/// Whom the hooks tell of, where that is not everybody.
fn followed(ebpf: &Ebpf) -> Result<HashMap<MapData, u32, u32>, InterceptError> {
    typed(duplicate(ebpf, names::DESCENDANTS)?, names::DESCENDANTS)
}

/// Before the programs of others where the kernel can do that.
fn link(
    program: Result<&ProgramFd, ProgramError>,
    cgroup: BorrowedFd<'_>,
    hook: bpf_attach_type,
) -> Result<OwnedFd, ProgramError> {
    let program = program?.as_fd();
    create_link(program, cgroup, hook as u32, BEFORE_OTHERS)
        .or_else(|_| create_link(program, cgroup, hook as u32, 0))
        .map_err(ProgramError::IOError)
}
