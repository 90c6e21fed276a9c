//! Looking on while processes connect: nothing here changes a call, a verdict or a packet.
//!
//! A sighting begins in the `connect` hook, which knows who calls, and hangs on the socket until a state of that tells what became of
//! it. A call that fails before a packet is sent (no route, refused by another hook) changes no state and has no hook of its own. It
//! is told of when its socket is closed, or used for another call, and [`CALLING`] still has it; what `connect()` returned is not
//! known then. (`fexit` programs and probes would know, but not every kernel has them or lets them be loaded, and tracepoints of
//! system calls slow down every call of every process.)

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, bpf_sock,
    },
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie,
            bpf_ktime_get_ns,
        },
    },
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use proxy_common::{BePort, Family, Sighting, outcome, watched};

use crate::{
    caller::is_tcp,
    connect::PROCEED,
    kernel::{current_exe, error_of},
    maps::{CALLING, SIGHTINGS, UNDER_WAY, UNSEEN, WATCHED, add_one, stored},
    policy::descends_from,
    sockops::{local_addr, remote, see_states, sk_of},
    version::Version,
};

const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u32 = 17;

/// Verdict of a `sockops` program; the kernel ignores it for these events.
const DONE: u32 = 1;

/// `connect()` is called.
#[inline(always)]
pub fn connect(version: &Version, ctx: &SockAddrContext) -> i32 {
    let scope = WATCHED.get(0).copied().unwrap_or(0);
    let thread = bpf_get_current_pid_tgid();
    if scope & watched::DESCENDANTS != 0 && descends_from(thread).is_none() {
        return PROCEED;
    }
    if is_tcp(ctx) {
        begin(version, ctx, thread);
    } else if scope & watched::DATAGRAMS != 0 && is_udp(ctx) {
        let mut sighting = Sighting::default();
        describe(&mut sighting, version, ctx, thread);
        sighting.protocol = IPPROTO_UDP as u16;
        sighting.outcome = outcome::ADDRESSED;
        tell(&sighting);
    }
    PROCEED
}

#[inline(always)]
fn begin(version: &Version, ctx: &SockAddrContext, thread: u64) {
    // SAFETY: a plain helper call.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    give_up(cookie);
    // SAFETY: the socket of the context is alive while the program runs, and so is its storage.
    let Some(sighting) = (unsafe { UNDER_WAY.get_or_insert_ptr_mut(ctx, None).as_mut() }) else {
        return lose();
    };
    describe(sighting, version, ctx, thread);
    sighting.protocol = IPPROTO_TCP;
    sighting.outcome = outcome::UNDER_WAY;
    let seen: &Sighting = sighting;
    let _ = CALLING.insert(cookie, seen, 0);
}

/// All that is known when `connect()` is called. The socket may have been used before.
#[inline(always)]
fn describe(sighting: &mut Sighting, version: &Version, ctx: &SockAddrContext, thread: u64) {
    let (dest, dest_port) = version.addr(ctx);
    let ids = bpf_get_current_uid_gid();
    let (inode, device) = current_exe().unwrap_or_default();
    // SAFETY: plain helper calls.
    let (now, cgroup, netns) = unsafe {
        (
            bpf_ktime_get_ns(),
            bpf_get_current_cgroup_id(),
            bpf_get_netns_cookie(ctx.as_ptr()),
        )
    };
    sighting.begun_ns = now;
    sighting.ended_ns = now;
    sighting.thread = thread;
    sighting.cgroup_id = cgroup;
    sighting.netns_cookie = netns;
    sighting.exe_inode = inode;
    sighting.exe_device = device;
    sighting.dest = dest;
    sighting.dest_port = dest_port;
    sighting.peer = dest;
    sighting.peer_port = BePort(0);
    sighting.source_port = BePort(0);
    sighting.uid = ids as u32;
    sighting.gid = (ids >> 32) as u32;
    sighting.error = 0;
    sighting.comm = bpf_get_current_comm().unwrap_or_default();
}

/// Something happens to a TCP socket.
#[inline(always)]
pub fn events(ctx: &SockOpsContext) -> u32 {
    let sk = sk_of(ctx);
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            if let Some(sighting) = under_way(sk) {
                sent(ctx, sighting);
            }
        }
        // Passive, where both sides have called `connect()`.
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            if let Some(sighting) = under_way(sk) {
                end(sighting, outcome::ESTABLISHED, 0);
            }
        }
        // The error is set before the state changes (`tcp_reset()`, `tcp_v4_err()`, `tcp_write_err()`); an app that closes its
        // socket leaves none.
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => {
            if let Some(sighting) = under_way(sk) {
                match error_of(sk) {
                    Some(error) => end(sighting, outcome::FAILED, error),
                    None => end(sighting, outcome::UNTOLD, 0),
                }
            }
        }
        _ => {}
    }
    DONE
}

/// The source port is chosen and the SYN not yet built: from here on the states of the socket tell what becomes of it.
#[inline(always)]
fn sent(ctx: &SockOpsContext, sighting: &mut Sighting) {
    let is_v4 = ctx.family() == u32::from(Family::V4);
    (sighting.peer, sighting.peer_port) = remote(ctx, is_v4);
    sighting.source = local_addr(ctx, is_v4);
    sighting.source_port = BePort::new(ctx.local_port() as u16);
    // SAFETY: a plain helper call.
    let _ = CALLING.remove(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
    see_states(ctx);
}

/// A socket is closed.
#[inline(always)]
pub fn released(ctx: &SockContext) -> i32 {
    // SAFETY: a plain helper call.
    give_up(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
    PROCEED
}

/// Tells of a call of which no packet was sent.
#[inline(always)]
fn give_up(cookie: u64) {
    if let Some(calling) = CALLING.get_ptr_mut(cookie) {
        // SAFETY: the element stays readable until this program ends, also if it is removed; nobody else uses this socket now.
        let sighting = unsafe { &mut *calling };
        sighting.outcome = outcome::UNSENT;
        tell(sighting);
        let _ = CALLING.remove(cookie);
    }
}

#[inline(always)]
fn is_udp(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    kind == SOCK_DGRAM && protocol == IPPROTO_UDP
}

/// The sighting of a socket, as long as its outcome is not told.
#[inline(always)]
fn under_way(sk: *mut bpf_sock) -> Option<&'static mut Sighting> {
    stored(&raw const UNDER_WAY, sk).filter(|sighting| sighting.outcome == outcome::UNDER_WAY)
}

/// Tells the outcome, once.
#[inline(always)]
fn end(sighting: &mut Sighting, outcome: u32, error: u32) {
    // SAFETY: no arguments, a plain number out.
    sighting.ended_ns = unsafe { bpf_ktime_get_ns() };
    sighting.outcome = outcome;
    sighting.error = error;
    tell(sighting);
}

#[inline(always)]
fn tell(sighting: &Sighting) {
    if SIGHTINGS.output(sighting, 0).is_err() {
        lose();
    }
}

/// There is no room to tell of it, or to remember it.
#[inline(always)]
fn lose() {
    add_one(UNSEEN.get_ptr_mut(0));
}
