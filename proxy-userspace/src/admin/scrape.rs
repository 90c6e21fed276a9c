//! What is offered over TCP: the numbers for Prometheus, the dashboard, or answers to probes, and nothing else of the admin socket: there nobody can
//! be told from anybody.

use std::{io, net::SocketAddr, sync::Arc};

use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    task::AbortHandle,
    time::sleep,
};

use super::{Asked, Door, MOST_CONNECTIONS, PAUSE, next_of, serve};
use crate::socket;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Why there are none.
#[derive(Debug, Error)]
#[error("cannot listen on {address}; see `{}` in [daemon]", offer.key())]
pub struct ScrapesError {
    offer: Offer,
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// What is offered at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The numbers for Prometheus.
    Metrics,
    /// The page for browsers, and what it asks.
    Dashboard,
    /// Whether it works, for probes.
    Health,
}

impl Offer {
    /// The key in `[daemon]` that has the address.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Dashboard => "dashboard",
            Self::Health => "health",
        }
    }
}

/// A listener for whoever only looks. It is closed when dropped.
#[derive(Debug)]
pub struct Scrapes {
    questions: mpsc::Receiver<Asked>,
    accepting: AbortHandle,
}

impl Scrapes {
    /// Listens, in the runtime that serves it.
    ///
    /// # Errors
    /// When the address is taken or foreign.
    pub fn bind(address: SocketAddr, offer: Offer) -> Result<Self, ScrapesError> {
        let failed = |source| ScrapesError {
            offer,
            address,
            source,
        };
        let listener = socket::listener(address, BACKLOG).map_err(failed)?;
        // An answer is not to be reset behind its last byte.
        socket::end_orderly(&listener);
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let (ask, questions) = mpsc::channel(MOST_CONNECTIONS);
        let accepting = tokio::spawn(accept_all(listener, offer, ask)).abort_handle();
        Ok(Self {
            questions,
            accepting,
        })
    }

    /// The next question. May be dropped and called again.
    pub async fn next(&mut self) -> Asked {
        next_of(&mut self.questions).await
    }
}

impl Drop for Scrapes {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept_all(listener: TcpListener, offer: Offer, ask: mpsc::Sender<Asked>) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, Door::Web(offer), ask.clone(), permit));
            }
            Err(error) => {
                tracing::warn!(%error, what = offer.key(), "cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}
