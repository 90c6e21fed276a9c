//! The kernel side of the shortcut: its program, its maps, and whether this kernel can be trusted with it.

mod bells;
mod proof;
mod replies;

use std::{
    io,
    os::fd::AsRawFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, SockHash},
    programs::SkMsg,
};
use proxy_common::{Lane, LaneKey, Sent, names};
use tokio::net::TcpStream;

pub(super) use self::replies::Office;
use super::{
    Features, InterceptError, attach_error, handles::duplicate, handles::map_error, handles::typed,
    load_error,
};
use crate::relay::{
    replies::Replies,
    shortcut::{Proofs, Shortcuts},
};

/// Attaches the program to the map of apps' sockets and finds out what it is worth on this kernel. May be called again.
///
/// The program belongs to the map as long as this process holds either.
pub(super) fn enable(
    ebpf: &mut Ebpf,
    features: &Features,
    office: &Office,
) -> Result<Proofs, InterceptError> {
    let apps = sockets(ebpf, names::APPS)?;
    let map = apps
        .fd()
        .try_clone()
        .map_err(|source| InterceptError::Handle {
            map: names::APPS,
            source,
        })?;
    let program: &mut SkMsg = ebpf
        .program_mut(names::SHORTCUT)
        .and_then(|program| program.try_into().ok())
        .ok_or(InterceptError::Missing(names::SHORTCUT))?;
    // Loaded if this is done again.
    if program.fd().is_err() {
        program.load().map_err(load_error(names::SHORTCUT))?;
        program
            .attach(&map)
            .map_err(attach_error(names::SHORTCUT))?;
    }
    match &features.queues {
        Ok(_) => {
            if let Err(error) = replies::enable(ebpf, office) {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "replies are copied");
            }
        }
        Err(missing) => tracing::debug!(missing, "replies are copied"),
    }
    proof::prove(ebpf, apps, office)
}

/// The lanes of the connections of one worker.
pub struct Lanes {
    maps: Mutex<Maps>,
    replies: Arc<replies::Maps>,
}

struct Maps {
    apps: SockHash<MapData, LaneKey>,
    upstreams: SockHash<MapData, LaneKey>,
    lanes: HashMap<MapData, LaneKey, Lane>,
    sent: HashMap<MapData, LaneKey, Sent>,
}

impl Lanes {
    pub(super) fn new(ebpf: &Ebpf, office: &Office) -> Result<Self, InterceptError> {
        Ok(Self {
            maps: Mutex::new(Maps {
                apps: sockets(ebpf, names::APPS)?,
                upstreams: sockets(ebpf, names::UPSTREAMS)?,
                lanes: typed(duplicate(ebpf, names::LANES)?, names::LANES)?,
                sent: typed(duplicate(ebpf, names::SENT)?, names::SENT)?,
            }),
            replies: Arc::new(replies::Maps::new(ebpf, office)?),
        })
    }

    /// A handle belongs to one worker: the lock is never contended, it is there because aya writes through `&mut`. A panic
    /// cannot leave the handles half-changed.
    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, app: LaneKey, upstream: &impl AsRawFd, relayed: u32) -> Result<(), MapError> {
        let mut maps = self.maps();
        maps.sent.insert(app, Sent::default(), 0)?;
        let opened = maps
            .upstreams
            .insert(app, upstream.as_raw_fd(), 0)
            // Last: the lane counts as open once it is in this map.
            .and_then(|()| maps.lanes.insert(app, Lane { relayed, rests: 0 }, 0));
        if opened.is_err() {
            _ = maps.upstreams.remove(&app);
            _ = maps.sent.remove(&app);
        }
        opened
    }
}

impl Shortcuts for Lanes {
    fn open(&self, app: LaneKey, upstream: &TcpStream, relayed: u32) -> io::Result<()> {
        self.open(app, upstream, relayed).map_err(io::Error::other)
    }

    fn advance(&self, app: LaneKey, lane: Lane) -> io::Result<()> {
        self.maps()
            .lanes
            .insert(app, lane, 0)
            .map_err(io::Error::other)
    }

    fn sent(&self, app: LaneKey) -> io::Result<Sent> {
        self.maps().sent.get(&app, 0).map_err(io::Error::other)
    }

    fn close(&self, app: LaneKey, keeps_app: bool) -> io::Result<Sent> {
        let mut maps = self.maps();
        // The upstream socket leaves its map by itself when it is closed, and until then it costs nothing: to take it
        // out would fail a send that is on its way.
        maps.lanes.remove(&app).map_err(io::Error::other)?;
        if !keeps_app {
            // Not found: the app has closed its socket.
            _ = maps.apps.remove(&app);
        }
        let sent = maps.sent.get(&app, 0).map_err(io::Error::other)?;
        maps.sent.remove(&app).map_err(io::Error::other)?;
        Ok(sent)
    }

    fn open_replies(&self, app: LaneKey, upstream: &TcpStream) -> io::Result<Arc<dyn Replies>> {
        Ok(Arc::new(self.replies.open(app, upstream)?))
    }
}

/// A handle to a map of sockets.
pub(super) fn sockets(
    ebpf: &Ebpf,
    name: &'static str,
) -> Result<SockHash<MapData, LaneKey>, InterceptError> {
    SockHash::try_from(Map::SockHash(duplicate(ebpf, name)?)).map_err(map_error("open", name))
}
