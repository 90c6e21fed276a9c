//! Replies past the relay: small ones go from the upstream socket straight into the app's receive queue.
//!
//! The kernel decides about each by itself: it passes one to the relay unless the app has read everything that the relay
//! ever wrote, so nothing that goes past the relay can overtake. What is left to the relay is the other way round. Bytes
//! travel into the app's queue by a worker of the kernel's. Before the relay writes, or tells the end, it asks whether
//! all of them have arrived; and before it lets go of a connection, whether the app has read them, because they would go
//! with the map that has the app's socket.

use std::{
    fmt::{self, Debug},
    future::poll_fn,
    io,
    os::fd::BorrowedFd,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream;

use super::{
    Progress,
    passage::{self, Passage, Pause},
    rest::Bell,
};

/// The replies of one connection in the kernel, until it is dropped.
pub trait Replies: Debug + Send + Sync {
    /// How far they are.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn state(&self) -> io::Result<proxy_common::Replies>;

    /// Where those are that went past the relay.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn delivery(&self) -> io::Result<Delivery>;

    /// Rung when a reply is passed to a relay that rests; nothing if nobody would ring it.
    fn bell(&self) -> Option<&Bell>;
}

/// Where replies are that went past the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Some are on their way to the app's queue.
    Travels,
    /// All of them are there.
    Arrived,
    /// The app has read them, or has closed its socket.
    Read,
    /// Bytes came that cannot be put into sequence: the last that were passed to the relay.
    Faulty,
}

/// The direction from upstream to the app, of which some bytes go past the relay.
pub(super) struct ReplyPassage {
    kernel: Arc<dyn Replies>,
    /// Bytes that the relay read.
    taken: u64,
    /// Whether all that went past the relay has arrived, and no more can, because the relay holds what was passed to it.
    settled: bool,
    pause: Pause,
}

impl ReplyPassage {
    pub(super) fn new(kernel: Arc<dyn Replies>) -> Self {
        Self {
            kernel,
            taken: 0,
            settled: false,
            pause: Pause::default(),
        }
    }
}

impl Passage for ReplyPassage {
    fn attend(&mut self, _: &Context<'_>, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn took(&mut self, bytes: usize) {
        self.taken += bytes as u64;
        self.settled = false;
    }

    fn wrote(&mut self, _: usize) {
        // Once the app has read that, replies may go past the relay again.
        self.settled = false;
    }

    fn is_settled(&mut self, _: &TcpStream) -> io::Result<bool> {
        if !self.settled {
            self.settled = match self.kernel.delivery()? {
                Delivery::Travels => false,
                Delivery::Arrived | Delivery::Read => true,
                Delivery::Faulty => return Err(out_of_sequence()),
            };
        }
        Ok(self.settled)
    }

    fn pause(&mut self) -> &mut Pause {
        &mut self.pause
    }

    fn poll_ended(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        told: bool,
    ) -> Poll<io::Result<bool>> {
        self.settled = false;
        let passed = || Ok(self.kernel.state()?.passed);
        passage::poll_ended(cx, source, told, passed, self.taken, &mut self.pause)
    }
}

impl Debug for ReplyPassage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyPassage")
            .field("taken", &self.taken)
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}

/// Resolves when the app has read what went past the relay, or has closed its socket.
pub(super) async fn until_read(kernel: &dyn Replies) {
    let mut pause = Pause::default();
    poll_fn(|cx| {
        while matches!(kernel.delivery(), Ok(Delivery::Travels | Delivery::Arrived)) {
            ready!(pause.poll(cx));
        }
        Poll::Ready(())
    })
    .await;
}

/// Counts what went past the relay.
pub(super) fn report(kernel: &dyn Replies, progress: &Progress) {
    if let Ok(state) = kernel.state() {
        progress.set_replies(&state);
    }
}

pub(super) fn out_of_sequence() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "TCP delivered bytes that are out of sequence",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::net::TcpListener;

    use super::*;

    /// Tells so many times that bytes are on their way, and then what it is told to.
    #[derive(Debug)]
    struct Kernel {
        travels: Mutex<u32>,
        then: Delivery,
        passed: u64,
    }

    impl Kernel {
        fn new(travels: u32, then: Delivery) -> Arc<Self> {
            Arc::new(Self {
                travels: Mutex::new(travels),
                then,
                passed: 3,
            })
        }
    }

    impl Replies for Kernel {
        fn state(&self) -> io::Result<proxy_common::Replies> {
            Ok(proxy_common::Replies {
                passed: self.passed,
                redirected: 5,
                ..proxy_common::Replies::default()
            })
        }

        fn delivery(&self) -> io::Result<Delivery> {
            let mut travels = self.travels.lock().unwrap();
            if *travels == 0 {
                return Ok(self.then);
            }
            *travels -= 1;
            Ok(Delivery::Travels)
        }

        fn bell(&self) -> Option<&Bell> {
            None
        }
    }

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (connecting, accepted) = tokio::join!(connecting, listener.accept());
        (connecting.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn the_relay_waits_until_replies_have_arrived() {
        let (socket, _peer) = connected().await;
        let mut passage = ReplyPassage::new(Kernel::new(2, Delivery::Arrived));
        passage.took(3);
        assert!(!passage.is_settled(&socket).unwrap());
        poll_fn(|cx| passage.poll_settled(cx, &socket))
            .await
            .unwrap();
        assert!(passage.is_settled(&socket).unwrap());
    }

    #[tokio::test]
    async fn what_the_relay_knew_is_old_once_it_has_written() {
        let (socket, _peer) = connected().await;
        let kernel = Kernel::new(0, Delivery::Arrived);
        let mut passage = ReplyPassage::new(Arc::clone(&kernel) as Arc<dyn Replies>);
        passage.took(3);
        assert!(passage.is_settled(&socket).unwrap());
        passage.wrote(3);
        *kernel.travels.lock().unwrap() = 1;
        assert!(!passage.is_settled(&socket).unwrap());
    }

    #[tokio::test]
    async fn bytes_out_of_sequence_are_not_written() {
        let (socket, _peer) = connected().await;
        let mut passage = ReplyPassage::new(Kernel::new(0, Delivery::Faulty));
        passage.took(3);
        let error = passage.is_settled(&socket).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn the_end_waits_for_what_was_passed() {
        let (socket, _peer) = connected().await;
        let mut passage = ReplyPassage::new(Kernel::new(0, Delivery::Arrived));
        passage.took(2);
        let ended = poll_fn(|cx| passage.poll_ended(cx, &socket, false))
            .await
            .unwrap();
        assert!(!ended, "a byte is missing");
        passage.took(1);
        let ended = poll_fn(|cx| passage.poll_ended(cx, &socket, false))
            .await
            .unwrap();
        assert!(ended);
    }

    #[tokio::test]
    async fn what_is_unread_is_waited_for() {
        until_read(&*Kernel::new(3, Delivery::Read)).await;
        let progress = Progress::default();
        report(&*Kernel::new(0, Delivery::Read), &progress);
        assert_eq!((progress.replies(), progress.down()), (5, 5));
    }
}
