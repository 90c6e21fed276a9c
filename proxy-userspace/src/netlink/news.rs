//! Signs of life of interfaces: that one has appeared, changed or gone, or its addresses have.

use std::{convert::Infallible, future::pending, io};

use libc::{RTNLGRP_IPV4_IFADDR, RTNLGRP_LINK};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use tokio::io::{Interest, unix::AsyncFd};

use super::{LONGEST, is_one_of};

/// What the kernel tells of the network namespace that this was opened in. It does not say what has changed: that is to be looked up.
#[derive(Debug)]
pub struct News {
    /// None where the kernel tells nothing.
    socket: Option<AsyncFd<Socket>>,
    buffer: Vec<u8>,
}

impl News {
    /// Of the network namespace of this thread. To be called inside a tokio runtime.
    #[must_use]
    pub fn open() -> Self {
        let socket = subscribe().inspect_err(|error| {
            tracing::warn!(%error, "the kernel does not tell of changed interfaces; they are looked at once a second");
        });
        Self {
            socket: socket.ok(),
            buffer: Vec::with_capacity(LONGEST),
        }
    }

    /// Returns when something has happened, and at once again until [`News::clear`].
    pub async fn wait(&mut self) {
        let Some(socket) = &self.socket else {
            return pending().await;
        };
        if let Err(error) = socket
            .readable()
            .await
            .map(|mut ready| ready.retain_ready())
        {
            self.give_up(&error);
        }
    }

    /// Forgets what was told so far.
    pub fn clear(&mut self) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        let buffer = &mut self.buffer;
        // Until there is nothing more, which is an error, too.
        let ended = socket.try_io_mut(Interest::READABLE, |socket| {
            loop {
                buffer.clear();
                match socket.recv(buffer, 0) {
                    // Some were lost for lack of room.
                    Err(error) if is_one_of(&error, &[Errno::ENOBUFS, Errno::EINTR]) => {}
                    received => received.map(drop)?,
                }
            }
        });
        if let Err(error) = ended.map(|never: Infallible| match never {})
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!(%error, "changed interfaces cannot be waited for; they are looked at once a second");
        self.socket = None;
    }
}

fn subscribe() -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    for group in [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR] {
        socket.add_membership(group)?;
    }
    socket.set_non_blocking(true)?;
    // SAFETY: the socket keeps its one descriptor open until it is dropped, which the `AsyncFd` does.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(registered?)
}
