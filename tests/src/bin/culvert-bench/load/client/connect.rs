//! New connections, one after the other.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Barrier,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::sys::epoll::EpollFlags;
use socket2::Socket;

use super::{Clock, Counted, begin, count};
use crate::load::{
    job::BYTE,
    reactor::{Reactor, Task, Want, attempt},
};

/// Makes connections for so long, so many at a time.
pub(super) fn run(
    address: SocketAddr,
    at_once: u32,
    duration: Duration,
    start: &Barrier,
) -> Result<Counted> {
    start.wait();
    let from = Instant::now();
    let mut reactor = Reactor::new(Clock::new(from, from + duration))?;
    for _ in 0..at_once {
        let begun = Instant::now();
        let connection = Connection {
            socket: begin(address)?,
            address,
            begun,
            is_sent: false,
        };
        reactor.add(connection, EpollFlags::EPOLLOUT)?;
    }
    count(reactor)
}

struct Connection {
    socket: Socket,
    address: SocketAddr,
    begun: Instant,
    is_sent: bool,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Task for Connection {
    type Shared = Clock;

    fn ready(&mut self, _: EpollFlags, clock: &mut Clock) -> io::Result<Want> {
        if !self.is_sent {
            // Fails with the error of `connect()` if that has failed.
            self.socket.write_all(&[BYTE])?;
            self.is_sent = true;
            return Ok(Want::Ready(EpollFlags::EPOLLIN));
        }
        match attempt(self.socket.read(&mut [0]))? {
            None => return Ok(Want::Ready(EpollFlags::EPOLLIN)),
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(_) => {}
        }
        let now = Instant::now();
        if clock.count(self.begun, now) {
            return Ok(Want::End);
        }
        // To close is part of what a connection costs, and so of the time of the next.
        self.begun = now;
        self.socket = begin(self.address)?;
        self.is_sent = false;
        Ok(Want::Reopened(EpollFlags::EPOLLOUT))
    }
}
