//! What the fast path has learned on this core a moment ago: routes, and next hops that the kernel has sent something to.
//!
//! A route is kept with all that the look-up reads, so it is the one that the kernel has for just these packets, as of the moment: one
//! that changes, or the end of the daemon, counts from the next moment on.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use proxy_common::{HOPS, Hop, KnownRoute, ROUTES};

use crate::{
    maps::{KNOWN_ROUTES, NEXT_HOPS},
    way::Way,
};

/// Jiffies of a moment, as a power of two: 32 are from 32 ms to a third of a second.
const MOMENT: u32 = 5;

/// The place of a route among those that are known.
pub struct Memory {
    question: [u64; 6],
    moment: u32,
    place: &'static mut KnownRoute,
}

impl Memory {
    /// Where the answer for a way that is not looked up yet belongs.
    #[inline(always)]
    pub fn of(way: &Way) -> Option<Self> {
        let question = way.question();
        let place = KNOWN_ROUTES.get_ptr_mut(hash(&question))?;
        // SAFETY: no arguments, a plain number out; and nobody else has the entry of this core while the program runs.
        let (moment, place) = unsafe { ((bpf_jiffies64() >> MOMENT) as u32, &mut *place) };
        Some(Self {
            question,
            moment,
            place,
        })
    }

    /// The way that such packets went in this moment, if this one, so many bytes long, goes it as well.
    #[inline(always)]
    pub fn recall(&self, way: &Way, largest: u32) -> Option<Way> {
        let Self {
            question,
            moment,
            place,
        } = self;
        // Word by word: arrays are compared by a call, byte for byte.
        let mut difference = u64::from(place.moment ^ moment);
        for (word, known) in question.iter().zip(&place.question) {
            difference |= word ^ known;
        }
        let is_known = difference == 0 && largest <= place.fits;
        is_known.then(|| way.answered(place.interface, place.hardware))
    }

    /// Keeps a way that was looked up.
    #[inline(always)]
    pub fn keep(self, way: &Way) {
        *self.place = KnownRoute {
            question: self.question,
            hardware: way.hardware,
            interface: way.interface,
            fits: u32::from(way.length),
            moment: self.moment,
        };
    }

    /// Whether the kernel has sent something to the next hop of a way in this moment. If not it should send this: for
    /// neighbours that it sends to it makes sure that they are still there, which a redirect by hardware address does not.
    #[inline(always)]
    pub fn has_heard_of(&self, way: &Way) -> bool {
        let [a, b, c, d] = way.hop;
        let hash = (a ^ b ^ c ^ d ^ way.interface).wrapping_mul(0x9e37_79b1) >> 24;
        let Some(hop) = NEXT_HOPS.get_ptr_mut(hash % HOPS as u32) else {
            return false;
        };
        // SAFETY: nobody else has the entry of this core while the program runs.
        let hop = unsafe { &mut *hop };
        let moment = self.moment;
        if hop.address == way.hop && hop.interface == way.interface && hop.moment == moment {
            return true;
        }
        *hop = Hop {
            address: way.hop,
            interface: way.interface,
            moment,
        };
        false
    }
}

#[inline(always)]
fn hash(question: &[u64; 6]) -> u32 {
    let mix =
        |hash: u64, word: &u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // From the top, since what differs at the top of a word, as the last byte of an address does, makes a difference only there.
    (question.iter().fold(0, mix) >> 32) as u32 >> (32 - ROUTES.ilog2())
}
