//! What `culvert watch` is told of a connection that a process opens.

use crate::{Addr, BePort};

/// A connection, from `connect()` until it is known what became of that.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// When `connect()` was called, nanoseconds of `CLOCK_MONOTONIC`.
    pub begun_ns: u64,
    /// When that was answered, or given up; not known where no packet was sent.
    pub ended_ns: u64,
    /// The calling thread, `tgid << 32 | tid`, in the initial pid namespace.
    pub thread: u64,
    /// Its cgroup.
    pub cgroup_id: u64,
    /// Network namespace of the socket (`bpf_get_netns_cookie`, kernel 5.7).
    pub netns_cookie: u64,
    /// Inode number of its executable; 0 where that cannot be told.
    pub exe_inode: u64,
    /// And its device.
    pub exe_device: u64,
    /// Where the app wanted to connect.
    pub dest: Addr,
    /// Where the connection goes, after whatever hooks there are.
    pub peer: Addr,
    /// The app's own address.
    pub source: Addr,
    /// Port of `dest`.
    pub dest_port: BePort,
    /// Port of `peer`; 0 where no packet was sent.
    pub peer_port: BePort,
    /// Port of `source`; 0 where no packet was sent.
    pub source_port: BePort,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u16,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// An [`outcome`].
    pub outcome: u32,
    /// The error number of one that failed; 0 where the app gave it up.
    pub error: u32,
    /// `comm` of the thread, padded with 0.
    pub comm: [u8; 16],
}

/// What became of a connection: values of [`Sighting::outcome`].
pub mod outcome {
    /// Not known yet.
    pub const UNDER_WAY: u32 = 0;
    /// It was made.
    pub const ESTABLISHED: u32 = 1;
    /// It was not, and [`Sighting::error`](super::Sighting::error) says why.
    pub const FAILED: u32 = 2;
    /// It was not, and nothing tells why.
    pub const UNTOLD: u32 = 3;
    /// No packet of it was sent: there is no route or no port, or another hook has refused it.
    pub const UNSENT: u32 = 4;
    /// A datagram socket was given an address, which nobody answers.
    pub const ADDRESSED: u32 = 5;
}

/// Of whom is told what: bits of the one value of [`names::WATCHED`](crate::names::WATCHED).
pub mod watched {
    /// Only of processes in [`names::DESCENDANTS`](crate::names::DESCENDANTS).
    pub const DESCENDANTS: u32 = 1;
    /// Of datagram sockets, too.
    pub const DATAGRAMS: u32 = 2;
}
