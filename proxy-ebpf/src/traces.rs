//! Traces of what was relayed, by which packets are told that may be of it.

use proxy_common::{Addr, BePort, OwnKey, PLACES, Pair, Traces};

use crate::maps::TRACES;

/// Whether something was relayed lately between two hosts by one of two ports, or may have been.
#[inline(always)]
pub fn lead_on(hosts: [Addr; 2], ports: [u16; 2]) -> bool {
    let Some(traces) = TRACES.get_ptr_mut(0) else {
        return true;
    };
    let [one, other] = hosts;
    let pair = Pair::of(one, other);
    // SAFETY: bytes of the one element, which is always there; somebody else may write them, each whole.
    unsafe {
        let period = (&raw const (*traces).period).read_volatile();
        let has_trace =
            |port: u16| period.counts(place(traces, pair.place(BePort(port))).read_volatile());
        has_trace(ports[0]) || has_trace(ports[1])
    }
}

/// Leaves a trace of a connection that is given to the relay, by a packet of its client's.
#[inline(always)]
pub fn leave(key: &OwnKey) {
    let Some(traces) = TRACES.get_ptr_mut(0) else {
        return;
    };
    let pair = Pair::of(key.source, key.dest);
    // SAFETY: as above.
    unsafe {
        let period = (&raw const (*traces).period).read_volatile();
        place(traces, pair.place(key.dest_port)).write_volatile(period.number());
    }
}

/// Has the traces of a connection that is open count for as long as new ones.
#[inline(always)]
pub fn keep(key: &OwnKey) {
    let Some(traces) = TRACES.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: as above.
    unsafe {
        let period = (&raw const (*traces).period).read_volatile();
        for at in Pair::places(key) {
            let place = place(traces, at);
            let trace = place.read_volatile();
            if trace != period.number() && period.counts(trace) {
                place.write_volatile(period.number());
            }
        }
    }
}

/// # Safety
/// The element of the map.
#[inline(always)]
unsafe fn place(traces: *mut Traces, at: usize) -> *mut u8 {
    // SAFETY: the caller's word, and within the element; the verifier is shown that.
    unsafe {
        (&raw mut (*traces).places)
            .cast::<u8>()
            .add(at & (PLACES - 1))
    }
}
