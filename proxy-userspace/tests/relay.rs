//! The relay against real sockets, each case on each path, and against modelled ones.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "relay/admission.rs"]
mod admission;
#[path = "relay/bare_end.rs"]
mod bare_end;
#[path = "relay/boundaries.rs"]
mod boundaries;
#[path = "relay/credit.rs"]
mod credit;
#[path = "relay/endings.rs"]
mod endings;
#[path = "relay/gap.rs"]
mod gap;
#[path = "relay/handover.rs"]
mod handover;
#[path = "relay/idle.rs"]
mod idle;
#[path = "relay/model.rs"]
mod model;
#[path = "relay/overlap.rs"]
mod overlap;
#[path = "relay/payload.rs"]
mod payload;
#[path = "relay/ration.rs"]
mod ration;
#[path = "relay/resumption.rs"]
mod resumption;
#[path = "relay/rig.rs"]
mod rig;
#[path = "relay/scripted.rs"]
mod scripted;
#[path = "relay/sharing.rs"]
mod sharing;
#[path = "relay/sockmap.rs"]
mod sockmap;
#[path = "relay/transfers.rs"]
mod transfers;
#[path = "relay/turns.rs"]
mod turns;
#[path = "relay/urgent.rs"]
mod urgent;
