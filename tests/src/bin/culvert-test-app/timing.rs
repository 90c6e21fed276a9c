//! Work that is timed by whoever does it, so that the talk with the test is no part of it. The socket does not block, as
//! those of most programs that care for time.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::fd::AsFd,
    time::Instant,
};

use culvert_tests::app::protocol::{Answer, Work};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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

fn exchange(socket: &Socket, length: usize, count: u32) -> io::Result<()> {
    let (message, mut answer) = (vec![1; length], vec![0; length]);
    for _ in 0..count {
        send(socket, &message)?;
        let mut received = 0;
        while received < length {
            received += receive(socket, answer.get_mut(received..).unwrap_or_default())?;
        }
    }
    Ok(())
}

fn upload(socket: &Socket, length: usize, count: u32) -> io::Result<()> {
    let piece = vec![1; length];
    for _ in 0..count {
        send(socket, &piece)?;
    }
    socket.shutdown(Shutdown::Write)?;
    while receive_or_end(socket, &mut [0; 64])? > 0 {}
    Ok(())
}

fn send(mut socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        sent += when(socket, PollFlags::POLLOUT, || {
            socket.write(bytes.get(sent..).unwrap_or_default())
        })?;
    }
    Ok(())
}

fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    match receive_or_end(socket, buffer)? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        received => Ok(received),
    }
}

fn receive_or_end(mut socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    when(socket, PollFlags::POLLIN, || socket.read(buffer))
}

/// Tries, and waits whenever that is not possible yet.
fn when<T>(
    socket: &Socket,
    ready: PollFlags,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(socket.as_fd(), ready)], PollTimeout::NONE)?;
            }
            done => return done,
        }
    }
}
