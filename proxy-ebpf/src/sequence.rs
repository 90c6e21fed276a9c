//! The place of an `skb` in the stream of the socket that received it, and what to do about one that is out of place.
//!
//! `tcp_read_skb()` (`net/ipv4/tcp.c`) takes no notice of what was delivered before. A retransmission that carries old
//! bytes in front of new ones would deliver the old ones twice: they are cut off here. The control block still is TCP's:
//! its first words are the sequence numbers of the first byte and of the one behind the last. Where they do not fit the
//! length it is not, and the connection is reset.

use aya_ebpf::{
    bindings::__sk_buff, helpers::generated::bpf_skb_adjust_room, programs::SkBuffContext,
};
use proxy_common::Sequence;

use crate::{
    globals::{Offsets, repeats_bytes},
    kernel::{field, struct_of},
};

/// `bpf_skb_adjust_room()` takes less than a page at a time.
const CUT: u32 = 4095;
/// An `skb` of TCP holds at most 64 KiB (`GSO_MAX_SIZE`), or 512 KiB with BIG TCP: more cannot be old.
const MOST_CUTS: u32 = 130;

/// Where an `skb` stands in the stream.
pub enum Order {
    /// So many bytes are new, and no others are left in it.
    New(u32),
    /// It begins behind the next byte, or has no new one: the stream cannot go on.
    Fault,
}

/// Makes an `skb` begin at the next byte of the stream.
#[inline(always)]
pub fn in_sequence(ctx: &SkBuffContext, sequence: &mut Sequence, length: u32) -> Order {
    let order = repaired(ctx, sequence, length);
    if order.is_none() {
        sequence.faults += 1;
    }
    order.map_or(Order::Fault, Order::New)
}

#[inline(always)]
fn repaired(ctx: &SkBuffContext, sequence: &mut Sequence, length: u32) -> Option<u32> {
    let [seq, end] = control_words(ctx);
    // A FIN has a number, too. And what comes behind a fault must not be taken for what comes next.
    if end.wrapping_sub(seq).wrapping_sub(length) > 1 || sequence.faults > 0 {
        return None;
    }
    let is_first = sequence.is_known == 0;
    if is_first {
        // Everything before was read through the socket, so its own mark is right.
        sequence.next = field(tcp_of(ctx), Offsets::tcp_copied_seq())?;
        sequence.is_known = 1;
    }
    let old = sequence.next.wrapping_sub(seq);
    sequence.next = seq.wrapping_add(length);
    if old == 0 || (repeats_bytes() && !is_first) {
        return Some(length);
    }
    if old >= length {
        return None;
    }
    cut(ctx, old);
    let new = self::length(ctx);
    if new != length - old {
        return None;
    }
    // What the relay has read of the first one did not come twice.
    if !is_first {
        sequence.repairs += 1;
        sequence.repaired += u64::from(old);
    }
    Some(new)
}

/// Removes bytes at the head. What it could not remove shows in the length.
#[inline(always)]
fn cut(ctx: &SkBuffContext, bytes: u32) {
    let mut left = bytes;
    for _ in 0..MOST_CUTS {
        if left == 0 {
            return;
        }
        let now = if left > CUT { CUT } else { left };
        // SAFETY: the context is valid while the program runs.
        if unsafe { bpf_skb_adjust_room(ctx.skb.skb, -(now as i32), 0, 0) } != 0 {
            return;
        }
        left -= now;
    }
}

#[inline(always)]
pub fn length(ctx: &SkBuffContext) -> u32 {
    // SAFETY: the context is valid while the program runs. Volatile: it changes when the head is cut.
    unsafe { (&raw const (*ctx.skb.skb).len).read_volatile() }
}

/// `TCP_SKB_CB(skb)->seq` and `end_seq`.
#[inline(always)]
fn control_words(ctx: &SkBuffContext) -> [u32; 2] {
    // SAFETY: the context is valid while the program runs, and the control block has five words.
    unsafe {
        let words = (&raw const (*ctx.skb.skb).cb).cast::<u32>();
        [words.read_volatile(), words.add(1).read_volatile()]
    }
}

/// The kernel's own struct of the socket that received an `skb`.
#[inline(always)]
pub fn tcp_of(ctx: &SkBuffContext) -> *const u8 {
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    struct_of(socket)
}
