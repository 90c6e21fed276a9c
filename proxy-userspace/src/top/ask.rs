//! What the screen asks the daemon and tells it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::from_slice;
use thiserror::Error;

use super::state::{Look, Order, Question};
use crate::{
    admin::{self, AskError},
    drain,
    status::connections::End,
};

/// Where the daemon is.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    place: Arc<PathBuf>,
}

/// Why there is nothing new to show.
#[derive(Debug, Error)]
pub(super) enum Trouble {
    /// The daemon does not understand which connections are wanted.
    #[error("{0}")]
    Filter(String),
    /// It cannot be asked.
    #[error("{0}")]
    Daemon(String),
}

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Self::Daemon(text)
    }
}

impl From<AskError> for Trouble {
    fn from(error: AskError) -> Self {
        Self::Daemon(error.to_string())
    }
}

impl From<serde_json::Error> for Trouble {
    fn from(error: serde_json::Error) -> Self {
        Self::Daemon(format!("the daemon is of another version: {error}"))
    }
}

impl Daemon {
    pub(super) fn at(place: &Path) -> Self {
        Self {
            place: Arc::new(place.to_owned()),
        }
    }

    /// Looks at it.
    pub(super) async fn look(&self, question: Question) -> Result<Look, Trouble> {
        let status = from_slice(&admin::ask(&self.place, admin::STATUS).await?)?;
        let list = admin::ask(&self.place, &question.connections).await;
        let list = match list {
            Err(AskError::Refused { status: 400, text }) => return Err(Trouble::Filter(text)),
            list => from_slice(&list?)?,
        };
        let inspected = match &question.inspected {
            None => None,
            Some(path) => Some(from_slice(&admin::ask(&self.place, path).await?)?),
        };
        Ok(Look {
            status,
            list,
            offset: question.offset,
            inspected,
        })
    }

    /// Has it do something, and says what it did.
    pub(super) async fn tell(&self, order: Order) -> Result<String, String> {
        let drain = |target| drain::Request {
            target,
            timeout_ms: None,
        };
        let (told, done) = match order {
            Order::End(id) => {
                let told = admin::tell(&self.place, admin::END, &End { id }).await;
                (told, format!("connection {id} was reset"))
            }
            Order::Drain(target) => {
                let done = format!("{target} gets no new connections");
                let told = admin::tell(&self.place, admin::DRAIN, &drain(target)).await;
                (told, done)
            }
            Order::Restore(target) => {
                let done = format!("{target} gets connections again");
                let told = admin::tell(&self.place, admin::RESTORE, &drain(target)).await;
                (told, done)
            }
        };
        told.map(|_| done).map_err(|error| error.to_string())
    }
}
