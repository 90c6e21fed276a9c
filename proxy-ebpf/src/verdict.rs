//! What becomes of bytes that arrive on a socket of an accelerated connection: redirected to the other socket, or
//! passed to the relay. See [`Redirect`] for who tells whom what.
//!
//! There is no stream parser, so the program sees each `skb` that TCP queued, as it is, under the socket's lock:
//! - An `skb` without bytes is a bare FIN. Nobody needs it: TCP has noted the end on the socket (`tcp_fin()`), where a read
//!   finds it. Redirected, it would be a send of nothing, which counts as a hard error of the target; passed, it would be
//!   the same error of the source when passed bytes already wait for room (`sk_psock_backlog()` in `net/core/skmsg.c`,
//!   EPIPE, seen on 6.18). So it is dropped.
//! - `tcp_read_skb()` (`net/ipv4/tcp.c`) takes no notice of what was delivered before. A retransmission that carries old
//!   bytes in front of new ones would deliver the old ones twice: they are cut off here. The control block still is TCP's:
//!   its first words are the sequence numbers of the first byte and of the one behind the last. Where they do not fit the
//!   length it is not, and the connection is reset.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::generated::{
        bpf_get_socket_cookie, bpf_map_lookup_elem, bpf_sk_release, bpf_skb_adjust_room,
        bpf_skc_to_tcp_sock,
    },
    programs::SkBuffContext,
};
use proxy_common::{KernelSide, Redirect, RelaySide, mode};

use crate::{
    globals::{Offsets, repeats_bytes},
    kernel::field,
    maps::{PAIRS, REDIRECT_EVENTS, REDIRECT_OF, REDIRECTS},
};

/// `bpf_skb_adjust_room()` takes less than a page at a time.
const CUT: u32 = 4095;
/// An `skb` of TCP holds at most 64 KiB (`GSO_MAX_SIZE`), or 512 KiB with BIG TCP: more cannot be old.
const MOST_CUTS: u32 = 130;

/// Decides about one `skb`.
#[inline(always)]
pub fn verdict(ctx: &SkBuffContext) -> u32 {
    let length = length(ctx);
    if length == 0 {
        return SK_DROP;
    }
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: nobody removes the entry of a socket that is in the sockmap.
    let Some(&index) = (unsafe { REDIRECT_OF.get(cookie) }) else {
        return SK_PASS;
    };
    let Some(redirect) = REDIRECTS.get_ptr_mut(index) else {
        return SK_PASS;
    };
    // SAFETY: an element of an array is never freed, and only this program, under the lock of this redirect's source, writes
    // the kernel's half. The relay's half is only read, through `wishes`.
    let kernel = unsafe { &mut (*redirect).kernel };
    match in_sequence(ctx, kernel, length) {
        Order::New(length) => forward(ctx, redirect, kernel, index, length),
        Order::Fault => {
            kernel.faults += 1;
            notify(index);
            SK_DROP
        }
    }
}

/// Where an `skb` stands in the stream.
enum Order {
    /// So many bytes are new, and no others are left in it.
    New(u32),
    /// It begins behind the next byte, or has no new one: the stream cannot go on.
    Fault,
}

/// Makes an `skb` begin at the next byte of the stream.
#[inline(always)]
fn in_sequence(ctx: &SkBuffContext, kernel: &mut KernelSide, length: u32) -> Order {
    let [seq, end] = control_words(ctx);
    // A FIN has a number, too. And what comes behind a fault must not be taken for what comes next.
    if end.wrapping_sub(seq).wrapping_sub(length) > 1 || kernel.faults > 0 {
        return Order::Fault;
    }
    let is_first = kernel.mode == 0;
    if is_first {
        // Everything before was read through the socket, so its own mark is right.
        let Some(copied) = copied_seq(ctx) else {
            return Order::Fault;
        };
        kernel.next_seq = copied;
        kernel.mode = mode::RELAY;
    }
    let old = kernel.next_seq.wrapping_sub(seq);
    kernel.next_seq = seq.wrapping_add(length);
    if old == 0 || (repeats_bytes() && !is_first) {
        return Order::New(length);
    }
    if old >= length {
        return Order::Fault;
    }
    cut(ctx, old);
    let new = self::length(ctx);
    if new != length - old {
        return Order::Fault;
    }
    // What the relay has read of the first one did not come twice.
    if !is_first {
        kernel.repairs += 1;
        kernel.repaired += u64::from(old);
    }
    Order::New(new)
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

/// Redirects, if the kernel has or takes over the redirect and the credit lasts; otherwise passes.
#[inline(always)]
fn forward(
    ctx: &SkBuffContext,
    redirect: *const Redirect,
    kernel: &mut KernelSide,
    index: u32,
    length: u32,
) -> u32 {
    let length = u64::from(length);
    let relay = wishes(redirect);
    let takes_over = kernel.mode == mode::KERNEL || kernel.passed == relay.resume_at;
    let after = kernel.redirected + length;
    if takes_over && after <= relay.limit && is_there(relay.target) {
        kernel.mode = mode::KERNEL;
        kernel.redirected = after;
        if after >= relay.notice_at && kernel.noticed != relay.notice_at {
            kernel.noticed = relay.notice_at;
            notify(index);
        }
        return if PAIRS.redirect_skb(ctx, relay.target, 0) == i64::from(SK_PASS) {
            SK_PASS
        } else {
            // The socket left between the look and the redirect: the connection has been reset.
            SK_DROP
        };
    }
    kernel.mode = mode::RELAY;
    kernel.passed += length;
    SK_PASS
}

/// What the relay wants now. It may change each word while we read.
#[inline(always)]
fn wishes(redirect: *const Redirect) -> RelaySide {
    // SAFETY: the element is never freed; its fields are aligned words that the relay writes at once.
    unsafe {
        let relay = &raw const (*redirect).relay;
        RelaySide {
            limit: (&raw const (*relay).limit).read_volatile(),
            notice_at: (&raw const (*relay).notice_at).read_volatile(),
            resume_at: (&raw const (*relay).resume_at).read_volatile(),
            target: (&raw const (*relay).target).read_volatile(),
            ..RelaySide::default()
        }
    }
}

/// Whether there is a socket at an index of the sockmap. Redirecting to none would drop the bytes.
#[inline(always)]
fn is_there(target: u32) -> bool {
    // SAFETY: the map takes a `u32` as its key; the reference that a look-up takes is given back (kernel 5.8).
    unsafe {
        let socket = bpf_map_lookup_elem(
            (&raw const PAIRS).cast_mut().cast(),
            (&raw const target).cast(),
        );
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}

/// Wakes the relay. When the ring is full it is about to look at every redirect in it anyway.
#[inline(always)]
fn notify(index: u32) {
    let event = u64::from(index);
    let _ = REDIRECT_EVENTS.output(event, 0);
}

#[inline(always)]
fn length(ctx: &SkBuffContext) -> u32 {
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

/// `tcp_sock.copied_seq` of the socket that received an `skb`: the next byte to be read through it.
#[inline(always)]
fn copied_seq(ctx: &SkBuffContext) -> Option<u32> {
    let skb: *const __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: checked for null. The verifier refuses to compute with the socket itself, but not with this (kernel 5.9).
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket.cast()) };
    field(tcp.cast_const().cast(), Offsets::tcp_copied_seq())
}
