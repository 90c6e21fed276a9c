//! Typed handles to single maps, each with a descriptor of its own so that workers share nothing.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SkStorage},
    sys::SyscallError,
};
use proxy_common::{Addr, BePort, COUNTERS, Record, RecordKey, Relay, names, ours, relay};

use super::{InterceptError, marking::Marking, syscall, traces::Traces};
use crate::{clock, shared::OriginalDst, upstream::Exempt};

/// Takes the records of accepted connections.
pub struct Records {
    map: HashMap<MapData, RecordKey, Record>,
    /// The same map, for what aya does not do.
    descriptor: OwnedFd,
    takes_in_one_call: bool,
    netns_cookie: u64,
}

impl Records {
    pub(super) fn new(ebpf: &Ebpf, netns_cookie: u64) -> Result<Self, InterceptError> {
        let data = duplicate(ebpf, names::RECORDS)?;
        let mut records = Self {
            descriptor: descriptor(&data, names::RECORDS)?,
            map: typed(data, names::RECORDS)?,
            takes_in_one_call: true,
            netns_cookie,
        };
        // Nobody is there: ports begin at 1. Kernels before 5.14 have no such call for hash maps.
        records.takes_in_one_call = records.take_at_once(&RecordKey::default()).is_ok();
        Ok(records)
    }

    /// Takes the record of a connection that was accepted, by its two addresses, and the network namespace that they are of, if it is
    /// not the daemon's. `None`: nobody was intercepted, somebody connected to the listener itself.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn take(
        &mut self,
        client: SocketAddr,
        listener: SocketAddr,
        space: Option<u64>,
    ) -> Result<Option<Record>, InterceptError> {
        let key = RecordKey {
            netns_cookie: space.unwrap_or(self.netns_cookie),
            source: Addr::from(client.ip()),
            source_port: BePort::new(client.port()),
            listener_port: BePort::new(listener.port()),
            reserved: 0,
        };
        let taken = if self.takes_in_one_call {
            self.take_at_once(&key)
        } else {
            self.take_in_two_calls(&key)
        };
        taken.map_err(map_error("take from", names::RECORDS))
    }

    fn take_at_once(&self, key: &RecordKey) -> Result<Option<Record>, MapError> {
        // SAFETY: `typed` has compared the map's sizes with those of the types. Aya would take two calls.
        let taken = unsafe { syscall::take_element(self.descriptor.as_fd(), key) };
        Ok(taken.map_err(|io_error| SyscallError {
            call: "bpf_map_lookup_and_delete_elem",
            io_error,
        })?)
    }

    /// Between the two the client may have reset this connection and opened another one from the same port. That one then
    /// has no record and is reset: rare, and better than to relay it to the destination of the other.
    fn take_in_two_calls(&mut self, key: &RecordKey) -> Result<Option<Record>, MapError> {
        let record = match self.map.get(key, 0) {
            Err(MapError::KeyNotFound) => return Ok(None),
            found => found?,
        };
        match self.map.remove(key) {
            // It was withdrawn with its socket meanwhile.
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
            removed => removed?,
        }
        Ok(Some(record))
    }

    /// Records that nobody has taken.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn pending(&self) -> Result<usize, InterceptError> {
        self.map
            .keys()
            .try_fold(0, |count, key| key.map(|_| count + 1))
            .map_err(map_error("list", names::RECORDS))
    }
}

impl OriginalDst for Records {
    fn take(
        &mut self,
        client: SocketAddr,
        listener: SocketAddr,
        space: Option<u64>,
    ) -> io::Result<Option<Record>> {
        Self::take(self, client, listener, space).map_err(io::Error::other)
    }
}

/// Marks sockets as the daemon's own before they connect, where they would not be known.
pub struct Exempter {
    marking: Arc<Marking>,
    ours: Mutex<SkStorage<MapData, u32>>,
    foreign: Mutex<SkStorage<MapData, u32>>,
    traces: Traces,
}

impl Exempter {
    pub(super) fn new(ebpf: &Ebpf, marking: Arc<Marking>) -> Result<Self, InterceptError> {
        let open = |name| {
            SkStorage::try_from(Map::SkStorage(duplicate(ebpf, name)?))
                .map(Mutex::new)
                .map_err(map_error("open", name))
        };
        Ok(Self {
            marking,
            ours: open(names::OURS)?,
            foreign: open(names::FOREIGN)?,
            traces: Traces::open(ebpf)?,
        })
    }
}

impl Exempt for Exempter {
    fn exempt(&self, socket: &socket2::Socket, to: SocketAddr) -> io::Result<()> {
        if !self.marking.is_needed(to.port()) {
            return Ok(());
        }
        insert(&self.ours, socket, ours::OWN)
    }

    fn exempt_foreign(
        &self,
        socket: &socket2::Socket,
        from: IpAddr,
        to: SocketAddr,
    ) -> io::Result<()> {
        insert(&self.foreign, socket, 1)?;
        self.traces.leave(from, to);
        self.exempt(socket, to)
    }
}

fn insert(
    map: &Mutex<SkStorage<MapData, u32>>,
    socket: &socket2::Socket,
    value: u32,
) -> io::Result<()> {
    // A handle belongs to one worker: the lock is never contended, it is there because aya writes through `&mut`. A panic cannot
    // leave the handle half-changed.
    map.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(socket, value, 0)
        .map_err(io::Error::other)
}

/// The relay's sign of life, which the hooks compare with the clock.
pub struct Heartbeat {
    map: Array<MapData, u64>,
    marking: Arc<Marking>,
}

impl Heartbeat {
    pub(super) fn new(ebpf: &Ebpf, marking: Arc<Marking>) -> Result<Self, InterceptError> {
        Ok(Self {
            map: Array::try_from(Map::Array(duplicate(ebpf, names::HEARTBEAT)?))
                .map_err(map_error("open", names::HEARTBEAT))?,
            marking,
        })
    }

    /// Says that the relay is alive now.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn beat(&mut self) -> Result<(), InterceptError> {
        let now = clock::nanoseconds();
        self.map
            .set(0, now, 0)
            .map_err(map_error("write", names::HEARTBEAT))?;
        self.marking.beaten(now);
        Ok(())
    }

    /// When it said so last, as the hooks see it; long ago if never.
    pub(super) fn last(&self) -> Result<Duration, InterceptError> {
        let last = self.map.get(&0, 0);
        let last = last.map_err(map_error("read", names::HEARTBEAT))?;
        Ok(Duration::from_nanos(last))
    }
}

/// The counters of the hooks.
pub struct Counters {
    map: PerCpuArray<MapData, u64>,
}

impl Counters {
    pub(super) fn new(ebpf: &Ebpf) -> Result<Self, InterceptError> {
        Ok(Self {
            map: PerCpuArray::try_from(Map::PerCpuArray(duplicate(ebpf, names::COUNTERS)?))
                .map_err(map_error("open", names::COUNTERS))?,
        })
    }

    /// Every counter with its name, summed over the CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(&self) -> Result<Vec<(&'static str, u64)>, InterceptError> {
        COUNTERS
            .iter()
            .map(|(counter, name)| {
                let values = self.map.get(&(*counter as u32), 0)?;
                Ok((*name, values.iter().sum()))
            })
            .collect::<Result<_, MapError>>()
            .map_err(map_error("read", names::COUNTERS))
    }
}

/// Where this relay listens, and the one whose place it takes.
pub(super) struct Relays {
    map: Array<MapData, Relay>,
}

impl Relays {
    pub(super) fn new(ebpf: &Ebpf) -> Result<Self, InterceptError> {
        Ok(Self {
            map: Array::try_from(Map::Array(duplicate(ebpf, names::RELAY)?))
                .map_err(map_error("open", names::RELAY))?,
        })
    }

    /// Writes one of them; `whose` is of [`relay`].
    pub(super) fn set(&mut self, whose: u32, relay: &Relay) -> Result<(), InterceptError> {
        self.map
            .set(whose, *relay, 0)
            .map_err(map_error("write", names::RELAY))
    }

    /// Ours, as the hooks see it.
    pub(super) fn own(&self) -> Result<Relay, InterceptError> {
        let own = self.map.get(&relay::OWN, 0);
        own.map_err(map_error("read", names::RELAY))
    }

    /// The process that has taken over.
    pub(super) fn successor(&self) -> Option<u32> {
        let own = self.own().ok()?;
        (own.successor != 0).then_some(own.successor)
    }
}

/// A second descriptor of a map.
pub(super) fn duplicate(ebpf: &Ebpf, name: &'static str) -> Result<MapData, InterceptError> {
    let map = ebpf.map(name).ok_or(InterceptError::Missing(name))?;
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LpmTrie(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::PerCpuHashMap(data)
    | Map::RingBuf(data)
    | Map::SkStorage(data)
    | Map::SockHash(data)
    | Map::SockMap(data)) = map
    else {
        return Err(InterceptError::Missing(name));
    };
    MapData::from_fd(descriptor(data, name)?).map_err(map_error("open", name))
}

/// A descriptor of a map that outlives the map's handle.
fn descriptor(data: &MapData, name: &'static str) -> Result<OwnedFd, InterceptError> {
    data.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| InterceptError::Handle { map: name, source })
}

pub(super) fn typed<K: Pod, V: Pod>(
    data: MapData,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, InterceptError> {
    HashMap::try_from(Map::HashMap(data)).map_err(map_error("open", name))
}

pub(super) fn map_error(
    operation: &'static str,
    map: &'static str,
) -> impl FnOnce(MapError) -> InterceptError {
    move |source| InterceptError::Map {
        operation,
        map,
        source: Box::new(source),
    }
}
