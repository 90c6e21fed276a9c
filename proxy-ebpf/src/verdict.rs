//! What becomes of bytes that arrive on a socket of an accelerated connection: redirected to the other socket, or
//! passed to the relay. See [`Redirect`] for who tells whom what.
//!
//! There is no stream parser, so the program sees each `skb` that TCP queued, as it is, under the socket's lock:
//! - An `skb` without bytes is a bare FIN. Nobody needs it: TCP has noted the end on the socket (`tcp_fin()`), where a read
//!   finds it. Redirected, it would be a send of nothing, which counts as a hard error of the target; passed, it would be
//!   the same error of the source when passed bytes already wait for room (`sk_psock_backlog()` in `net/core/skmsg.c`,
//!   EPIPE, seen on 6.18). So it is dropped.
//! - Bytes that were delivered before are cut off: see [`crate::sequence`].

use aya_ebpf::{
    EbpfContext as _,
    bindings::sk_action::{SK_DROP, SK_PASS},
    helpers::generated::{bpf_get_socket_cookie, bpf_map_lookup_elem, bpf_sk_release},
    programs::SkBuffContext,
};
use proxy_common::{KernelSide, Redirect, RelaySide, mode};

use crate::{
    globals::reads_sockets,
    maps::{PAIRS, REDIRECT_EVENTS, REDIRECT_OF, REDIRECTS},
    sequence::{Order, in_sequence, length},
};

/// Decides about one `skb`.
#[inline(always)]
pub fn verdict(ctx: &SkBuffContext) -> u32 {
    if !reads_sockets() {
        // The verifier of a kernel that is locked down refuses the helper that reads them, but leaves out what cannot be reached.
        return SK_PASS;
    }
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
    match in_sequence(ctx, &mut kernel.sequence, length) {
        Order::New(length) => forward(ctx, redirect, kernel, index, length),
        Order::Fault => {
            if kernel.sequence.faults == 1 {
                notify(index);
            }
            SK_DROP
        }
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
    if takes_over {
        // The first bytes for a relay that did not expect any, and may rest.
        notify(index);
    }
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

/// Wakes the relay. There is room: see the map.
#[inline(always)]
fn notify(index: u32) {
    let event = u64::from(index);
    let _ = REDIRECT_EVENTS.output(event, 0);
}
