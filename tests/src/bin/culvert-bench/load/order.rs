//! What the client is told to do, and what it answers: one line of JSON each.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What the client answers.
pub(crate) type Reply = Result<Done, String>;

/// One thing to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Messages that are answered, on connections that are there already.
    Exchange {
        address: SocketAddr,
        length: u32,
        connections: u32,
        milliseconds: u64,
    },
    /// So many bytes each way on each connection.
    Transfer {
        address: SocketAddr,
        up: u64,
        down: u64,
        connections: u32,
    },
    /// Connections that are made, exchange a byte, and are closed.
    Connect {
        address: SocketAddr,
        at_once: u32,
        milliseconds: u64,
    },
    /// Connections that are made, exchange a byte, and are kept.
    Hold { address: SocketAddr, count: u32 },
    /// Bytes for a server that receives none, until nothing is taken for so long. The connection is kept.
    Offer {
        address: SocketAddr,
        bytes: u64,
        patience_milliseconds: u64,
    },
    /// Closes what is kept.
    Release,
}

/// What became of an order.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Done {
    /// Exchanges or connections.
    Paced {
        /// How many a second.
        rate: f64,
        /// How many were counted.
        count: u64,
        /// Quantiles of the time that one took, in microseconds.
        p50: f64,
        p99: f64,
        p999: f64,
    },
    /// Bytes, both directions together.
    Moved {
        /// How many.
        bytes: u64,
        /// In how long.
        seconds: f64,
    },
    /// How many bytes were taken.
    Taken(u64),
    /// Nothing to tell.
    Nothing,
}
