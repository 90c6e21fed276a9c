//! Replies past the relay: their programs, and the entry that each connection has.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, SockHash},
    programs::{ProgramFd, RawTracePoint, SkSkb},
};
use proxy_common::{Delivery as Bits, LaneKey, Replies as State, names};

use super::{
    bells::{Bells, Ringer},
    sockets,
};
use crate::{
    intercept::{
        Events, InterceptError, attach_error, handles::duplicate, handles::typed, load_error,
        syscall,
    },
    relay::{
        replies::{Delivery, Replies},
        rest::Bell,
    },
    socket,
};

/// What there is once for all connections, in clones.
#[derive(Clone, Default)]
pub(in crate::intercept) struct Office {
    /// The program that tells where replies are, once it is loaded.
    pub(super) teller: Arc<OnceLock<ProgramFd>>,
    bells: Arc<Bells>,
}

impl Office {
    /// Rings for relays that rest, as long as it is there. Until then, and without it, they do not.
    pub(in crate::intercept) fn events(&self, ebpf: &Ebpf) -> Result<Events, InterceptError> {
        let ringer = Ringer::new(Arc::clone(&self.bells));
        let wake = move |upstream| ringer.ring(upstream);
        Events::new(ebpf, names::REPLY_EVENTS, Box::new(wake))
    }
}

/// Loads both programs, and attaches the one to the map of upstream sockets.
pub(super) fn enable(ebpf: &mut Ebpf, office: &Office) -> Result<(), InterceptError> {
    let answers = sockets(ebpf, names::ANSWERS)?;
    let program: &mut SkSkb = ebpf
        .program_mut(names::REPLY)
        .and_then(|program| program.try_into().ok())
        .ok_or(InterceptError::Missing(names::REPLY))?;
    // Loaded if this is done again.
    if program.fd().is_err() {
        program.load().map_err(load_error(names::REPLY))?;
        program
            .attach(answers.fd())
            .map_err(attach_error(names::REPLY))?;
    }
    let program: &mut RawTracePoint = ebpf
        .program_mut(names::DELIVERED)
        .and_then(|program| program.try_into().ok())
        .ok_or(InterceptError::Missing(names::DELIVERED))?;
    if program.fd().is_err() {
        program.load().map_err(load_error(names::DELIVERED))?;
    }
    let fd = program.fd().map_err(load_error(names::DELIVERED))?;
    let fd = fd.try_clone().map_err(|source| InterceptError::Handle {
        map: names::DELIVERED,
        source,
    })?;
    // Only the first one counts, and it is the same program.
    _ = office.teller.set(fd);
    Ok(())
}

/// What the entries of one worker's connections are made with.
pub(super) struct Maps {
    answers: Mutex<SockHash<MapData, LaneKey>>,
    replies: Mutex<HashMap<MapData, u64, State>>,
    office: Office,
}

impl Maps {
    pub(super) fn new(ebpf: &Ebpf, office: &Office) -> Result<Self, InterceptError> {
        Ok(Self {
            answers: Mutex::new(sockets(ebpf, names::ANSWERS)?),
            replies: Mutex::new(typed(duplicate(ebpf, names::REPLIES)?, names::REPLIES)?),
            office: office.clone(),
        })
    }

    /// Makes the entry, puts the upstream socket under the program, and has it see what waits.
    pub(super) fn open<S: AsFd + AsRawFd>(
        self: &Arc<Self>,
        app: LaneKey,
        upstream: &S,
    ) -> io::Result<Entry> {
        let upstream_cookie = socket::cookie(upstream)?;
        let state = State {
            app,
            ..State::default()
        };
        lock(&self.replies)
            .insert(upstream_cookie, state, 0)
            .map_err(io::Error::other)?;
        // From here on dropping it takes the entry out.
        let entry = Entry {
            maps: Arc::clone(self),
            upstream: upstream_cookie,
            bell: self.office.bells.hang(upstream_cookie),
        };
        lock(&self.answers)
            .insert(app, upstream.as_raw_fd(), 0)
            .map_err(io::Error::other)?;
        socket::handle_waiting(upstream)?;
        Ok(entry)
    }
}

/// The replies of one connection.
pub(super) struct Entry {
    maps: Arc<Maps>,
    /// Cookie of the upstream socket.
    upstream: u64,
    bell: Arc<Bell>,
}

impl Replies for Entry {
    fn state(&self) -> io::Result<State> {
        lock(&self.maps.replies)
            .get(&self.upstream, 0)
            .map_err(io::Error::other)
    }

    fn bell(&self) -> Option<&Bell> {
        self.maps.office.bells.are_rung().then_some(&*self.bell)
    }

    fn delivery(&self) -> io::Result<Delivery> {
        let teller = self
            .maps
            .office
            .teller
            .get()
            .ok_or(io::ErrorKind::Unsupported)?;
        let bits = syscall::run_program(teller.as_fd(), &[self.upstream])?;
        Ok(match bits {
            bits if bits & Bits::FAULTY != 0 => Delivery::Faulty,
            bits if bits & Bits::READ != 0 => Delivery::Read,
            bits if bits & Bits::ARRIVED != 0 => Delivery::Arrived,
            _ => Delivery::Travels,
        })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.maps.office.bells.take_down(self.upstream);
        // The upstream socket leaves its map by itself when it is closed.
        _ = lock(&self.maps.replies).remove(&self.upstream);
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

/// As of the other maps of the shortcut: never contended, and a panic leaves nothing half-changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
