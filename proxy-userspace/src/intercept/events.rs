//! Rings by which programs wake tasks of the relay, and tell what they see.

use std::{
    convert::Infallible,
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf, ring_buf::RingBufItem},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    InterceptError,
    handles::{duplicate, map_error},
};

/// A ring, and its place in the runtime that reads it.
pub(super) struct Ring {
    ring: RingBuf<MapData>,
    readable: Option<AsyncFd<OwnedFd>>,
}

impl Ring {
    pub(super) fn new(ebpf: &Ebpf, ring: &'static str) -> Result<Self, InterceptError> {
        Ok(Self {
            ring: RingBuf::try_from(Map::RingBuf(duplicate(ebpf, ring)?))
                .map_err(map_error("open", ring))?,
            readable: None,
        })
    }

    /// Waits until there is something, or was a moment ago.
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        if self.readable.is_none() {
            let ring = self.ring.as_fd().try_clone_to_owned()?;
            // SAFETY: an `OwnedFd` keeps the file open, whatever happens to the ring.
            let readable = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
            self.readable = Some(readable);
        }
        if let Some(readable) = &self.readable {
            // Before the look, so that what comes during it is not missed.
            readable.readable().await?.clear_ready();
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Option<RingBufItem<'_>> {
        self.ring.next()
    }
}

/// What the kernel has to tell to the tasks that own something there. Each event is a number.
pub struct Events {
    ring: Ring,
    wake: Wake,
}

/// Wakes whom an event is for.
type Wake = Box<dyn Fn(u64) + Send>;

impl Events {
    pub(super) fn new(ebpf: &Ebpf, ring: &'static str, wake: Wake) -> Result<Self, InterceptError> {
        Ok(Self {
            ring: Ring::new(ebpf, ring)?,
            wake,
        })
    }

    /// Serves for good. May be dropped and called again.
    ///
    /// # Errors
    /// When the runtime does not take the descriptor.
    pub async fn serve(&mut self) -> io::Result<Infallible> {
        loop {
            self.ring.readable().await?;
            self.flush();
        }
    }

    /// Lets go of the runtime that served it, before that ends; another may serve it then.
    pub fn leave_runtime(&mut self) {
        self.ring.readable = None;
    }

    fn flush(&mut self) {
        while let Some(event) = self.ring.next() {
            if let Some(bytes) = event.first_chunk() {
                (self.wake)(u64::from_ne_bytes(*bytes));
            }
        }
    }
}
