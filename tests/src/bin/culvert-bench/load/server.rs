//! The server: does on each connection what its first bytes say.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use anyhow::{Context, Result};
use nix::sys::epoll::{EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

use super::{
    job::{BYTE, Job, LENGTH, READY},
    message::{Message, Progress},
    pattern::{CHUNK, Pattern},
    reactor::{Reactor, Task, Want, attempt},
    transfer::Transfer,
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Serves forever, at every address of this host; each thread has a listener of its own.
pub(crate) fn serve(port: u16, threads: usize) -> Result<()> {
    let listeners: Result<Vec<_>> = (0..threads).map(|_| listen(port)).collect();
    let threads: Vec<_> = listeners?
        .into_iter()
        .map(|listener| thread::spawn(move || run(listener)))
        .collect();
    for thread in threads {
        let ended = thread.join();
        ended.ok().context("a thread of the server panicked")??;
    }
    Ok(())
}

fn listen(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket
        .bind(&address.into())
        .with_context(|| format!("cannot listen on {address}"))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn run(listener: TcpListener) -> Result<()> {
    let mut reactor = Reactor::new(Shared {
        accepted: Vec::new(),
        pattern: Pattern::new(),
        buffer: vec![0; CHUNK],
    })?;
    reactor.add(Peer::Listener(listener), EpollFlags::EPOLLIN)?;
    loop {
        reactor.turn(EpollTimeout::NONE)?;
        while let Some(stream) = reactor.shared.accepted.pop() {
            let connection = Connection {
                stream,
                state: State::Asked(Vec::new()),
            };
            reactor.add(Peer::Connection(connection), EpollFlags::EPOLLIN)?;
        }
    }
}

struct Shared {
    accepted: Vec<TcpStream>,
    pattern: Pattern,
    buffer: Vec<u8>,
}

enum Peer {
    Listener(TcpListener),
    Connection(Connection),
}

struct Connection {
    stream: TcpStream,
    state: State,
}

enum State {
    /// The first bytes, as far as they are there.
    Asked(Vec<u8>),
    /// Until the client closes.
    Over,
    Exchange(Message),
    /// Until the client says so.
    Prepared(Transfer),
    Transfer(Transfer),
    Hold,
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(listener) => listener.as_fd(),
            Self::Connection(connection) => connection.stream.as_fd(),
        }
    }
}

impl Task for Peer {
    type Shared = Shared;

    fn ready(&mut self, ready: EpollFlags, shared: &mut Shared) -> io::Result<Want> {
        match self {
            Self::Listener(listener) => {
                // One at a time: others that wait make it ready again.
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    shared.accepted.push(stream);
                }
                Ok(Want::Ready(EpollFlags::EPOLLIN))
            }
            // An error of a connection ends it; what went wrong is the client's to tell, unless it cannot know.
            Self::Connection(connection) => {
                Ok(connection.go_on(ready, shared).unwrap_or_else(|error| {
                    if error.kind() == io::ErrorKind::InvalidData {
                        eprintln!("==> the server: {error}");
                    }
                    Want::End
                }))
            }
        }
    }
}

impl Connection {
    fn go_on(&mut self, ready: EpollFlags, shared: &mut Shared) -> io::Result<Want> {
        let Self { stream, state } = self;
        match state {
            State::Asked(bytes) => {
                let Some(job) = ask(stream, bytes)? else {
                    return Ok(Want::Ready(EpollFlags::EPOLLIN));
                };
                stream.write_all(&[if job == Job::Byte { BYTE } else { READY }])?;
                *state = match job {
                    Job::Byte => State::Over,
                    Job::Exchange(length) => State::Exchange(Message::new(length)),
                    Job::Transfer { up, down } => State::Prepared(Transfer::new(down, up)),
                    Job::Hold => State::Hold,
                };
            }
            State::Over => {
                if attempt(stream.read(&mut shared.buffer))? == Some(0) {
                    return Ok(Want::End);
                }
            }
            State::Exchange(message) => {
                let was_sending = message.is_sending();
                match message.go_on(stream)? {
                    Progress::Ended => return Ok(Want::End),
                    Progress::Whole if !was_sending => {
                        message.send(stream)?;
                    }
                    Progress::Whole | Progress::Under => {}
                }
            }
            State::Prepared(transfer) => {
                let mut transfer = *transfer;
                match attempt(stream.read(&mut [0]))? {
                    None => return Ok(Want::Ready(EpollFlags::EPOLLIN)),
                    Some(0) => return Ok(Want::End),
                    Some(_) if transfer.has_received_all() => transfer.extend(),
                    Some(_) => {}
                }
                *state = State::Transfer(transfer);
            }
            State::Transfer(transfer) => {
                let Shared {
                    pattern, buffer, ..
                } = shared;
                let had_all = transfer.has_received_all();
                transfer.go_on(stream, ready, pattern, buffer)?;
                if transfer.has_received_all() && !had_all {
                    transfer.extend();
                }
                if transfer.is_over() {
                    *state = State::Over;
                }
            }
            State::Hold => {}
        }
        Ok(Want::Ready(self.wanted()))
    }

    fn wanted(&self) -> EpollFlags {
        match &self.state {
            State::Asked(_) | State::Over | State::Prepared(_) => EpollFlags::EPOLLIN,
            State::Exchange(message) => message.wanted(),
            State::Transfer(transfer) => transfer.wanted(),
            State::Hold => EpollFlags::empty(),
        }
    }
}

/// Receives the first bytes; a job when they are all there. Not one byte more: the rest belongs to the job.
fn ask(mut stream: &TcpStream, bytes: &mut Vec<u8>) -> io::Result<Option<Job>> {
    let mut buffer = [0; LENGTH];
    let room = buffer.get_mut(bytes.len()..).unwrap_or_default();
    match attempt(stream.read(room))? {
        None => return Ok(None),
        Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Some(count) => bytes.extend(room.iter().take(count)),
    }
    if bytes.first() == Some(&BYTE) {
        return Ok(Some(Job::Byte));
    }
    match <&[u8; LENGTH]>::try_from(bytes.as_slice()) {
        Ok(bytes) => Job::decode(bytes).map(Some),
        Err(_) => Ok(None),
    }
}
