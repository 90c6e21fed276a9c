//! `sk_lookup`: who gets a SYN that was given to what is left of the last connection of its addresses.
//!
//! The kernel has ended that and looks for a listener of the address that the SYN goes to (`TCP_TW_SYN` in `tcp_v4_rcv()`), where
//! nobody listens. What comes here for a connection that was relayed can be nothing else: what is not ours is forgotten.

use aya_ebpf::programs::SkLookupContext;

use crate::{
    maps::{GATES, RELAYED},
    recipient::gate_of,
    reverse::{Incoming, PASS},
};

/// Chooses the listener that the gateway would.
#[inline(always)]
pub fn lookup(ctx: &SkLookupContext) -> u32 {
    if let Some(Incoming { family, key, .. }) = Incoming::of(ctx)
        // SAFETY: the value means nothing; that there is one does.
        && unsafe { RELAYED.get(key) }.is_some()
        && let Some(index) = gate_of(family, &key)
    {
        // Where it fails there is no listener, and the client gets no answer.
        let _ = GATES.redirect_sk_lookup(ctx, index, 0);
    }
    PASS
}
