//! Work that is timed by whoever does it, so that the talk with the test is no part of it.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    time::Instant,
};

use culvert_tests::app::protocol::{Answer, Work};
use socket2::Socket;

/// Does it, and answers the nanoseconds.
pub(crate) fn time(socket: &Socket, work: Work) -> io::Result<Answer> {
    socket.set_tcp_nodelay(true)?;
    let begun = Instant::now();
    match work {
        Work::Exchange { length, count } => exchange(socket, length, count),
        Work::Upload { length, count } => upload(socket, length, count),
    }?;
    let nanoseconds = u64::try_from(begun.elapsed().as_nanos());
    Ok(Answer::Number(nanoseconds.expect("no five hundred years")))
}

fn exchange(mut socket: &Socket, length: usize, count: u32) -> io::Result<()> {
    let (message, mut answer) = (vec![1; length], vec![0; length]);
    for _ in 0..count {
        socket.write_all(&message)?;
        socket.read_exact(&mut answer)?;
    }
    Ok(())
}

fn upload(mut socket: &Socket, length: usize, count: u32) -> io::Result<()> {
    let piece = vec![1; length];
    for _ in 0..count {
        socket.write_all(&piece)?;
    }
    socket.shutdown(Shutdown::Write)?;
    io::copy(&mut socket, &mut io::sink()).map(drop)
}
