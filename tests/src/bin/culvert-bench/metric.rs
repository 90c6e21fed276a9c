//! The figures of a measurement.

use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Messages answered in a second.
    Exchanges,
    /// Bytes in a second, both directions together.
    Bytes,
    /// Connections in a second.
    Connections,
    /// What half of them did not exceed, in microseconds.
    P50,
    /// What 99 of 100 did not exceed.
    P99,
    /// What 999 of 1000 did not exceed.
    P999,
    /// Processor seconds of the proxy for a GB, or for a million messages or connections.
    RelayCpu,
    /// The same of client, proxy, server and the kernel's threads.
    AllCpu,
    /// Bytes of the proxy's memory for each connection.
    RelayMemory,
    /// Bytes of the kernel's memory for each connection, those of client and server included.
    KernelMemory,
    /// Bytes that were taken and are in no socket's queue.
    Held,
    /// Bytes that were taken.
    Taken,
}

impl Metric {
    /// Whether more of it is better.
    pub(crate) fn is_better_higher(self) -> bool {
        matches!(self, Self::Exchanges | Self::Bytes | Self::Connections)
    }

    /// Heading of a column.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Self::Exchanges | Self::Connections => "per second",
            Self::Bytes => "MB/s",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::P999 => "p99.9 µs",
            Self::RelayCpu => "CPU relay",
            Self::AllCpu => "CPU all",
            Self::RelayMemory => "relay B/conn",
            Self::KernelMemory => "kernel B/conn",
            Self::Held => "held KiB",
            Self::Taken => "taken KiB",
        }
    }

    /// What a printed figure counts, where it stands alone.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Exchanges | Self::Connections => "/s",
            Self::Bytes => "MB/s",
            Self::P50 | Self::P99 | Self::P999 => "µs",
            Self::RelayCpu | Self::AllCpu => "s",
            Self::RelayMemory | Self::KernelMemory => "B",
            Self::Held | Self::Taken => "KiB",
        }
    }

    /// As it is printed under that heading.
    pub(crate) fn print(self, value: f64) -> String {
        match self {
            Self::Exchanges | Self::Connections | Self::RelayMemory | Self::KernelMemory => {
                grouped(value)
            }
            Self::Bytes => grouped(value / 1e6),
            Self::Held | Self::Taken => grouped(value / 1024.0),
            Self::P50 | Self::P99 | Self::P999 if value >= 100.0 => format!("{value:.0}"),
            Self::P50 | Self::P99 | Self::P999 => format!("{value:.1}"),
            Self::RelayCpu | Self::AllCpu => format!("{value:.2}"),
        }
    }
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value <= -0.5 {
        text.insert(0, '-');
    }
    text
}
