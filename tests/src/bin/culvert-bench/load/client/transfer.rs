//! Many bytes, in one direction or both.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    sync::Barrier,
    time::Instant,
};

use anyhow::Result;
use nix::sys::epoll::EpollFlags;

use super::{PATIENCE, open};
use crate::load::{
    job::Job,
    pattern::{CHUNK, Pattern},
    reactor::{Reactor, Task, Want},
    transfer::Transfer,
};

/// Moves so many bytes each way on each connection, and returns when that began and ended.
pub(super) fn run(
    address: SocketAddr,
    up: u64,
    down: u64,
    connections: u32,
    start: &Barrier,
) -> Result<(Instant, Instant)> {
    let streams: Result<Vec<_>> = (0..connections)
        .map(|_| open(address, Job::Transfer { up, down }))
        .collect();
    let reactor = Reactor::new((Pattern::new(), vec![0; CHUNK]));
    start.wait();
    let mut reactor = reactor?;
    let begun = Instant::now();
    for mut stream in streams? {
        stream.write_all(&[0])?;
        // The server ends it by one byte more.
        let transfer = Transfer::new(up, down + 1);
        let wanted = transfer.wanted();
        reactor.add(Moving { stream, transfer }, wanted)?;
    }
    reactor.finish(PATIENCE)?;
    Ok((begun, Instant::now()))
}

struct Moving {
    stream: TcpStream,
    transfer: Transfer,
}

impl AsFd for Moving {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Task for Moving {
    type Shared = (Pattern, Vec<u8>);

    fn ready(
        &mut self,
        ready: EpollFlags,
        (pattern, buffer): &mut Self::Shared,
    ) -> io::Result<Want> {
        self.transfer.go_on(&self.stream, ready, pattern, buffer)?;
        if self.transfer.is_over() {
            return Ok(Want::End);
        }
        Ok(Want::Ready(self.transfer.wanted()))
    }
}
