//! What culvert's eBPF programs and its daemon agree on.
//!
//! Every type that crosses the kernel boundary, every map and program name, and the functions that decide about a
//! connection: [`decide()`] about one that a process of this host opens, [`select()`] about one that arrives, [`transit()`] about
//! one that passes through, [`draw()`] about where one goes that is balanced without the relay. No allocation, no strings, no policy of its own: `proxy-ebpf` runs them
//! over BPF maps, `proxy-userspace` over the same tables in memory.
//!
//! Rules for types here: `repr(C)`, fixed-width integers and byte arrays, no implicit padding (padding in a
//! hash key silently splits equal keys), checked at compile time in `layout`.

#![no_std]
#![expect(
    clippy::inline_always,
    reason = "what a BPF program calls without inlining becomes a function that the verifier checks on its own, without what the caller knows"
)]

mod addr;
mod counter;
mod decide;
mod draw;
mod layout;
pub mod names;
mod record;
mod redirect;
mod replies;
mod ruleset;
mod select;
mod shortcut;
mod sighting;
mod tables;
mod traces;
mod transit;

pub use addr::{Addr, BePort};
pub use counter::{COUNTERS, Counter, Hit};
pub use decide::{Decision, Subject, Tables, decide};
pub use draw::{Draws, Seat, SeatKey, Wheel, Wheels, draw};
pub use record::{OwnKey, Record, RecordKey, RuleRef, Socket, role};
pub use redirect::{KernelSide, Redirect, RelaySide, Sequence, mode};
pub use replies::{Delivery, Replies};
pub use ruleset::{MAX_RULES, RuleSet, WORDS};
pub use select::{
    Areas, Arrival, Bindings, Cell, CellKey, MAX_CANDIDATES, MAX_DEPTH, MAX_HOSTS, MAX_PORTS,
    select,
};
pub use shortcut::{Lane, LaneKey, Sent, standing};
pub use sighting::{Sighting, outcome, watched};
pub use tables::{
    Action, Dimensions, Doubts, FAST_LINK_NUMBERS, Family, FastLink, GATES, HOPS, Hop, KnownRoute,
    MAX_SPACES, MemberKey, MemberKind, Membership, Passage, Policy, PrefixKey, PrefixKind, ROUTES,
    Relay, Space, asks, fail_mode, listener, ours, relay, verb,
};
pub use traces::{PLACES, Pair, Period, Traces, beginning};
pub use transit::{Crossings, Transit, transit};

/// Version of everything in this crate. The object carries it and the daemon refuses another one.
pub const ABI_VERSION: u32 = 13;
