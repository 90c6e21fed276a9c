//! The shortcut: what an app sends goes into the upstream socket before its `send()` returns, without the relay.
//!
//! The program runs on the app's socket, under its lock (`tcp_bpf_sendmsg()` in `net/ipv4/tcp_bpf.c`). Two rules make
//! it safe, and both are read from the kernel's own state, so that there is nothing to keep in step:
//! - **Order.** `write_seq` of the app's socket tells how many bytes ever entered the connection to the relay, partial
//!   sends and bytes of a Fast Open included. Only when the relay says that upstream has accepted as many is nothing on
//!   its way there, and what comes now may overtake nothing. The end of the stream counts as a byte, so nothing takes the
//!   shortcut behind it, which the kernel would accept. A count of our own would be wrong after each partial send,
//!   because the verdict is given before the kernel knows how much fits.
//! - **Room.** The kernel would hand EAGAIN of a full upstream socket to an app whose own socket is writable, which no
//!   poll ever ends. So a piece that does not fit for certain goes to the relay, where TCP makes the app wait.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_TCP_CLOSE_WAIT, BPF_TCP_ESTABLISHED, bpf_sock},
    programs::{SkMsgContext, SockOpsContext},
};
use proxy_common::{Sent, Socket, role, standing};

use crate::{
    globals::{Offsets, has_shortcut, zerocopy_flag},
    kernel::{field, struct_of},
    maps::{APPS, LANES, SENT, UPSTREAMS, socket_of},
};

/// Verdict of an `sk_msg` program: send, to where a redirect helper said, otherwise as usual.
const SK_PASS: u32 = 1;
/// What a redirect helper returns when it found the socket.
const FOUND: i64 = 1;

/// Room beyond twice the bytes themselves that a piece must find: buffers are accounted with their bookkeeping, and
/// the kernel asks for room before each of them.
const SLACK: i64 = 16 * 1024;

/// Of `include/uapi/asm-generic/fcntl.h`.
const O_NONBLOCK: u32 = 0o4000;

/// Size from which a piece is worth a way of its own, in bytes.
const LARGE_PIECE: u32 = 16 * 1024;
/// Smaller pieces in a row, none of them answered, that make a stream.
const LONGEST_RUN: u32 = 64;

/// Notes where the app's bytes begin. The source port is chosen and `write_seq` still stands at the SYN.
#[inline(always)]
pub fn prepare(sk: *mut bpf_sock, socket: &mut Socket) {
    if !has_shortcut() || socket.record.shortcut != standing::READY {
        return;
    }
    let sk = struct_of(sk);
    let Some(syn) = field::<u32>(sk, Offsets::tcp_write_seq()) else {
        socket.record.shortcut = standing::REFUSED;
        return;
    };
    socket.first_seq = syn.wrapping_add(1);
    if is_zerocopy(sk) {
        socket.record.shortcut = standing::ZEROCOPY;
    }
    if is_blocking(sk) {
        socket.record.shortcut = standing::BLOCKING;
    }
}

/// Lets [`send`] see what the app sends.
///
/// # Errors
/// When the kernel refuses the socket.
#[inline(always)]
pub fn admit(ctx: &SockOpsContext, socket: &mut Socket) -> Result<(), i32> {
    if !has_shortcut() || socket.record.shortcut != standing::READY {
        return Ok(());
    }
    // SAFETY: the context is valid while the program runs, and nobody else refers to it meanwhile.
    let ops = unsafe { &mut *ctx.ops };
    APPS.update(socket.record.lane(), ops, 0)?;
    socket.admitted = 1;
    Ok(())
}

/// Decides where one piece of an app's bytes goes. Never drops.
#[inline(always)]
pub fn send(ctx: &SkMsgContext) -> u32 {
    if has_shortcut() {
        redirect(ctx);
    }
    SK_PASS
}

#[inline(always)]
fn redirect(ctx: &SkMsgContext) -> Option<()> {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    let socket = socket_of(sk).filter(|socket| socket.role == role::INTERCEPTED)?;
    let key = socket.record.lane();
    // SAFETY: the element stays readable until this program ends; the one word of it is read at once.
    let relayed = unsafe { LANES.get(key)?.relayed };
    // SAFETY: the element stays readable until this program ends; the app's socket is locked, so that nobody else
    // writes to it.
    let sent = unsafe { SENT.get_ptr_mut(key)?.as_mut() }?;
    // SAFETY: the null check was made by `socket_of`.
    let state = unsafe { (&raw const (*sk).state).read_volatile() };
    let sk = struct_of(sk);
    if !may_send(state) || is_blocking(sk) || is_zerocopy(sk) || is_encrypting(sk) {
        sent.unfit += 1;
        return None;
    }
    let write_seq: u32 = field(sk, Offsets::tcp_write_seq())?;
    if write_seq.wrapping_sub(socket.first_seq) != relayed {
        sent.behind += 1;
        return None;
    }
    if UPSTREAMS.redirect_msg(ctx, key, 0) != FOUND {
        return None;
    }
    let target = target_of(ctx);
    let refused = if is_stream(sk, target, sent, ctx.size()) {
        Some(&mut sent.streamed)
    } else if has_room(target, ctx.size()) {
        None
    } else {
        Some(&mut sent.full)
    };
    if let Some(refused) = refused {
        *refused += 1;
        // No helper takes a redirect back. One to the socket itself comes to the same: the piece goes its usual way. Unless the
        // relay has just taken the socket out of the map: then the redirect stays, and is counted as one.
        if APPS.redirect_msg(ctx, key, 0) == FOUND {
            return None;
        }
    }
    sent.bytes += u64::from(ctx.size());
    sent.pieces += 1;
    Some(())
}

/// The socket that a piece was redirected to, null if that cannot be told. The context of the program is the `sk_msg`
/// itself, and the redirect helper has left its finding there.
#[inline(always)]
fn target_of(ctx: &SkMsgContext) -> *const u8 {
    field(ctx.msg.cast_const().cast(), Offsets::msg_sk_redir()).unwrap_or(ptr::null())
}

/// Whether the connection to the relay is whole. Otherwise the app gets its error, or EPIPE, from there.
#[inline(always)]
fn may_send(state: u32) -> bool {
    state == BPF_TCP_ESTABLISHED || state == BPF_TCP_CLOSE_WAIT
}

/// Whether the app sends one small piece after the other without an answer. Each would cost the shortcut what a request
/// costs it, while the relay moves many at once.
///
/// An answer has been read from the app's socket, or has left the upstream socket, past the relay perhaps.
#[inline(always)]
fn is_stream(sk: *const u8, upstream: *const u8, sent: &mut Sent, size: u32) -> bool {
    let read = |socket| field::<u32>(socket, Offsets::tcp_copied_seq()).unwrap_or(0);
    let read_seq = read(sk).wrapping_add(read(upstream));
    if read_seq != sent.read_seq || size >= LARGE_PIECE {
        sent.read_seq = read_seq;
        sent.run = 0;
    }
    let is_stream = sent.run >= LONGEST_RUN;
    if !is_stream {
        sent.run += 1;
    }
    is_stream
}

/// Whether a socket takes so many bytes at once.
#[inline(always)]
fn has_room(target: *const u8, size: u32) -> bool {
    let queued: Option<i32> = field(target, Offsets::sk_wmem_queued());
    let limit: Option<i32> = field(target, Offsets::sk_sndbuf());
    let (Some(queued), Some(limit)) = (queued, limit) else {
        return false;
    };
    i64::from(queued) + 2 * i64::from(size) + SLACK <= i64::from(limit)
}

/// Whether the app wants to be told when its buffers are free: the kernel would tell it wrong, or never.
#[inline(always)]
fn is_zerocopy(sk: *const u8) -> bool {
    field::<u64>(sk, Offsets::skc_flags()).is_none_or(|flags| flags & zerocopy_flag() != 0)
}

/// Whether calls on the socket wait, other than by polling.
#[inline(always)]
pub fn is_blocking(sk: *const u8) -> bool {
    is_nonblocking(sk) != Some(true)
}

#[inline(always)]
fn is_nonblocking(sk: *const u8) -> Option<bool> {
    let socket: *const u8 = field(sk, Offsets::sk_socket())?;
    let file: *const u8 = field(socket, Offsets::socket_file())?;
    let flags: u32 = field(file, Offsets::file_flags())?;
    Some(flags & O_NONBLOCK != 0)
}

/// Whether something above TCP works on the bytes, such as kTLS: what the program sees is plain text then.
#[inline(always)]
pub fn is_encrypting(sk: *const u8) -> bool {
    field::<u64>(sk, Offsets::icsk_ulp_ops()).is_none_or(|operations| operations != 0)
}
