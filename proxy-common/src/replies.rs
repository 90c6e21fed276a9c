//! Replies past the relay: what arrives on an upstream socket goes straight into the app's receive queue.
//!
//! The program that decides about a reply writes [`Replies`], under the lock of the upstream socket; the relay makes the
//! entry and reads it. What only the app's socket can tell is asked for by a program of its own, which the relay runs: a
//! [`Delivery`].

use crate::{LaneKey, Sequence};

/// The replies of one connection; in the map [`REPLIES`](crate::names::REPLIES), by the cookie of the upstream socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// The app's socket.
    pub app: LaneKey,
    /// Where the kernel has it; 0 before the first reply.
    pub address: u64,
    /// Bytes that went into the app's queue.
    pub redirected: u64,
    /// Bytes that were passed to the relay.
    pub passed: u64,
    /// What comes next.
    pub sequence: Sequence,
    /// Where the replies begin on the app's connection to the relay, as a TCP sequence number.
    pub first_seq: u32,
    /// What upstream had been sent when the last reply came, as a TCP sequence number.
    pub turn: u32,
    /// Bytes that came since then.
    pub run: u32,
    /// The last of the relay's [`rests`](crate::Lane::rests) that ended with a reply: it was told then.
    pub told: u32,
}

/// Bits that tell where replies are that went past the relay; what the program
/// [`DELIVERED`](crate::names::DELIVERED) returns.
pub struct Delivery;

impl Delivery {
    /// All of them are in the app's queue, or were read from it: nothing can overtake them any more.
    pub const ARRIVED: u32 = 1 << 0;
    /// The app has read all of them, or has closed its socket.
    pub const READ: u32 = 1 << 1;
    /// Bytes came that cannot be put into sequence; they were passed to the relay, which must not pass them on.
    pub const FAULTY: u32 = 1 << 2;
}
