//! Replies past the relay: what arrives on an upstream socket goes straight into the app's receive queue.
//!
//! The kernel keeps such bytes apart from those that the app gets by TCP (`sk_psock.ingress_msg`), and the app reads them
//! first (`tcp_bpf_recvmsg()` in `net/ipv4/tcp_bpf.c`). They get there by way of a worker (`sk_psock_backlog()` in
//! `net/core/skmsg.c`), which takes each from its queue only when it is there. The rules:
//! - **Order.** A reply may go straight in only when the app has read every byte that was ever passed to the relay, which
//!   its `copied_seq` tells. The other way round it is the relay that waits, until [`delivered`] tells that what went
//!   straight in has arrived: only then does it write, or tell the end.
//! - **Bound.** Nobody charges the sender for bytes in the app's queue. So only small ones go there, while little waits; a
//!   stream goes to the relay, whose writes know TCP's back-pressure.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_INGRESS, bpf_sock,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::generated::{bpf_get_socket_cookie, bpf_map_lookup_elem, bpf_sk_release},
    programs::{RawTracePointContext, SkBuffContext},
};
use proxy_common::{Delivery, LaneKey, Replies};

use crate::{
    globals::{Offsets, has_shortcut, reads_sockets},
    kernel::{field, struct_of},
    maps::{APPS, LANES, REPLIES, REPLY_EVENTS},
    sequence::{Order, in_sequence, length, tcp_of},
    shortcut::{is_blocking, is_encrypting},
};

/// Size from which bytes are worth the relay's while.
const LARGE: u32 = 16 * 1024;
/// Bytes without a word from the app that make a stream.
const LONGEST_RUN: u32 = 64 * 1024;
/// Most `skb`s on their way to the app.
const MOST_QUEUED: u32 = 16;
/// `SK_USER_DATA_PTRMASK` of `include/net/sock.h`: the lower bits are flags.
const POINTER: usize = !7;
/// Nothing is on its way, nor waits.
const NOTHING: u32 = Delivery::ARRIVED | Delivery::READ;

/// Decides about one `skb` of an upstream socket.
#[inline(always)]
pub fn reply(ctx: &SkBuffContext) -> u32 {
    if !reads_sockets() {
        // See `verdict`.
        return SK_PASS;
    }
    let length = length(ctx);
    if length == 0 {
        // A bare FIN: see `verdict`.
        return SK_DROP;
    }
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: the element stays readable until this program ends; only this program, under the lock of the upstream socket,
    // writes to it.
    let Some(replies) = REPLIES
        .get_ptr_mut(cookie)
        .and_then(|replies| unsafe { replies.as_mut() })
    else {
        return SK_PASS;
    };
    match in_sequence(ctx, &mut replies.sequence, length) {
        Order::New(length) => {
            if redirect(ctx, replies, length).is_some() {
                replies.redirected += u64::from(length);
            } else {
                pass(replies, cookie, length);
            }
            SK_PASS
        }
        // Wakes the relay, which hears of the fault before it writes anything.
        Order::Fault => {
            pass(replies, cookie, length);
            SK_PASS
        }
    }
}

/// Redirects, if that is safe. The verdict is to pass either way.
#[inline(always)]
fn redirect(ctx: &SkBuffContext, replies: &mut Replies, length: u32) -> Option<()> {
    if replies.address == 0 {
        find(replies)?;
    }
    let app = app_of(replies)?;
    let sent: u32 = field(tcp_of(ctx), Offsets::tcp_write_seq())?;
    if sent != replies.turn {
        replies.turn = sent;
        replies.run = 0;
    }
    if replies.run < LONGEST_RUN {
        replies.run += length;
    }
    if length >= LARGE || replies.run >= LONGEST_RUN {
        return None;
    }
    let read: u32 = field(app, Offsets::tcp_copied_seq())?;
    let is_behind = read.wrapping_sub(replies.first_seq) != replies.passed as u32;
    if is_behind || !has_room(app) || is_blocking(app) || is_encrypting(app) {
        return None;
    }
    // Sets nothing where it fails, because the app has just closed its socket.
    let redirected = APPS.redirect_skb(ctx, replies.app, u64::from(BPF_F_INGRESS));
    (redirected == i64::from(SK_PASS)).then_some(())
}

/// Counts bytes that the relay gets, and tells it if it rests.
///
/// The relay says that it rests, takes the lock of the upstream socket, under which this runs, and then looks at the count: so
/// either it sees the bytes or this sees that it rests.
#[inline(always)]
fn pass(replies: &mut Replies, cookie: u64, length: u32) {
    replies.passed += u64::from(length);
    // SAFETY: the element stays readable until this program ends; the word is read at once.
    let rests = unsafe { LANES.get(replies.app) }.map_or(replies.told, |lane| lane.rests);
    if rests != replies.told {
        replies.told = rests;
        // There is room: see the map.
        let _ = REPLY_EVENTS.output(cookie, 0);
    }
}

/// Whether little waits for the app, and no more than it wants to hear of at once.
#[inline(always)]
fn has_room(app: *const u8) -> bool {
    let waiting: Option<i32> = field(app, Offsets::sk_rmem_alloc());
    let limit: Option<i32> = field(app, Offsets::sk_rcvbuf());
    let wanted: Option<i32> = field(app, Offsets::sk_rcvlowat());
    let queued: Option<u32> = psock_of(app).and_then(|psock| field(psock, Offsets::psock_queue()));
    let (Some(waiting), Some(limit), Some(wanted), Some(queued)) = (waiting, limit, wanted, queued)
    else {
        return false;
    };
    waiting <= limit / 4 && wanted <= 1 && queued < MOST_QUEUED
}

/// Finds the app's socket, and where the replies begin: the relay has written nothing yet.
#[inline(always)]
fn find(replies: &mut Replies) -> Option<()> {
    // SAFETY: the map takes this key; the reference that a look-up takes is given back.
    unsafe {
        let key: *const LaneKey = &raw const replies.app;
        let map = core::ptr::from_ref(&APPS).cast_mut().cast();
        let socket = bpf_map_lookup_elem(map, key.cast());
        if socket.is_null() {
            return None;
        }
        let app = struct_of(socket.cast::<bpf_sock>());
        let first_seq: Option<u32> = field(app, Offsets::tcp_copied_seq());
        let address = app.addr() as u64;
        bpf_sk_release(socket);
        replies.first_seq = first_seq?;
        replies.address = address;
    }
    Some(())
}

/// The app's socket, if it still is the one that it was. Its memory may be another's by now; a cookie never is.
#[inline(always)]
fn app_of(replies: &Replies) -> Option<*const u8> {
    let app = replies.address as *const u8;
    let cookie: u64 = field(app, Offsets::skc_cookie())?;
    (cookie == replies.app.cookie).then_some(app)
}

/// What the kernel keeps of a socket in a sockmap.
#[inline(always)]
fn psock_of(app: *const u8) -> Option<*const u8> {
    let data: usize = field(app, Offsets::sk_user_data())?;
    let psock = data & POINTER;
    (psock != 0).then_some(psock as *const u8)
}

/// Tells where the replies are. The argument is the cookie of the upstream socket.
#[inline(always)]
pub fn delivered(ctx: &RawTracePointContext) -> u32 {
    if !has_shortcut() {
        return NOTHING;
    }
    let cookie: u64 = ctx.arg(0);
    // SAFETY: the element stays readable until this program ends.
    let Some(replies) = (unsafe { REPLIES.get(cookie) }) else {
        return NOTHING;
    };
    if replies.sequence.faults > 0 {
        return Delivery::FAULTY;
    }
    let psock = app_of(replies).and_then(psock_of);
    psock.map_or(Some(NOTHING), delivery).unwrap_or(0)
}

/// In this order: what leaves the one queue is in the other.
#[inline(always)]
fn delivery(psock: *const u8) -> Option<u32> {
    let queued: u32 = field(psock, Offsets::psock_queue())?;
    if queued > 0 {
        return Some(0);
    }
    let messages = psock.wrapping_add(Offsets::psock_messages());
    let first: *const u8 = field(messages, 0)?;
    Some(if first == messages {
        NOTHING
    } else {
        Delivery::ARRIVED
    })
}
