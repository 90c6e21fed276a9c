//! Traces of what was relayed, as user space leaves them: of connections from the addresses of clients, before their SYN leaves, and
//! once more of what is remembered, before a new period begins.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    ptr::NonNull,
    sync::atomic::{
        AtomicU8,
        Ordering::{Acquire, Release},
    },
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use proxy_common::{BePort, OwnKey, PLACES, Pair, Period, Traces as Shared, names};

use super::{
    InterceptError,
    handles::{duplicate, map_error, typed},
    memory::Memory,
};

/// How long a period is at least. A trace counts for one or two of them unless its connection is remembered.
const LENGTH: Duration = Duration::from_mins(10);
/// While more connections are remembered no period begins: the memory may have forgotten some that are open.
const MOST_REMEMBERED: usize = 32_768;

/// The traces in our memory.
pub(super) struct Traces(Memory<Shared>);

impl Traces {
    pub(super) fn open(ebpf: &Ebpf) -> Result<Self, InterceptError> {
        let data = duplicate(ebpf, names::TRACES)?;
        let memory = Memory::map(&data, 1).map_err(|source| InterceptError::Handle {
            map: names::TRACES,
            source,
        })?;
        Ok(Self(memory))
    }

    /// Leaves one of a connection from the address of a client to a server.
    pub(super) fn leave(&self, from: IpAddr, to: SocketAddr) {
        let pair = Pair::of(from.into(), to.ip().into());
        self.access().leave(pair.place(BePort::new(to.port())));
    }

    const fn access(&self) -> Access<'_> {
        // SAFETY: the mapping stays as long as this does, and the kernel's programs access single bytes.
        unsafe { Access::to(self.0.start()) }
    }
}

/// Has traces fade.
pub(super) struct Fading {
    traces: Traces,
    remembered: HashMap<MapData, OwnKey, u32>,
    begun: Instant,
}

impl Fading {
    pub(super) fn new(ebpf: &Ebpf) -> Result<Self, InterceptError> {
        Ok(Self {
            traces: Traces::open(ebpf)?,
            remembered: typed(duplicate(ebpf, names::RELAYED)?, names::RELAYED)?,
            begun: Instant::now(),
        })
    }

    /// Begins a new period if this one has been long enough.
    pub(super) fn follow(&mut self) -> Result<(), InterceptError> {
        if self.begun.elapsed() < LENGTH {
            return Ok(());
        }
        self.begun = Instant::now();
        let mut keys = HashSet::new();
        // When one is forgotten meanwhile the kernel may list all others again.
        for (listed, key) in self.remembered.keys().enumerate() {
            if listed > MOST_REMEMBERED {
                return Ok(());
            }
            keys.insert(key.map_err(map_error("list", names::RELAYED))?);
        }
        self.traces.access().begin_period(&keys);
        Ok(())
    }
}

/// Traces that the kernel has, too.
#[derive(Clone, Copy)]
struct Access<'a> {
    period: &'a AtomicU8,
    places: &'a [AtomicU8; PLACES],
}

impl Access<'_> {
    /// # Safety
    /// They must stay where they are, and whoever else has them must access single bytes.
    const unsafe fn to(traces: NonNull<Shared>) -> Self {
        let traces = traces.as_ptr();
        // SAFETY: the caller's word; an atomic is laid out as its integer is.
        unsafe {
            Self {
                period: AtomicU8::from_ptr((&raw mut (*traces).period).cast()),
                places: &*(&raw const (*traces).places).cast(),
            }
        }
    }

    fn period(self) -> Period {
        Period(self.period.load(Acquire))
    }

    fn leave(self, place: usize) {
        if let Some(trace) = self.places.get(place) {
            trace.store(self.period().number(), Release);
        }
    }

    /// Begins a new period. Traces of these connections do not fade by that.
    fn begin_period(self, keys: &HashSet<OwnKey>) {
        for place in keys.iter().flat_map(Pair::places) {
            if self.has(place) {
                self.leave(place);
            }
        }
        self.period.store(self.period().next().0, Release);
    }

    fn has(self, place: usize) -> bool {
        let trace = self.places.get(place);
        trace.is_some_and(|trace| self.period().counts(trace.load(Acquire)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client: u8) -> OwnKey {
        OwnKey {
            source: IpAddr::from([10, 0, 0, client]).into(),
            dest: IpAddr::from([192, 0, 2, 1]).into(),
            source_port: BePort::new(40_000),
            dest_port: BePort::new(443),
        }
    }

    /// As the kernel makes them.
    fn of(memory: &mut [u8]) -> Access<'_> {
        assert_eq!(memory.len(), size_of::<Shared>());
        let traces = NonNull::from(memory).cast();
        // SAFETY: they consist of bytes, and nobody else has them.
        unsafe { Access::to(traces) }
    }

    #[test]
    fn traces_fade_unless_their_connections_are_remembered() {
        let mut memory = vec![0_u8; size_of::<Shared>()];
        let access = of(&mut memory);
        let [remembered, forgotten] = [1, 2].map(key);
        let [there, gone] = [remembered, forgotten].map(|key| Pair::places(&key)[1]);
        assert!(!access.has(there));
        access.leave(there);
        access.leave(gone);
        let keys = HashSet::from([remembered]);
        assert!(access.has(there) && access.has(gone));
        access.begin_period(&keys);
        assert!(access.has(gone), "whose handshake may go on");
        for _ in 0..600 {
            access.begin_period(&keys);
            assert!(access.has(there));
        }
        access.begin_period(&HashSet::new());
        assert!(!access.has(there), "whom nobody remembers any more");
    }

    #[test]
    fn what_has_faded_is_not_brought_back() {
        let mut memory = vec![0_u8; size_of::<Shared>()];
        let access = of(&mut memory);
        access.begin_period(&HashSet::from([key(1)]));
        assert!(
            !access.has(Pair::places(&key(1))[1]),
            "by another one's port"
        );
    }
}
