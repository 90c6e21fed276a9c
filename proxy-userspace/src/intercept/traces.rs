//! Traces of what was relayed, as user space leaves them: of connections from the addresses of clients, before their SYN leaves, and
//! once more of those that are open or remembered, before a new period begins.

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

/// How long a period is. A trace counts for one or two of them unless its connection is open or remembered.
const LENGTH: Duration = Duration::from_mins(10);
/// How long it is at least, and how often it is looked whether there are too many traces: longer than a handshake takes.
const SHORTEST: Duration = Duration::from_mins(1);
/// So many traces that a good part of what is nothing to us leads to one. A flood of SYNs leaves them, one for each made-up client;
/// those of handshakes that never end need not stay for long.
const CROWD: usize = PLACES / 8;
/// More connections than these are forgotten when they have ended, rather than that their traces stay for good.
const MOST_REMEMBERED: usize = PLACES / 16;

/// A connection, as far as its trace goes: the address of its client, and the server.
pub type Trail = (IpAddr, SocketAddr);

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
        self.access().leave(place((from, to)));
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
    looked: Instant,
}

impl Fading {
    pub(super) fn new(ebpf: &Ebpf) -> Result<Self, InterceptError> {
        Ok(Self {
            traces: Traces::open(ebpf)?,
            remembered: typed(duplicate(ebpf, names::RELAYED)?, names::RELAYED)?,
            begun: Instant::now(),
            looked: Instant::now(),
        })
    }

    /// Begins a new period if this one has been long enough. `open` tells of connections that are.
    pub(super) fn follow<I: IntoIterator<Item = Trail>>(
        &mut self,
        open: impl FnOnce() -> I,
    ) -> Result<(), InterceptError> {
        if self.looked.elapsed() < SHORTEST {
            return Ok(());
        }
        self.looked = Instant::now();
        let access = self.traces.access();
        if !is_over(self.begun.elapsed(), access.count()) {
            return Ok(());
        }
        self.begun = self.looked;
        let mut places: HashSet<_> = open().into_iter().map(place).collect();
        let remembered = few(self.remembered.keys());
        let remembered = remembered.map_err(map_error("list", names::RELAYED))?;
        places.extend(remembered.iter().flat_map(Pair::places));
        access.begin_period(places);
        Ok(())
    }
}

/// Whether a period of this age, with so many traces, has been long enough.
fn is_over(age: Duration, traces: usize) -> bool {
    age >= LENGTH || (age >= SHORTEST && traces >= CROWD)
}

/// What is remembered, open or not, or nothing where that is much. When one is forgotten meanwhile the kernel may list all others again.
fn few<E>(keys: impl Iterator<Item = Result<OwnKey, E>>) -> Result<Vec<OwnKey>, E> {
    let keys: Vec<_> = keys.take(MOST_REMEMBERED + 1).collect::<Result<_, _>>()?;
    Ok(if keys.len() > MOST_REMEMBERED {
        Vec::new()
    } else {
        keys
    })
}

fn place((from, to): Trail) -> usize {
    Pair::of(from.into(), to.ip().into()).place(BePort::new(to.port()))
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

    /// How many there are.
    fn count(self) -> usize {
        let period = self.period();
        let traces = self.places.iter();
        traces
            .filter(|trace| period.counts(trace.load(Acquire)))
            .count()
    }

    /// Begins a new period. What has traces in these places does not lose them by that.
    fn begin_period(self, places: impl IntoIterator<Item = usize>) {
        for place in places {
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
        assert!(access.has(there) && access.has(gone));
        assert_eq!(access.count(), 2);
        let begin = || access.begin_period(Pair::places(&remembered));
        begin();
        assert!(access.has(gone), "whose handshake may go on");
        for _ in 0..600 {
            begin();
            assert!(access.has(there));
        }
        assert_eq!(access.count(), 1);
        access.begin_period([]);
        access.begin_period([]);
        assert!(!access.has(there), "whom nobody remembers any more");
    }

    #[test]
    fn what_has_faded_is_not_brought_back() {
        let mut memory = vec![0_u8; size_of::<Shared>()];
        let access = of(&mut memory);
        access.begin_period(Pair::places(&key(1)));
        assert!(
            !access.has(Pair::places(&key(1))[1]),
            "by another one's port"
        );
    }

    #[test]
    fn what_has_ended_does_not_keep_traces_for_good() {
        let all = |count: u32| {
            let keys = (0..count).map(|number| {
                let port = BePort::new(u16::try_from(number % 60_000).unwrap());
                Ok::<_, ()>(OwnKey {
                    source_port: port,
                    ..key(u8::try_from(number / 60_000).unwrap())
                })
            });
            few(keys).unwrap().len()
        };
        assert_eq!(all(8_192), 8_192);
        assert_eq!(all(8_193), 0);
        assert_eq!(all(65_536), 0);
    }

    #[test]
    fn a_flood_is_forgotten_soon() {
        let minutes = |count| Duration::from_mins(count);
        assert!(!is_over(minutes(9), 0) && is_over(minutes(10), 0));
        assert!(!is_over(minutes(9), CROWD - 1) && is_over(minutes(1), CROWD));
        assert!(!is_over(Duration::from_secs(59), PLACES));

        let mut memory = vec![0_u8; size_of::<Shared>()];
        let access = of(&mut memory);
        for place in 0..PLACES {
            access.leave(place);
        }
        let open = [(IpAddr::from([10, 0, 0, 1]), ([192, 0, 2, 1], 443).into())];
        for _ in 0..2 {
            assert!(is_over(minutes(1), access.count()));
            access.begin_period(open.map(place));
        }
        assert_eq!(access.count(), 1, "but for the one that is open");
    }
}
