//! Somebody else's agent that puts the sockets of a cgroup into a map of its own as soon as they are connected, as some do that
//! watch or speed up a whole machine.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use crate::{
    bytecode::{self, call, descriptor, instruction},
    cgroup::Cgroup,
};

// Of `linux/bpf.h`.
const MAP_CREATE: libc::c_int = 0;
const PROG_ATTACH: libc::c_int = 8;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_SOCKHASH: u32 = 18;
const PROG_TYPE_SOCK_OPS: u32 = 13;
const CGROUP_SOCK_OPS: u32 = 3;
const GET_SOCKET_COOKIE: u32 = 46;
const SOCK_HASH_UPDATE: u32 = 70;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
/// Sockets that it has room for.
const SOCKETS: u32 = 1000;

/// What its program sees of the sockets, and lets pass: type and attach type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// What they receive (`BPF_SK_SKB_STREAM_VERDICT`).
    Received,
    /// What they send (`BPF_SK_MSG_VERDICT`).
    Sent,
}

impl Sees {
    const fn kind(self) -> (u32, u32) {
        match self {
            Self::Received => (14, 5),
            Self::Sent => (16, 7),
        }
    }
}

/// It has the sockets that connect, or are connected to, while it is there.
#[derive(Debug)]
pub struct Agent {
    _map: OwnedFd,
    _link: OwnedFd,
}

impl Agent {
    /// Starts it.
    pub fn on(cgroup: &Cgroup, sees: Sees) -> Self {
        // SAFETY: the attributes are numbers: type, sizes of key and value, entries.
        let made = unsafe { call(MAP_CREATE, &mut [MAP_TYPE_SOCKHASH, 8, 4, SOCKETS]) };
        // SAFETY: the kernel has just made it.
        let map = unsafe { descriptor(made.expect("a map")) };
        let (kind, attach_kind) = sees.kind();
        // r0 = SK_PASS; exit
        let pass = [instruction(0xb7, 0, 0, 1), instruction(0x95, 0, 0, 0)];
        let program = bytecode::load(kind, attach_kind, &pass).expect("a program");
        let [target, passing] = [&map, &program].map(|file| number(file.as_raw_fd()));
        // SAFETY: the attributes are numbers.
        unsafe { call(PROG_ATTACH, &mut [target, passing, attach_kind, 0]) }.expect("to attach");

        let enters = bytecode::load(PROG_TYPE_SOCK_OPS, 0, &enters(target)).expect("a program");
        let cgroup = File::open(cgroup.path()).expect("a cgroup");
        let [enters, cgroup] = [enters.as_raw_fd(), cgroup.as_raw_fd()].map(number);
        // SAFETY: the attributes are numbers.
        let made = unsafe { call(LINK_CREATE, &mut [enters, cgroup, CGROUP_SOCK_OPS, 0]) };
        // SAFETY: the kernel has just made it.
        let link = unsafe { descriptor(made.expect("a link")) };
        Self {
            _map: map,
            _link: link,
        }
    }
}

fn number(descriptor: RawFd) -> u32 {
    descriptor.unsigned_abs()
}

/// Puts a socket into a map, by its cookie, when it is connected.
fn enters(map: u32) -> [u64; 16] {
    let minus_eight = 8_u32.wrapping_neg();
    [
        // r6 = context; r2 = context->op
        instruction(0xbf, 0x16, 0, 0),
        instruction(0x61, 0x12, 0, 0),
        instruction(0x15, 2, 1, ACTIVE_ESTABLISHED),
        instruction(0x55, 2, 10, PASSIVE_ESTABLISHED),
        // *(r10 - 8) = bpf_get_socket_cookie(r6)
        instruction(0xbf, 0x61, 0, 0),
        instruction(0x85, 0, 0, GET_SOCKET_COOKIE),
        instruction(0x7b, 0x0a, 8_u16.wrapping_neg(), 0),
        // bpf_sock_hash_update(r6, map, r10 - 8, BPF_ANY)
        instruction(0xbf, 0x61, 0, 0),
        instruction(0x18, 0x12, 0, map),
        instruction(0, 0, 0, 0),
        instruction(0xbf, 0xa3, 0, 0),
        instruction(0x07, 3, 0, minus_eight),
        instruction(0xb7, 4, 0, 0),
        instruction(0x85, 0, 0, SOCK_HASH_UPDATE),
        // r0 = 1; exit
        instruction(0xb7, 0, 0, 1),
        instruction(0x95, 0, 0, 0),
    ]
}
