//! One side of a transfer.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use nix::sys::epoll::EpollFlags;

use super::{pattern::Pattern, reactor::attempt};

/// Bytes that go out and come in at the same time.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    sent: u64,
    to_send: u64,
    received: u64,
    to_receive: u64,
}

impl Transfer {
    pub(crate) fn new(to_send: u64, to_receive: u64) -> Self {
        Self {
            sent: 0,
            to_send,
            received: 0,
            to_receive,
        }
    }

    /// Sends one byte more than was agreed.
    pub(crate) fn extend(&mut self) {
        self.to_send += 1;
    }

    pub(crate) fn has_received_all(&self) -> bool {
        self.received == self.to_receive
    }

    pub(crate) fn is_over(&self) -> bool {
        self.has_received_all() && self.sent == self.to_send
    }

    pub(crate) fn wanted(&self) -> EpollFlags {
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLOUT, self.sent < self.to_send);
        wanted.set(EpollFlags::EPOLLIN, !self.has_received_all());
        wanted
    }

    /// One call each way, as far as the socket is ready.
    pub(crate) fn go_on(
        &mut self,
        mut stream: &TcpStream,
        ready: EpollFlags,
        pattern: &Pattern,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        if ready.contains(EpollFlags::EPOLLOUT) && self.sent < self.to_send {
            let bytes = pattern.at(self.sent, self.to_send - self.sent);
            self.sent += attempt(stream.write(bytes))?.unwrap_or_default() as u64;
        }
        if ready.contains(EpollFlags::EPOLLIN) && !self.has_received_all() {
            let left = usize::try_from(self.to_receive - self.received).unwrap_or(usize::MAX);
            let length = left.min(buffer.len());
            let room = buffer.get_mut(..length).unwrap_or_default();
            if let Some(count) = attempt(stream.read(room))? {
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let bytes = room.get(..count).unwrap_or_default();
                pattern.check(self.received, bytes)?;
                self.received += count as u64;
            }
        }
        Ok(())
    }
}
