//! What the hooks know of listeners in other network namespaces.

use std::sync::Arc;

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use proxy_common::{Space, names};
use tokio::sync::Notify;

use super::{
    Events, InterceptError,
    handles::{duplicate, map_error, typed},
};

/// The listeners in other network namespaces, by the cookies of those.
pub struct Spaces {
    map: HashMap<MapData, u64, Space>,
}

impl Spaces {
    pub(super) fn new(ebpf: &Ebpf, wanted: Arc<Notify>) -> Result<(Self, Events), InterceptError> {
        let map = typed(duplicate(ebpf, names::SPACES)?, names::SPACES)?;
        // Whichever process it was: all of them are looked at.
        let wake = move |_| wanted.notify_one();
        let events = Events::new(ebpf, names::SPACE_EVENTS, Box::new(wake))?;
        Ok((Self { map }, events))
    }

    /// Has connections from a namespace sent to listeners there.
    ///
    /// # Errors
    /// When there are too many namespaces.
    pub fn insert(&mut self, cookie: u64, space: Space) -> Result<(), InterceptError> {
        self.map
            .insert(cookie, space, 0)
            .map_err(map_error("insert into", names::SPACES))
    }

    /// Has the fail mode applied to connections from a namespace.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn remove(&mut self, cookie: u64) -> Result<(), InterceptError> {
        match self.map.remove(&cookie) {
            Err(MapError::KeyNotFound) | Ok(()) => Ok(()),
            Err(error) => Err(map_error("remove from", names::SPACES)(error)),
        }
    }
}
