//! What the verdict program and the relay tell each other about one direction of an accelerated connection.
//!
//! A redirect lies in an array that the daemon maps into its memory, so neither side needs a system call to read or write
//! it. Each half has one writer: the kernel's half is written by the verdict program under the lock of the source
//! socket, the relay's half by the one task that owns the connection. The halves have a cache line each.
//!
//! The source's bytes either are redirected to the target in the kernel (`mode::KERNEL`) or are passed to the relay,
//! which reads them and writes them on (`mode::RELAY`). The kernel leaves the first mode by itself, when the credit of
//! [`RelaySide::limit`] does not cover the next bytes or the target is gone. It goes back only when the relay has read and
//! written on exactly what was passed so far ([`RelaySide::resume_at`]), so no byte can overtake another. Leaving it, or not
//! taking over when it could, is an event.

/// One direction of a connection; element of the map [`REDIRECTS`](crate::names::REDIRECTS).
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// Written by the verdict program.
    pub kernel: KernelSide,
    /// Written by the relay.
    pub relay: RelaySide,
}

/// The half of a [`Redirect`] that the verdict program writes. The relay zeroes it before the source socket is inserted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelSide {
    /// Bytes redirected to the target.
    pub redirected: u64,
    /// Bytes passed to the relay.
    pub passed: u64,
    /// The [`RelaySide::notice_at`] that an event was sent for.
    pub noticed: u64,
    /// What comes next.
    pub sequence: Sequence,
    /// A [`mode`]; 0 before the first bytes.
    pub mode: u32,
    /// Always 0.
    pub reserved: [u32; 3],
}

/// What keeps bytes from being delivered twice: the kernel hands over what TCP queued, delivered before or not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Bytes cut off because they had been delivered before.
    pub repaired: u64,
    /// TCP sequence number of the next byte.
    pub next: u32,
    /// Whether that is known: 0 before the first bytes.
    pub is_known: u32,
    /// Times that bytes were cut off.
    pub repairs: u32,
    /// Bytes that cannot be put into sequence: the connection must be reset.
    pub faults: u32,
}

/// The half of a [`Redirect`] that the relay writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelaySide {
    /// [`KernelSide::redirected`] may not go beyond this.
    pub limit: u64,
    /// When [`KernelSide::redirected`] reaches this, an event tells the relay; once for each value.
    pub notice_at: u64,
    /// The kernel takes over when [`KernelSide::passed`] equals this. [`RelaySide::NEVER`]: it does not.
    pub resume_at: u64,
    /// Index of the target in the map [`PAIRS`](crate::names::PAIRS).
    pub target: u32,
    /// Always 0.
    pub reserved: [u32; 9],
}

impl RelaySide {
    /// No number of bytes reaches it.
    pub const NEVER: u64 = u64::MAX;
}

/// Who moves the bytes of a [`Redirect`].
pub mod mode {
    /// They are passed to the relay.
    pub const RELAY: u32 = 1;
    /// They are redirected to the target.
    pub const KERNEL: u32 = 2;
}
