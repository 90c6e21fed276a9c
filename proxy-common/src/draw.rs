//! The one draw among the endpoints of a group by weight.
//!
//! Walker's method of aliases (1974, 1977): every endpoint has a seat of the same width, on which whoever weighs less than the
//! mean leaves room for one that weighs more. A draw takes a seat, and then one of the two who share it: one or two look-ups,
//! however many endpoints there are, and shares that are exact.

use crate::{Addr, BePort};

/// The seats of a family of addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wheel {
    /// Which table they are in. A table is never changed: others are written beside it.
    pub table: u32,
    /// How many there are; none where no endpoint of the family takes connections.
    pub seats: u32,
}

/// The endpoints of a group that take connections: value of the map [`WHEELS`](crate::names::WHEELS), by the number of the group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wheels {
    /// Those with IPv4 addresses.
    pub v4: Wheel,
    /// Those with IPv6 addresses.
    pub v6: Wheel,
}

/// Key of the map [`SEATS`](crate::names::SEATS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SeatKey {
    /// Number of the group, so that no mistake leads to another one's endpoints.
    pub group: u32,
    /// [`Wheel::table`].
    pub table: u32,
    /// From 0 to [`Wheel::seats`].
    pub index: u32,
}

/// An endpoint, and with whom it shares its seat.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seat {
    /// Where the endpoint is.
    pub addr: Addr,
    /// Its port.
    pub port: BePort,
    /// Always 0.
    pub reserved: u16,
    /// Its number among those of all groups.
    pub endpoint: u32,
    /// Its part of the seat, of 2^32.
    pub keeps: u32,
    /// The seat of who has the rest; itself where nobody has.
    pub other: u32,
}

/// The endpoints of groups: BPF maps in the kernel, the same tables in memory in user space.
pub trait Draws {
    /// Those of a group.
    fn wheels(&self, group: u32) -> Option<&Wheels>;
    /// One of them.
    fn seat(&self, key: &SeatKey) -> Option<&Seat>;
}

/// Draws an endpoint with an address of a family. `None` when no such one takes connections.
#[expect(clippy::cast_possible_truncation, reason = "it takes the halves apart")]
#[inline(always)]
pub fn draw(draws: &impl Draws, group: u32, is_v4: bool, random: u64) -> Option<Seat> {
    let wheels = draws.wheels(group)?;
    let wheel = if is_v4 { wheels.v4 } else { wheels.v6 };
    let (place, part) = (random >> 32, random as u32);
    let index = ((place * u64::from(wheel.seats)) >> 32) as u32;
    let key = SeatKey {
        group,
        table: wheel.table,
        index,
    };
    let seat = draws.seat(&key)?;
    if part < seat.keeps || seat.other == index {
        return Some(*seat);
    }
    let other = SeatKey {
        index: seat.other,
        ..key
    };
    draws.seat(&other).copied()
}
