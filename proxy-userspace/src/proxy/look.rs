//! What is asked about single connections.

use std::{
    borrow::Cow,
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError},
};

use thiserror::Error;

use super::{Proxy, ProxyError, hits::HitCount};
use crate::{
    close::CloseReason,
    live::Query,
    record::Role,
    relay::Path,
    rule::Reverse,
    status::connections::{End, List},
};

/// There is no such connection.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("there is no connection {0}; it may have ended")]
pub(crate) struct NoConnection(u64);

/// Bytes of all connections since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    pub(super) by_path: [u64; Path::ALL.len()],
    pub(super) up: u64,
    pub(super) down: u64,
}

impl Moved {
    fn each(&mut self) -> impl Iterator<Item = &mut u64> {
        self.by_path
            .iter_mut()
            .chain([&mut self.up, &mut self.down])
    }
}

/// Open connections of each rule, and by way of each upstream.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pub(crate) rules: HashMap<(Role, Arc<str>), u64>,
    pub(crate) upstreams: HashMap<Arc<str>, u64>,
}

impl Proxy {
    /// The rules for what arrives as they are in force.
    pub(crate) fn arrival_rules<'a>(&self, rules: &'a [Reverse]) -> Cow<'a, [Reverse]> {
        self.drains.rules(rules)
    }

    /// Where the relay listens.
    pub(crate) fn listeners(&self) -> Vec<SocketAddr> {
        let listeners = self.listeners.iter();
        let mut addresses: Vec<_> = listeners.filter_map(|it| it.local_addr().ok()).collect();
        // Those of the workers share their ports.
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The process that a rule names, and that a process descends from.
    pub(crate) fn root_of(&self, pid: u32) -> Option<u32> {
        self.interceptor.root_of(pid)
    }

    /// Connections that are open.
    pub(crate) fn connections(&self, query: &Query) -> List {
        self.shared.live.look(query)
    }

    /// Has one reset.
    pub(crate) fn end(&self, which: End) -> Result<End, NoConnection> {
        let open = self.shared.live.get(which.id);
        let open = open.ok_or(NoConnection(which.id))?;
        open.end(CloseReason::Ended);
        Ok(which)
    }

    /// What all rules have selected.
    pub(crate) fn hits(&self) -> Result<HashMap<(Role, Arc<str>), HitCount>, ProxyError> {
        self.hits.read()
    }

    /// How many connections are open, of what.
    pub(crate) fn census(&self) -> Census {
        let mut census = Census::default();
        for open in self.shared.live.find(|_| true) {
            let rule = (open.begun.role, Arc::clone(&open.begun.rule));
            *census.rules.entry(rule).or_default() += 1;
            if let Some(reached) = open.reached.get() {
                let upstream = Arc::clone(&reached.upstream);
                *census.upstreams.entry(upstream).or_default() += 1;
            }
        }
        census
    }

    /// What was moved, also by connections that are open. A connection that ends meanwhile may be counted twice or not at all
    /// for the moment; what was told once is never taken back.
    pub(super) fn moved(&self) -> Moved {
        let [up, down] = self.shared.stats.directions();
        let mut moved = Moved {
            up,
            down,
            ..Moved::default()
        };
        for (sum, (_, bytes)) in moved.by_path.iter_mut().zip(self.shared.stats.bytes()) {
            *sum = bytes;
        }
        for open in self.shared.live.find(|_| true) {
            open.progress.look();
            for (sum, path) in moved.by_path.iter_mut().zip(Path::ALL) {
                *sum = sum.wrapping_add(open.progress.by(path));
            }
            moved.up = moved.up.wrapping_add(open.progress.up());
            moved.down = moved.down.wrapping_add(open.progress.down());
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for (told, now) in told.each().zip(moved.each()) {
            *told = (*now).max(*told);
        }
        *told
    }
}
