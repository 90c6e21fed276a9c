//! Traces of connections that pass through by way of the relay: what most packets are told by that are nothing to us.
//!
//! A packet is read for its addresses and ports, and leads to two bytes. If neither has a trace in it, no connection of these two
//! hosts with this service was relayed lately. If one has, that may still be, or another pair of hosts has the same place, and it
//! is for those to say who really know: sockets, and the memory of what was relayed.
//!
//! A trace is the number of the period that it was left in. Only those of this period and of the one before count: the daemon
//! begins a new period now and then, and leaves the traces of what is remembered once more. So nothing is ever cleared, and each
//! access is of one byte, whoever else has it at the same time.

use crate::{Addr, BePort, OwnKey};

/// Places of traces.
pub const PLACES: usize = 1 << 17;

/// Bits of a number that leads to one.
const PLACE_BITS: u32 = PLACES.trailing_zeros();

/// The one element of the map [`TRACES`](crate::names::TRACES).
#[repr(C)]
pub struct Traces {
    /// Which of them count.
    pub period: Period,
    /// Always 0.
    pub reserved: [u8; 7],
    /// Each the number of a period, or 0.
    pub places: [u8; PLACES],
}

/// A period. After 255 of them their numbers come back; old traces count again then, and cost a look.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period(pub u8);

impl Period {
    /// How many there are.
    const COUNT: u8 = u8::MAX;

    /// Its number, which is left as a trace.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0.wrapping_add(1)
    }

    /// Whether a trace is of it, or of the one before.
    #[inline(always)]
    #[must_use]
    pub const fn counts(self, trace: u8) -> bool {
        let before = if self.0 == 0 { Self::COUNT } else { self.0 };
        trace == self.number() || trace == before
    }

    /// The one after it.
    #[must_use]
    pub const fn next(self) -> Self {
        let next = self.number();
        Self(if next == Self::COUNT { 0 } else { next })
    }
}

/// Two hosts, whichever of them is the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair(u32);

impl Pair {
    /// Of two addresses.
    #[inline(always)]
    #[must_use]
    pub const fn of(one: Addr, other: Addr) -> Self {
        Self(mixed(one).wrapping_add(mixed(other)))
    }

    /// Where the traces are of connections between them by a port of either.
    #[inline(always)]
    #[must_use]
    pub const fn place(self, port: BePort) -> usize {
        let mixed = (self.0 ^ (port.0 as u32).wrapping_mul(0x85eb_ca77)).wrapping_mul(0xc2b2_ae3d);
        (mixed >> (u32::BITS - PLACE_BITS)) as usize
    }

    /// The places that a packet leads to.
    #[inline(always)]
    #[must_use]
    pub const fn places(key: &OwnKey) -> [usize; 2] {
        let pair = Self::of(key.source, key.dest);
        [pair.place(key.source_port), pair.place(key.dest_port)]
    }
}

#[inline(always)]
const fn mixed(address: Addr) -> u32 {
    let [a, b, c, d] = address.words();
    let folded = if address.is_v4() {
        d
    } else {
        let folded = a.wrapping_mul(0x9e37_79b1) ^ b;
        let folded = folded.wrapping_mul(0x9e37_79b1) ^ c;
        folded.wrapping_mul(0x9e37_79b1) ^ d
    };
    // Neighbours differ in the highest byte of the word, which has to reach all others before two such are added.
    let mixed = (folded ^ folded >> 16).wrapping_mul(0x7feb_352d);
    let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x846c_a68b);
    mixed ^ mixed >> 16
}

/// How packets of an interface begin, in the map [`BEGINNINGS`](crate::names::BEGINNINGS).
pub mod beginning {
    /// That is not known.
    pub const UNKNOWN: u32 = 0;
    /// With the header of IP.
    pub const IP: u32 = 1;
    /// With a header of Ethernet.
    pub const ETHERNET: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_lead_to_the_place_of_the_service() {
        let hosts = [
            [Addr::from_v4([10, 1, 0, 2]), Addr::from_v4([192, 0, 2, 7])],
            [Addr::from_v6([0xfd; 16]), Addr::from_v6([0x20; 16])],
        ];
        for [client, server] in hosts {
            let service = Pair::of(client, server).place(BePort::new(443));
            let there = OwnKey {
                source: client,
                dest: server,
                source_port: BePort::new(40_000),
                dest_port: BePort::new(443),
            };
            let back = OwnKey {
                source: server,
                dest: client,
                source_port: BePort::new(443),
                dest_port: BePort::new(40_000),
            };
            assert_eq!(Pair::places(&there)[1], service);
            assert_eq!(Pair::places(&back)[0], service);
        }
    }

    #[test]
    fn places_of_neighbours_are_spread() {
        let mut seen = [0_u64; PLACES / 64];
        let mut shared = 0;
        for client in 0..64 {
            for server in 0..64 {
                let pair = Pair::of(
                    Addr::from_v4([10, 0, 0, client]),
                    Addr::from_v4([10, 0, 1, server]),
                );
                let place = pair.place(BePort::new(443));
                let (word, bit) = (&mut seen[place / 64], 1 << (place % 64));
                shared += u32::from(*word & bit != 0);
                *word |= bit;
            }
        }
        // By chance it would be one in 64 of 4096.
        assert!(shared < 256, "{shared}");
    }

    #[test]
    fn two_periods_count_and_nothing_is_no_trace() {
        let mut period = Period::default();
        for _ in 0..1000 {
            let trace = period.number();
            assert!(period.counts(trace) && period.next().counts(trace));
            assert!(!period.next().next().counts(trace));
            assert!(!period.counts(0));
            period = period.next();
        }
    }
}
