//! The daemon that serves the same cgroup, for the one that takes its place.
//!
//! For a while both are attached. Programs of one hook run in the order they were attached in, so the predecessor's decide first;
//! ours leave alone what they have sent to its listeners, which they are told. That neither intercepts what the other one opens
//! itself is because both mark and look up their own sockets in the same maps, found through the predecessor's programs; only until it is
//! told to end the predecessor is known to ours by its process, and does not mark. There it
//! marks what it sends to endpoints, too, once it has been told of us. Nothing
//! else is shared: each has its rules, its listeners and its records, and may be of another version.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::PathBuf,
};

use aya::{
    maps::{Array, Map, MapData, MapInfo, loaded_maps},
    programs::loaded_programs,
};
use nix::sys::signal::Signal;
use proxy_common::{OwnKey, Relay, names, relay};
use thiserror::Error;

use super::{
    survey::{self, HOOKS, Holder},
    syscall::{self, Shelf},
};

/// Why nothing can be taken over.
#[derive(Debug, Error)]
pub enum PredecessorError {
    /// Its programs are there, and it is not.
    #[error(
        "a culvert serves this cgroup, but its process cannot be seen from here, or is called otherwise: start this one in the same \
         process namespace"
    )]
    Unseen,
    /// It is of a version that did not know of this, or of one that does it otherwise.
    #[error(
        "process {pid} is a culvert that this version cannot take over from, since its map {map} is missing or another; end it \
         first (SIGTERM)"
    )]
    Map {
        /// The process.
        pid: u32,
        /// What is not there as it should be.
        map: &'static str,
    },
    /// The system does not allow it.
    #[error("cannot {operation} process {pid}, which is to be taken over from")]
    Process {
        /// What was tried.
        operation: &'static str,
        /// The process.
        pid: u32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// A culvert that runs.
pub struct Predecessor {
    pid: u32,
    /// Stands for the process, whoever has its number later.
    process: OwnedFd,
    /// One of each of [`HOOKS`].
    programs: Vec<u32>,
    listens: Relay,
    relays: Array<MapData, Relay>,
    shelf: Shelf,
    shared: Vec<&'static str>,
    own_room: Option<u32>,
}

impl Predecessor {
    /// Finds the culvert that serves a cgroup. Needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// When there is one that cannot be taken over from.
    pub fn find(cgroup: BorrowedFd<'_>) -> Result<Option<Self>, PredecessorError> {
        let Some(programs) = survey::programs_like_ours(cgroup) else {
            return Ok(None);
        };
        let program = programs.first().copied().unwrap_or_default();
        let pid = holder_of(program).ok_or(PredecessorError::Unseen)?;
        let failed = |operation| {
            move |source| PredecessorError::Process {
                operation,
                pid,
                source,
            }
        };
        let process = syscall::open_process(pid).map_err(failed("open"))?;
        if holder_of(program) != Some(pid) {
            return Err(failed("find")(io::ErrorKind::NotFound.into()));
        }
        let relays = map_of::<u32, Relay>(program, names::RELAY)
            .and_then(|data| Array::try_from(Map::Array(data)).ok());
        let relays: Array<_, Relay> = relays.ok_or(PredecessorError::Map {
            pid,
            map: names::RELAY,
        })?;
        let listens = relays
            .get(&relay::OWN, 0)
            .map_err(|error| failed("look into")(io::Error::other(error)))?;
        let mut found = Self {
            pid,
            process,
            programs,
            listens,
            relays,
            shelf: Shelf::new().map_err(failed("share the maps of"))?,
            shared: Vec::new(),
            own_room: None,
        };
        let ours = map_of::<i32, u32>(program, names::OURS);
        found.share(names::OURS, ours)?;
        // Without this hook nothing is told by its tuple.
        let taken = survey::arrivals_taken().into_iter();
        for (program, _) in taken.filter(|(_, holder)| holder.pid == pid).take(1) {
            let own = map_of::<OwnKey, u32>(program, names::OWN);
            let info = own.as_ref().and_then(|own| own.info().ok());
            found.own_room = info.map(|info| info.max_entries());
            found.share(names::OWN, own)?;
        }
        // Nothing of ours is attached yet.
        found.announce(true);
        Ok(Some(found))
    }

    fn share(&mut self, name: &'static str, map: Option<MapData>) -> Result<(), PredecessorError> {
        let pid = self.pid;
        let map = map.ok_or(PredecessorError::Map { pid, map: name })?;
        let pinned = syscall::pin(map.fd().as_fd(), &self.shelf.path().join(name));
        pinned.map_err(|source| PredecessorError::Process {
            operation: "share the maps of",
            pid,
            source,
        })?;
        self.shared.push(name);
        Ok(())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where it listens.
    #[must_use]
    pub(super) fn listens(&self) -> Relay {
        self.listens
    }

    /// How many connections the table has room for that is shared, if one is.
    #[must_use]
    pub fn own_room(&self) -> Option<u32> {
        self.own_room
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns_cookie(&self) -> u64 {
        self.listens.netns_cookie
    }

    /// The maps that it shares, by name and pin.
    pub(super) fn shared(&self) -> Vec<(&'static str, PathBuf)> {
        let place = self.shelf.path();
        let shared = self.shared.iter();
        shared.map(|name| (*name, place.join(name))).collect()
    }

    /// Tells its hooks whether others run behind them, which have to know what they send to endpoints.
    fn announce(&mut self, is_there: bool) {
        let relay = Relay {
            netns_cookie: if is_there { self.netns_cookie() } else { 0 },
            ..Relay::default()
        };
        if let Err(error) = self.relays.set(relay::SUCCESSOR, relay, 0) {
            tracing::debug!(%error, "the culvert that is taken over from has no place for a successor");
        }
    }

    /// Tells it who takes its place, and that it has to end.
    ///
    /// # Errors
    /// When the system does not allow it. That it has ended meanwhile is none.
    pub fn relieve(&mut self) -> Result<(), PredecessorError> {
        let pid = self.pid;
        let failed = |source| PredecessorError::Process {
            operation: "end",
            pid,
            source,
        };
        let told = Relay {
            successor: std::process::id(),
            ..self.listens
        };
        let mut tell = |relay| {
            let told = self.relays.set(relay::OWN, relay, 0);
            told.map_err(|error| failed(io::Error::other(error)))
        };
        tell(told)?;
        match syscall::signal_process(self.process.as_fd(), Signal::SIGTERM) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            Err(error) => {
                tell(self.listens)?;
                Err(failed(error))
            }
            Ok(()) => Ok(()),
        }
    }

    /// Whether it takes no more connections of the cgroup. Those that arrive it gives up before.
    #[must_use]
    pub fn has_detached(&self, cgroup: BorrowedFd<'_>) -> bool {
        HOOKS.iter().zip(&self.programs).all(|(hook, program)| {
            !hook.decides()
                || survey::attached(cgroup, *hook).is_ok_and(|ids| !ids.contains(program))
        })
    }
}

/// It has ended, or stays.
impl Drop for Predecessor {
    fn drop(&mut self) {
        self.announce(false);
    }
}

/// As [`AsFd`], which tokio wants, too.
impl AsRawFd for Predecessor {
    fn as_raw_fd(&self) -> RawFd {
        self.process.as_raw_fd()
    }
}

/// Readable once it has ended.
impl AsFd for Predecessor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

/// The culvert that holds a program.
fn holder_of(program: u32) -> Option<u32> {
    let holders = survey::holders().remove(&program)?;
    let other = |holder: &Holder| holder.is_culvert() && holder.pid != std::process::id();
    holders.into_iter().find(other).map(|holder| holder.pid)
}

/// The map of a name that a program uses, if it has keys and values of these types.
fn map_of<K, V>(program: u32, name: &'static str) -> Option<MapData> {
    let program = loaded_programs()
        .filter_map(Result::ok)
        .find(|loaded| loaded.id() == program)?;
    let used = program.map_ids().ok()??;
    let is_it = |map: &MapInfo| {
        used.contains(&map.id())
            && map.name_as_str() == Some(name)
            && map.key_size() as usize == size_of::<K>()
            && map.value_size() as usize == size_of::<V>()
    };
    let map = loaded_maps().filter_map(Result::ok).find(is_it)?;
    MapData::from_id(map.id()).ok()
}
