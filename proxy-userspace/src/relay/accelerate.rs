//! What the sockmap path needs of the kernel side, which `intercept` brings, and when it is used.

use std::{fmt::Debug, sync::Arc, task::Waker};

use thiserror::Error;
use tokio::net::TcpStream;

/// Puts connections under the verdict program.
pub trait Accelerator: Debug + Send + Sync {
    /// Inserts both sockets of a connection. Until [`Redirect::resume`] the kernel passes everything to the relay. What was
    /// read of the bytes that wait on a socket does not come again: the program begins where the last read ended.
    ///
    /// # Errors
    /// Why it is not possible, which leaves both sockets as they were.
    fn admit(&self, downstream: &TcpStream, upstream: &TcpStream) -> Result<Pair, Refusal>;
}

/// The redirects of one connection. To be dropped when its sockets move no more bytes.
#[derive(Debug)]
pub struct Pair {
    /// From downstream to upstream.
    pub up: Arc<dyn Redirect>,
    /// From upstream to downstream.
    pub down: Arc<dyn Redirect>,
    /// Whether the kernel took both sockets. Otherwise downstream is in alone, for good, and everything is passed.
    pub whole: bool,
}

/// Why a connection stays on another path.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// There is no kernel side.
    #[error("the kernel side is off")]
    Off,
    /// A side is not the bare TCP socket.
    #[error("a side is not plain TCP")]
    NotPlain,
    /// All redirects are in use.
    #[error("all redirects are in use")]
    Full,
    /// The budget of bytes in flight is used up.
    #[error("the budget of bytes in flight is used up")]
    Budget,
    /// Somebody else has a socket in a sockmap, or it has an upper layer protocol such as kTLS.
    #[error("the kernel does not take the socket")]
    Socket,
}

/// One direction of a connection in the kernel; see [`proxy_common::Redirect`].
pub trait Redirect: Debug + Send + Sync {
    /// Bytes redirected to the target.
    fn redirected(&self) -> u64;
    /// Bytes passed to the relay.
    fn passed(&self) -> u64;
    /// Times that bytes were cut off because they had been delivered before.
    fn repairs(&self) -> u32;
    /// Whether bytes came that cannot be put into sequence.
    fn is_faulty(&self) -> bool;
    /// Whether the kernel moves the bytes now.
    fn is_in_kernel(&self) -> bool;
    /// Lets the kernel redirect up to `limit` bytes in all, and tell when there are `notice_at`.
    fn grant(&self, limit: u64, notice_at: u64);
    /// Lets the kernel take over once it has passed exactly `passed` bytes.
    fn resume(&self, passed: u64);
    /// Takes more of the budget for bytes in flight of all connections. What was taken goes back with the connection.
    fn reserve(&self, bytes: u64) -> bool;
    /// Whom to wake when the kernel has something to tell: that there are `notice_at`, that it passes bytes although it could
    /// have taken over or had, or that some cannot be put into sequence.
    fn register(&self, waker: &Waker);
    /// Whether what the kernel has to tell is passed on. Who is registered is also woken when that ends.
    fn is_heard(&self) -> bool;
}

/// What makes the relay hand a connection to the kernel.
#[derive(Clone, Debug)]
pub struct Promotion {
    /// The kernel side.
    pub accelerator: Arc<dyn Accelerator>,
    /// After so many bytes, both ways together,
    pub bytes: u64,
    /// or after so many reads from one side.
    pub reads: u32,
}

/// How much a connection has to move before it is worth a promotion: whichever it reaches first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worth {
    /// Bytes, both ways together.
    pub bytes: u64,
    /// Reads from one side.
    pub reads: u32,
}

impl Default for Worth {
    fn default() -> Self {
        Self {
            bytes: 64 * 1024,
            reads: 8,
        }
    }
}

impl Promotion {
    /// With the defaults.
    #[must_use]
    pub fn new(accelerator: Arc<dyn Accelerator>) -> Self {
        Self::when(accelerator, Worth::default())
    }

    /// Of connections that are worth it.
    #[must_use]
    pub fn when(accelerator: Arc<dyn Accelerator>, worth: Worth) -> Self {
        let Worth { bytes, reads } = worth;
        Self {
            accelerator,
            bytes,
            reads,
        }
    }
}
