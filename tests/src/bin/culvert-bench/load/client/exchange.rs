//! Messages that are answered.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    sync::Barrier,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::sys::epoll::EpollFlags;

use super::{Clock, Counted, count, open};
use crate::load::{
    job::Job,
    message::{Message, Progress},
    reactor::{Reactor, Task, Want},
};

/// The part of the time that goes by before anything is counted.
const WARM_UP: u32 = 8;

/// Exchanges messages on so many connections for so long.
pub(super) fn run(
    address: SocketAddr,
    length: u32,
    connections: u32,
    duration: Duration,
    start: &Barrier,
) -> Result<Counted> {
    let streams: Result<Vec<_>> = (0..connections)
        .map(|_| open(address, Job::Exchange(length)))
        .collect();
    start.wait();
    let now = Instant::now();
    let clock = Clock::new(now + duration / WARM_UP, now + duration);
    let mut reactor = Reactor::new(clock)?;
    for stream in streams? {
        let mut exchange = Exchange {
            stream,
            message: Message::new(length),
            stamp: 0,
            sent_at: Instant::now(),
        };
        exchange.send()?;
        let wanted = exchange.message.wanted();
        reactor.add(exchange, wanted)?;
    }
    count(reactor)
}

struct Exchange {
    stream: TcpStream,
    message: Message,
    stamp: u8,
    sent_at: Instant,
}

impl Exchange {
    fn send(&mut self) -> io::Result<()> {
        self.stamp = self.stamp.wrapping_add(1);
        self.message.stamp(self.stamp);
        self.sent_at = Instant::now();
        self.message.send(&self.stream).map(drop)
    }
}

impl AsFd for Exchange {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Task for Exchange {
    type Shared = Clock;

    fn ready(&mut self, _: EpollFlags, clock: &mut Clock) -> io::Result<Want> {
        let was_sending = self.message.is_sending();
        match self.message.go_on(&self.stream)? {
            Progress::Ended => return Err(io::ErrorKind::UnexpectedEof.into()),
            Progress::Whole if !was_sending => {
                if !self.message.is_stamped(self.stamp) {
                    return Err(io::Error::other("an answer to another message"));
                }
                if clock.count(self.sent_at, Instant::now()) {
                    return Ok(Want::End);
                }
                self.send()?;
            }
            Progress::Whole | Progress::Under => {}
        }
        Ok(Want::Ready(self.message.wanted()))
    }
}
