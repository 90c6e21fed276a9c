//! A message on its way: received to the end, then sent to the end, or the other way round.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use nix::sys::epoll::EpollFlags;

use super::reactor::attempt;

/// One message of a fixed length.
pub(crate) struct Message {
    bytes: Vec<u8>,
    done: usize,
    sending: bool,
}

/// How far a message is.
#[derive(PartialEq, Eq)]
pub(crate) enum Progress {
    /// Not whole yet.
    Under,
    /// Whole.
    Whole,
    /// The stream has ended.
    Ended,
}

impl Message {
    pub(crate) fn new(length: u32) -> Self {
        Self {
            bytes: vec![0; length as usize],
            done: 0,
            sending: false,
        }
    }

    /// What its first and last byte are.
    pub(crate) fn is_stamped(&self, stamp: u8) -> bool {
        self.bytes.first() == Some(&stamp) && self.bytes.last() == Some(&stamp)
    }

    /// Sets its first and last byte.
    pub(crate) fn stamp(&mut self, stamp: u8) {
        if let Some(first) = self.bytes.first_mut() {
            *first = stamp;
        }
        if let Some(last) = self.bytes.last_mut() {
            *last = stamp;
        }
    }

    /// Begins to send it; what is left is sent by [`Self::go_on`].
    pub(crate) fn send(&mut self, stream: &TcpStream) -> io::Result<Progress> {
        self.sending = true;
        self.go_on(stream)
    }

    /// Whether it is being sent.
    pub(crate) fn is_sending(&self) -> bool {
        self.sending
    }

    /// Sends or receives what is possible now. When all is sent, the next is received.
    pub(crate) fn go_on(&mut self, mut stream: &TcpStream) -> io::Result<Progress> {
        let rest = self.bytes.get_mut(self.done..).unwrap_or_default();
        let moved = if self.sending {
            attempt(stream.write(rest))?
        } else {
            attempt(stream.read(rest))?
        };
        match moved {
            None => return Ok(Progress::Under),
            Some(0) => return Ok(Progress::Ended),
            Some(count) => self.done += count,
        }
        if self.done < self.bytes.len() {
            return Ok(Progress::Under);
        }
        self.done = 0;
        self.sending = false;
        Ok(Progress::Whole)
    }

    /// What has to be waited for.
    pub(crate) fn wanted(&self) -> EpollFlags {
        if self.sending {
            EpollFlags::EPOLLOUT
        } else {
            EpollFlags::EPOLLIN
        }
    }
}
