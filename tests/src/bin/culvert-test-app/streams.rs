//! Payloads by one socket.

use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use culvert_tests::Payload;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::calls::PATIENCE;

/// Sends and receives at the same time: a relay that waits for one before the other would be stuck.
pub(crate) fn exchange(stream: &Socket, payload: Payload, length: u64) -> io::Result<()> {
    thread::scope(|scope| {
        let (mut sending, mut receiving) = (stream, stream);
        let sender = scope.spawn(move || payload.write(&mut sending, length));
        let verified = payload.verify(&mut receiving, length);
        let sent = sender.join().expect("the thread that sends");
        match verified.map_err(numbered) {
            // Worse than whatever else there is.
            Err(error) if error.raw_os_error() == Some(libc::EBADMSG) => Err(error),
            verified => sent.and(verified),
        }
    })
}

/// An error with a number also where it is no error of the system: bytes are missing (`ENODATA`) or wrong (`EBADMSG`).
pub(crate) fn numbered(error: io::Error) -> io::Error {
    match (error.raw_os_error(), error.kind()) {
        (Some(_), _) => error,
        (None, io::ErrorKind::UnexpectedEof) => io::Error::from_raw_os_error(libc::ENODATA),
        (None, _) => io::Error::from_raw_os_error(libc::EBADMSG),
    }
}

/// Messages in turn with an echo server.
pub(crate) fn converse(
    socket: &Socket,
    payload: Payload,
    rounds: u64,
    length: usize,
) -> io::Result<()> {
    let mut message = vec![0; length];
    for offset in (0..rounds).map(|round| round * length as u64) {
        payload.fill(offset, &mut message);
        let mut rest = &*message;
        while let [_, ..] = rest {
            let sent = when_ready(socket, PollFlags::POLLOUT, |mut socket| socket.write(rest))?;
            rest = rest.get(sent..).unwrap_or_default();
        }
        let mut rest = &mut *message;
        while let [_, ..] = rest {
            let received = when_ready(socket, PollFlags::POLLIN, |mut socket| socket.read(rest))?;
            if received == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENODATA));
            }
            rest = rest.get_mut(received..).unwrap_or_default();
        }
        if payload.first_difference(offset, &message).is_some() {
            return Err(io::Error::from_raw_os_error(libc::EBADMSG));
        }
    }
    Ok(())
}

/// Makes a call, and makes it again when it would have waited and need not any more.
fn when_ready<T>(
    socket: &Socket,
    events: PollFlags,
    mut call: impl FnMut(&Socket) -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match call(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        let patience = PollTimeout::try_from(PATIENCE).expect("a timeout");
        if poll(&mut [PollFd::new(socket.as_fd(), events)], patience)? == 0 {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
    }
}

/// What is taken within a second of silence; only the silence tells that a slow receiver has stopped the stream.
pub(crate) fn send_until_blocked(
    mut socket: &Socket,
    payload: Payload,
    length: u64,
) -> io::Result<u64> {
    const SILENCE: Duration = Duration::from_secs(1);
    socket.set_write_timeout(Some(SILENCE))?;
    let mut sent = 0;
    let mut block = vec![0; 64 * 1024];
    while sent < length {
        payload.fill(sent, &mut block);
        match socket.write(&block) {
            Ok(written) => sent += written as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(sent)
}
