//! Programs of another owner on hooks that culvert uses, too.

use std::{
    fs::File,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::net::if_::if_nametoindex;

use crate::{
    bytecode::{self, call, descriptor, instruction},
    cgroup::Cgroup,
    netns::Netns,
};

// Of `linux/bpf.h`.
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const CGROUP_INET4_CONNECT: u32 = 10;
const SK_LOOKUP: u32 = 36;
const TCX_INGRESS: u32 = 46;
/// Of `linux/pkt_cls.h`: drop, and what `linux/bpf.h` calls `TCX_NEXT`.
const SHOT: u32 = 2;
const NEXT: u32 = u32::MAX;
/// Offsets of `len` in `struct __sk_buff`, of `user_port` in `struct bpf_sock_addr`, and of `local_port` in `struct bpf_sk_lookup`.
const LENGTH: u16 = 0;
const USER_PORT: u16 = 24;
const LOCAL_PORT: u16 = 60;

/// A program on a hook, until this goes.
#[derive(Debug)]
pub struct Stranger {
    _link: OwnedFd,
}

impl Stranger {
    /// Refuses IPv4 connections of a cgroup to a port (`EPERM`), after the programs that are there, and lets others go on.
    pub fn refuses_connects(cgroup: &Cgroup, port: u16) -> Self {
        let program = load(
            PROG_TYPE_CGROUP_SOCK_ADDR,
            CGROUP_INET4_CONNECT,
            USER_PORT,
            u32::from(port.to_be()),
            [0, 1],
        );
        let cgroup = File::open(cgroup.path()).expect("a cgroup");
        Self::attach(&program, &cgroup, CGROUP_INET4_CONNECT)
    }

    /// Sends IPv4 connections of a cgroup to a port elsewhere, to another port.
    pub fn redirects_connects(cgroup: &Cgroup, port: u16, to: u16) -> Self {
        let [port, to] = [port, to].map(|port| u32::from(port.to_be()));
        let code = [
            // r0 = 1, "go on"; r2 = context.user_port
            instruction(0xb7, 0, 0, 1),
            instruction(0x61, 0x12, USER_PORT, 0),
            // if r2 == port then context.user_port = r2 = to
            instruction(0x55, 2, 2, port),
            instruction(0xb7, 2, 0, to),
            instruction(0x63, 0x21, USER_PORT, 0),
            instruction(0x95, 0, 0, 0),
        ];
        let program = bytecode::load(PROG_TYPE_CGROUP_SOCK_ADDR, CGROUP_INET4_CONNECT, &code);
        let cgroup = File::open(cgroup.path()).expect("a cgroup");
        Self::attach(&program.expect("a program"), &cgroup, CGROUP_INET4_CONNECT)
    }

    /// Drops connections that arrive in a network namespace at the port of an address, after the programs that are there, and
    /// lets others go on.
    pub fn drops_arrivals(netns: &Netns, address: SocketAddr) -> Self {
        let port = u32::from(address.port());
        let program = load(PROG_TYPE_SK_LOOKUP, SK_LOOKUP, LOCAL_PORT, port, [0, 1]);
        Self::attach(&program, netns, SK_LOOKUP)
    }

    /// Drops packets of a length, header of Ethernet included, that come in by an interface of a network namespace, after the programs
    /// that are there, and lets others go on. (Linux 6.6.)
    pub fn drops_packets(netns: &Netns, interface: &str, length: u32) -> Self {
        let answers = [SHOT, NEXT];
        let program = load(PROG_TYPE_SCHED_CLS, TCX_INGRESS, LENGTH, length, answers);
        netns.within(|| {
            let number = if_nametoindex(interface).expect("an interface");
            Self::link(&program, number, TCX_INGRESS)
        })
    }

    fn attach(program: &OwnedFd, target: &impl AsFd, kind: u32) -> Self {
        Self::link(program, target.as_fd().as_raw_fd().unsigned_abs(), kind)
    }

    fn link(program: &OwnedFd, target: u32, kind: u32) -> Self {
        let program = program.as_raw_fd().unsigned_abs();
        // SAFETY: the attributes are numbers.
        let made = unsafe { call(LINK_CREATE, &mut [program, target, kind, 0]) };
        // SAFETY: the kernel has just made it.
        let link = unsafe { descriptor(made.expect("a link")) };
        Self { _link: link }
    }
}

/// A program that gives the first answer where the word at an offset of its context is this one, and the second otherwise.
fn load(kind: u32, attach_kind: u32, offset: u16, word: u32, answers: [u32; 2]) -> OwnedFd {
    let [there, otherwise] = answers;
    let code = [
        // r0 = otherwise; r2 = context[offset]
        instruction(0xb7, 0, 0, otherwise),
        instruction(0x61, 0x12, offset, 0),
        // if r2 == word then r0 = there
        instruction(0x55, 2, 1, word),
        instruction(0xb7, 0, 0, there),
        instruction(0x95, 0, 0, 0),
    ];
    bytecode::load(kind, attach_kind, &code).expect("a program")
}
