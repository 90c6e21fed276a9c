//! What is done, and how much of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::metric::Metric;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Messages of so many bytes, each answered by as many, on each connection.
    Exchange { length: u32, connections: u32 },
    /// Many bytes.
    Bulk {
        direction: Direction,
        connections: u32,
    },
    /// New connections, so many at a time, each of which exchanges one byte.
    Connect { at_once: u32 },
    /// Connections on which nothing happens.
    Idle,
    /// Bytes for a server that receives none.
    SlowReader,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the server.
    Up,
    /// To the client.
    Down,
    /// Both ways at the same time.
    Both,
}

const LENGTHS: [u32; 4] = [1, 64, 1024, 16 * 1024];
const DIRECTIONS: [Direction; 3] = [Direction::Up, Direction::Down, Direction::Both];

/// All of it, in the order of the report.
pub(crate) fn all() -> Vec<Work> {
    let exchange = |connections| {
        LENGTHS.map(|length| Work::Exchange {
            length,
            connections,
        })
    };
    let bulk = |connections| {
        DIRECTIONS.map(|direction| Work::Bulk {
            direction,
            connections,
        })
    };
    let mut works = Vec::new();
    works.extend([1, 64].map(exchange).concat());
    works.extend([1, 16].map(bulk).concat());
    works.extend([1, 16].map(|at_once| Work::Connect { at_once }));
    works.extend([Work::Idle, Work::SlowReader]);
    works
}

/// What a contender is started for: work of one setting shares one start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// Once; culvert keeps close records.
    Shared,
    /// Once; without close records, which cost as much for each connection as nobody else's proxy is asked for.
    Unlogged,
    /// For each time it is measured, since what was before shows in its memory.
    Fresh,
}

impl Work {
    /// What it is started for.
    pub(crate) fn setting(self) -> Setting {
        match self {
            Self::Exchange { .. } | Self::Bulk { .. } => Setting::Shared,
            Self::Connect { .. } => Setting::Unlogged,
            Self::Idle | Self::SlowReader => Setting::Fresh,
        }
    }

    /// The figure that is compared first.
    pub(crate) fn headline(self) -> Metric {
        match self {
            Self::Exchange { .. } => Metric::Exchanges,
            Self::Bulk { .. } => Metric::Bytes,
            Self::Connect { .. } => Metric::Connections,
            Self::Idle => Metric::RelayMemory,
            Self::SlowReader => Metric::Held,
        }
    }

    /// What it is, in a few words.
    pub(crate) fn title(self) -> String {
        let connections = |count| match count {
            1 => "1 connection".to_owned(),
            count => format!("{count} connections"),
        };
        match self {
            Self::Exchange {
                length,
                connections: count,
            } => format!("{} to and fro, {}", bytes(length), connections(count)),
            Self::Bulk {
                direction,
                connections: count,
            } => {
                let direction = match direction {
                    Direction::Up => "Bulk to the server",
                    Direction::Down => "Bulk to the client",
                    Direction::Both => "Bulk both ways at once",
                };
                format!("{direction}, {}", connections(count))
            }
            Self::Connect { at_once } => {
                format!("New connections, {at_once} at a time, a byte to and fro on each")
            }
            Self::Idle => "Idle connections".to_owned(),
            Self::SlowReader => "Bytes for a server that receives none".to_owned(),
        }
    }
}

/// As it is called on the command line and in reports.
impl fmt::Display for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange {
                length,
                connections,
            } => write!(formatter, "rr-{length}-{connections}"),
            Self::Bulk {
                direction,
                connections,
            } => {
                let direction = match direction {
                    Direction::Up => "up",
                    Direction::Down => "down",
                    Direction::Both => "both",
                };
                write!(formatter, "bulk-{direction}-{connections}")
            }
            Self::Connect { at_once } => write!(formatter, "connect-{at_once}"),
            Self::Idle => formatter.write_str("idle"),
            Self::SlowReader => formatter.write_str("slow-reader"),
        }
    }
}

fn bytes(length: u32) -> String {
    match length {
        1 => "1 byte".to_owned(),
        length if length >= 1024 => format!("{} KiB", length / 1024),
        length => format!("{length} bytes"),
    }
}

/// How much is done.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Effort {
    /// How often everything is measured.
    pub(crate) rounds: u32,
    /// The same for what needs a start each time.
    pub(crate) fresh_rounds: u32,
    /// Of exchanges, and of new connections.
    pub(crate) milliseconds: u64,
    /// Bytes each way of a transfer on one connection, and those of many together.
    pub(crate) bulk: u64,
    pub(crate) bulk_of_many: u64,
    /// Idle connections.
    pub(crate) idle: u32,
    /// Bytes for the slow reader, and how long nothing must be taken until that is all.
    pub(crate) offered: u64,
    pub(crate) patience_milliseconds: u64,
}

impl Effort {
    /// Enough to trust the ratios.
    pub(crate) const FULL: Self = Self {
        rounds: 7,
        fresh_rounds: 3,
        milliseconds: 1000,
        bulk: 1 << 30,
        bulk_of_many: 1 << 30,
        idle: 10_000,
        offered: 1_000_000_000,
        patience_milliseconds: 1000,
    };
    /// Enough to see that everything runs.
    pub(crate) const QUICK: Self = Self {
        rounds: 2,
        fresh_rounds: 1,
        milliseconds: 60,
        bulk: 16 << 20,
        bulk_of_many: 32 << 20,
        idle: 200,
        offered: 64 << 20,
        patience_milliseconds: 300,
    };
}
