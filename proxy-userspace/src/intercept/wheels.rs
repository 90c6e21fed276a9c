//! Endpoints of groups in the kernel's tables, where the hook on `connect()` draws one.
//!
//! A table is written whole beside the one in force and then switched to by one word, so that the hook sees one set of endpoints
//! or the other. The one before stays until there is a further one: a hook that had just found it may be using it.

use std::{
    collections::{HashMap as Map, HashSet},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError, PerCpuHashMap, PerCpuValues},
    util::nr_cpus,
};
use proxy_common::{Addr, BePort, Seat, SeatKey, Wheel, Wheels as Both, names};

use super::{
    Events, InterceptError,
    handles::{duplicate, map_error, typed},
};
use crate::{
    balance::alias,
    group::{Board, Candidate, Group, roster::Id},
};

/// The tables of all groups.
pub struct Wheels {
    maps: Mutex<Maps>,
    next_group: AtomicU32,
    next_endpoint: AtomicU32,
    /// Whom the kernel tells of by number.
    endpoints: Mutex<Map<u32, Known>>,
}

struct Maps {
    wheels: HashMap<MapData, u32, Both>,
    seats: HashMap<MapData, SeatKey, Seat>,
    made: PerCpuHashMap<MapData, u32, u64>,
}

/// An endpoint that connections may be on their way to.
struct Known {
    group: Weak<Group>,
    id: Id,
    /// Connections that were made when one last could not be.
    made: u64,
}

impl Wheels {
    pub(super) fn new(ebpf: &Ebpf) -> Result<(Arc<Self>, Events), InterceptError> {
        let made = aya::maps::Map::PerCpuHashMap(duplicate(ebpf, names::MADE)?);
        let maps = Maps {
            wheels: typed(duplicate(ebpf, names::WHEELS)?, names::WHEELS)?,
            seats: typed(duplicate(ebpf, names::SEATS)?, names::SEATS)?,
            made: PerCpuHashMap::try_from(made).map_err(map_error("open", names::MADE))?,
        };
        let wheels = Arc::new(Self {
            maps: Mutex::new(maps),
            next_group: AtomicU32::new(1),
            next_endpoint: AtomicU32::new(1),
            endpoints: Mutex::default(),
        });
        let told = Arc::clone(&wheels);
        let wake = move |event| told.unmade(event);
        let events = Events::new(ebpf, names::UNMADE_EVENTS, Box::new(wake))?;
        Ok((wheels, events))
    }

    /// A place for the endpoints of a group.
    pub fn wheel(self: &Arc<Self>, group: &Arc<Group>) -> Arc<dyn Board> {
        Arc::new(GroupWheel {
            wheels: Arc::clone(self),
            number: self.next_group.fetch_add(1, Relaxed),
            group: Arc::downgrade(group),
            written: Mutex::default(),
        })
    }

    /// The kernel tells of a connection that could not be made.
    fn unmade(&self, event: u64) {
        let [number, error] = halves(event);
        let made = self.made(number);
        let (group, id, others_made) = {
            let mut endpoints = lock(&self.endpoints);
            let Some(known) = endpoints.get_mut(&number) else {
                return;
            };
            let others_made = made != known.made;
            known.made = made;
            (known.group.upgrade(), known.id, others_made)
        };
        let error = match i32::try_from(error) {
            Ok(0) | Err(_) => io::ErrorKind::TimedOut.into(),
            Ok(error) => io::Error::from_raw_os_error(error),
        };
        if let Some(group) = group {
            group.unmade(id, &error, others_made);
        }
    }

    fn made(&self, endpoint: u32) -> u64 {
        let values = lock(&self.maps).made.get(&endpoint, 0);
        values.map_or(0, |values| values.iter().sum())
    }
}

/// The tables of one group. They go with it.
struct GroupWheel {
    wheels: Arc<Wheels>,
    number: u32,
    group: Weak<Group>,
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    /// The number of the newest table.
    table: u32,
    /// Those of the tables in force, and of the ones before.
    seats: [Vec<SeatKey>; 2],
    /// Numbers of endpoints.
    numbers: Map<Id, u32>,
}

impl Board for GroupWheel {
    fn number(&self) -> u32 {
        self.number
    }

    fn show(&self, candidates: &[Candidate]) -> bool {
        let mut written = lock(&self.written);
        match self.replace(&mut written, candidates) {
            Ok(()) => true,
            Err(error) => {
                self.clear(&mut written);
                let error: &dyn std::error::Error = &error;
                tracing::error!(
                    error,
                    "cannot show the kernel the endpoints of a group; its connections are relayed"
                );
                false
            }
        }
    }

    fn made(&self, id: Id) -> u64 {
        let number = lock(&self.written).numbers.get(&id).copied();
        number.map_or(0, |number| self.wheels.made(number))
    }
}

impl GroupWheel {
    fn replace(
        &self,
        written: &mut Written,
        candidates: &[Candidate],
    ) -> Result<(), InterceptError> {
        let [newest, before] = &mut written.seats;
        let oldest = std::mem::replace(before, std::mem::take(newest));
        for key in oldest {
            _ = lock(&self.wheels.maps).seats.remove(&key);
        }
        let of = |v4: bool| {
            let is = move |one: &&Candidate| {
                one.part > 0 && one.address.ip().to_canonical().is_ipv4() == v4
            };
            candidates.iter().filter(is).copied().collect::<Vec<_>>()
        };
        self.forget(written, candidates);
        let wheels = Both {
            v4: self.write(written, &of(true))?,
            v6: self.write(written, &of(false))?,
        };
        lock(&self.wheels.maps)
            .wheels
            .insert(self.number, wheels, 0)
            .map_err(map_error("write", names::WHEELS))
    }

    /// Takes everything out of the tables: better no endpoints than those that were, some of which may be dead.
    fn clear(&self, written: &mut Written) {
        let mut maps = lock(&self.wheels.maps);
        _ = maps.wheels.remove(&self.number);
        for key in written.seats.iter_mut().flat_map(std::mem::take) {
            _ = maps.seats.remove(&key);
        }
        drop(maps);
        self.forget(written, &[]);
    }

    /// Takes the numbers of endpoints that left the group.
    fn forget(&self, written: &mut Written, candidates: &[Candidate]) {
        let present: HashSet<Id> = candidates.iter().map(|one| one.id).collect();
        written.numbers.retain(|id, number| {
            let stays = present.contains(id);
            if !stays {
                _ = lock(&self.wheels.maps).made.remove(number);
                lock(&self.wheels.endpoints).remove(number);
            }
            stays
        });
    }

    /// Writes a table of its own for these.
    fn write(
        &self,
        written: &mut Written,
        candidates: &[Candidate],
    ) -> Result<Wheel, InterceptError> {
        written.table = written.table.wrapping_add(1);
        let parts: Vec<u64> = candidates.iter().map(|one| one.part).collect();
        let mut seats = 0;
        for ((index, one), share) in (0..).zip(candidates).zip(alias::seats(&parts)) {
            let seat = Seat {
                addr: Addr::from(one.address.ip()),
                port: BePort::new(one.address.port()),
                reserved: 0,
                endpoint: self.endpoint(written, one.id)?,
                keeps: share.keeps,
                other: share.other,
            };
            let key = SeatKey {
                group: self.number,
                table: written.table,
                index,
            };
            lock(&self.wheels.maps)
                .seats
                .insert(key, seat, 0)
                .map_err(map_error("insert into", names::SEATS))?;
            let [newest, _] = &mut written.seats;
            newest.push(key);
            seats = index + 1;
        }
        Ok(Wheel {
            table: written.table,
            seats,
        })
    }

    /// The number of an endpoint. It stays, so that what is counted does.
    fn endpoint(&self, written: &mut Written, id: Id) -> Result<u32, InterceptError> {
        if let Some(number) = written.numbers.get(&id) {
            return Ok(*number);
        }
        let number = self.wheels.next_endpoint.fetch_add(1, Relaxed);
        let none = nr_cpus()
            .map_err(|(_, error)| error)
            .and_then(|cpus| PerCpuValues::try_from(vec![0; cpus]))
            .map_err(|error| map_error("count in", names::MADE)(MapError::IoError(error)))?;
        lock(&self.wheels.maps)
            .made
            .insert(number, none, 0)
            .map_err(map_error("insert into", names::MADE))?;
        let known = Known {
            group: self.group.clone(),
            id,
            made: 0,
        };
        lock(&self.wheels.endpoints).insert(number, known);
        written.numbers.insert(id, number);
        Ok(number)
    }
}

impl Drop for GroupWheel {
    fn drop(&mut self) {
        self.clear(&mut lock(&self.written));
    }
}

/// The lower and the upper half of a word.
const fn halves(word: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "that is what halves are")]
    [word as u32, (word >> 32) as u32]
}

/// A panic cannot leave any of them half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
