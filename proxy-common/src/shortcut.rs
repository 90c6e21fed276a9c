//! The shortcut: an app's own socket sends straight into the upstream socket of the relay.
//!
//! The relay says how far it is ([`Lane`]), the program on the app's `send()` says what it did ([`Sent`]). Each has a
//! map of its own, so that neither overwrites what the other wrote.

/// Which connection of which socket: an app may disconnect its socket and connect it again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// The number of the app's socket (`bpf_get_socket_cookie`).
    pub cookie: u64,
    /// [`Record::connect_ns`](crate::Record::connect_ns).
    pub connect_ns: u64,
}

/// How far the relay is with an app's bytes; in the map [`LANES`](crate::names::LANES) while the lane is open.
///
/// The app's bytes may take the shortcut only while all that it sent to the relay before is in the upstream socket:
/// otherwise they would overtake.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    /// Bytes of the app that upstream has accepted from the relay, modulo 2³², as TCP counts.
    pub relayed: u32,
    /// Times that the relay has gone to rest, not to be woken but by a reply that is passed to it.
    pub rests: u32,
}

/// What an app sent while its lane was open; in the map [`SENT`](crate::names::SENT).
///
/// The program counts calls as the kernel hands them over, which is in pieces of up to 17 fragments.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes that took the shortcut.
    pub bytes: u64,
    /// Pieces that took the shortcut.
    pub pieces: u64,
    /// Pieces that went to the relay because earlier bytes were still there.
    pub behind: u64,
    /// Pieces that went to the relay because the upstream socket had no room for them.
    pub full: u64,
    /// Pieces that went to the relay because the shortcut does not suit the socket any more: it blocks, encrypts (kTLS),
    /// wants completions (`SO_ZEROCOPY`), or has ended.
    pub unfit: u64,
    /// Pieces that went to the relay because the app sent many small ones in a row, which the relay gathers.
    pub streamed: u64,
    /// Pieces that took the shortcut since an answer last came.
    pub run: u32,
    /// How far the app's socket and the upstream socket were read then: the sum of both TCP sequence numbers.
    pub read_seq: u32,
}

/// Whether an app's socket takes part, in [`Record::shortcut`](crate::Record::shortcut).
pub mod standing {
    /// The rule does not ask for it.
    pub const UNASKED: u32 = 0;
    /// It takes part.
    pub const READY: u32 = 1;
    /// An MPTCP socket, whose subflows no sockmap may hold.
    pub const MPTCP: u32 = 2;
    /// It asked for completions of its sends (`SO_ZEROCOPY`), which the kernel gets wrong for sockets in a sockmap.
    pub const ZEROCOPY: u32 = 3;
    /// The kernel refused it: the map is full, or another program's sockmap has it.
    pub const REFUSED: u32 = 4;
    /// It took part in an earlier connection, of which the kernel may still hold something.
    pub const REUSED: u32 = 5;
    /// It is not `O_NONBLOCK`: in a sockmap a blocking `recv()` gives up with EAGAIN whenever something wakes it, be it a
    /// signal, a reset or room to send (`tcp_msg_wait_data()` in `net/ipv4/tcp_bpf.c` waits once).
    pub const BLOCKING: u32 = 6;
}
