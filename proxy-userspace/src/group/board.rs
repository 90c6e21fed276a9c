//! Groups whose endpoints are chosen by the hook on `connect()`: it is shown who takes connections, and at which part.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError},
};

use super::{Group, roster::Id, settings::Address};

/// Where the hook finds the endpoints of one group.
pub trait Board: Send + Sync {
    /// By what the hook knows the group; not 0.
    fn number(&self) -> u32;

    /// Puts other endpoints in the place of those that are there, all at once, and says whether that could be done. Otherwise the
    /// hook finds none, and connections are relayed.
    fn show(&self, candidates: &[Candidate]) -> bool;

    /// Connections to an endpoint that the hook chose and that were made.
    fn made(&self, id: Id) -> u64;
}

/// An endpoint at a TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What tells it from others.
    pub id: Id,
    /// Where it is.
    pub address: SocketAddr,
    /// Its part of the connections; 0 while it takes none.
    pub part: u64,
}

impl Candidate {
    /// `None` for an endpoint that takes no connections of an app's own socket: what a link-local address means the
    /// app says together with its own destination.
    #[must_use]
    pub fn new(id: Id, address: &Address, part: u64) -> Option<Self> {
        match address {
            Address::Tcp(SocketAddr::V6(v6)) if v6.scope_id() != 0 => None,
            Address::Tcp(address) => Some(Self {
                id,
                address: *address,
                part,
            }),
            Address::Unix(_) | Address::Original => None,
        }
    }
}

impl Group {
    /// Shows the endpoints on the board that `make` makes for the group, from now on for as long as the group is there, and
    /// returns the number by which the hook knows it.
    pub fn show_on(self: &Arc<Self>, make: impl FnOnce(&Arc<Self>) -> Arc<dyn Board>) -> u32 {
        let number = self.board.get_or_init(|| make(self)).number();
        self.show();
        number
    }

    /// Shows what has changed, if anybody looks.
    pub(super) fn show(&self) {
        let Some(board) = self.board.get() else {
            return;
        };
        // Held from the look to the end, so that nobody shows what is older.
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let candidates = self.lock().candidates();
        if shown.as_ref() != Some(&candidates) {
            *shown = board.show(&candidates).then_some(candidates);
        }
    }

    /// The hook had sent a connection to an endpoint, and it could not be made; `others_made` says whether others could since
    /// the last such one.
    pub fn unmade(&self, id: Id, error: &io::Error, others_made: bool) {
        let error: Arc<str> = format!("cannot connect: {error}").into();
        self.update(|roster, now| roster.unmade(id, error, others_made, now));
    }

    /// Connections to an endpoint that the hook chose.
    pub(super) fn rewritten(&self, id: Id) -> u64 {
        self.board.get().map_or(0, |board| board.made(id))
    }
}
