//! The numbers for Prometheus, and answers to probes, over TCP, and nothing else of the admin socket: there nobody can be told from
//! anybody.

use std::{io, net::SocketAddr, sync::Arc};

use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    task::AbortHandle,
    time::sleep,
};

use super::{Asked, MOST_CONNECTIONS, PAUSE, Question, next_of, serve};
use crate::socket;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Why there are none.
#[derive(Debug, Error)]
#[error("cannot listen on {address}; see `{}` in [daemon]", served.key())]
pub struct ScrapesError {
    served: Served,
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// What is told to anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The numbers.
    Metrics,
    /// Whether it works.
    Health,
}

impl Served {
    /// The key of the configuration that has the address.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Health => "health",
        }
    }

    fn may(self) -> fn(Question) -> bool {
        match self {
            Self::Metrics => |question| question == Question::Metrics,
            Self::Health => {
                |question| matches!(question, Question::ReadyProbe | Question::HealthProbe)
            }
        }
    }
}

/// A listener for scrapes. It is closed when dropped.
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
    pub fn bind(address: SocketAddr, served: Served) -> Result<Self, ScrapesError> {
        let failed = |source| ScrapesError {
            served,
            address,
            source,
        };
        let listener = socket::listener(address, BACKLOG).map_err(failed)?;
        // An answer is not to be reset behind its last byte.
        socket::end_orderly(&listener);
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let (ask, questions) = mpsc::channel(MOST_CONNECTIONS);
        let accepting = tokio::spawn(accept_all(listener, served, ask)).abort_handle();
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

async fn accept_all(listener: TcpListener, served: Served, ask: mpsc::Sender<Asked>) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, served.may(), ask.clone(), permit));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a scrape");
                sleep(PAUSE).await;
            }
        }
    }
}
