//! The copy path: a read buffer that all connections of a thread share, and what a sink did not accept of it.
//!
//! Only the rest of a partial write gets memory of its own, so a connection on which nothing waits holds none.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

/// Size of the first reads of a connection, and of those for a slow receiver, in bytes.
pub(super) const LEAST_READ: usize = 16 * 1024;
/// Size of the reads of a connection that moves much, in bytes.
pub(super) const MOST_READ: usize = 512 * 1024;

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// The thread's read buffer, on loan. It must go back before the poll returns: what is in it is nobody's then.
pub(super) struct Scratch(Option<Box<[u8]>>);

impl Scratch {
    /// Borrows the buffer; makes one at first use, or while another loan is out.
    pub(super) fn take() -> Self {
        let lent = SCRATCH.try_with(Cell::take).ok().flatten();
        Self(Some(lent.unwrap_or_else(|| vec![0; MOST_READ].into())))
    }

    /// The first `size` bytes of it, at most [`MOST_READ`].
    pub(super) fn upto(&mut self, size: usize) -> &mut [u8] {
        let whole = self.0.as_deref_mut().unwrap_or_default();
        let size = size.min(whole.len());
        whole.split_at_mut(size).0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Fails while the thread ends, and then the buffer goes with it.
        _ = SCRATCH.try_with(|scratch| scratch.set(self.0.take()));
    }
}

/// Bytes that were read and still wait for the sink.
#[derive(Debug)]
pub(super) struct Rest {
    bytes: Vec<u8>,
    written: usize,
}

impl Rest {
    /// What still waits.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    /// The sink accepted that many more.
    pub(super) fn advance(&mut self, written: usize) {
        self.written += written;
    }
}

impl From<Vec<u8>> for Rest {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, written: 0 }
    }
}

/// Writes once. A sink that accepts nothing although it is ready would never end, so that is an error.
pub(super) fn poll_write<T: AsyncWrite + Unpin>(
    sink: &mut T,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(sink).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}
