//! The calls, one function for each that is more than a line.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::Duration,
};

use culvert_tests::{
    Payload,
    app::protocol::{Answer, Call, Family, How, Kind, Opening, Reply, Route},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{many, passing, streams, uring, visits};

/// A call that takes longer fails with `EAGAIN`, rather than to keep the test waiting for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The sockets that are open, by number.
#[derive(Default)]
pub(crate) struct App {
    sockets: Vec<Option<Socket>>,
    held: Vec<TcpStream>,
}

impl App {
    /// Does what a call says.
    pub(crate) fn answer(&mut self, call: &Call) -> Reply {
        self.perform(call).map_err(|error| {
            // What is no error of the system is an error of this program.
            error
                .raw_os_error()
                .unwrap_or_else(|| panic!("{call:?}: {error}"))
        })
    }

    fn perform(&mut self, call: &Call) -> io::Result<Answer> {
        match call {
            Call::Open(opening) => open(*opening).map(|socket| self.keep(socket)),
            Call::Bind { socket, address } => done(self.get(*socket).bind(&(*address).into())),
            Call::BindDevice { socket, device } => {
                done(self.get(*socket).bind_device(Some(device.as_bytes())))
            }
            Call::SetNonBlocking { socket, on } => done(self.get(*socket).set_nonblocking(*on)),
            Call::Connect {
                socket,
                address,
                how,
            } => done(connect(self.get(*socket), *address, how)),
            Call::Disconnect(socket) => done(disconnect(self.get(*socket))),
            Call::FinishConnect(socket) => done(finish_connect(self.get(*socket))),
            Call::PeerName(socket) => Ok(address(&self.get(*socket).peer_addr()?)),
            Call::SockName(socket) => Ok(address(&self.get(*socket).local_addr()?)),
            Call::GetOption {
                socket,
                level,
                name,
                buffer,
            } => get_option(self.get(*socket), *level, *name, buffer.clone()).map(Answer::Bytes),
            Call::SetOption {
                socket,
                level,
                name,
                value,
            } => done(set_option(self.get(*socket), *level, *name, value)),
            Call::Send { socket, bytes } => done(self.get(*socket).write_all(bytes)),
            Call::SendUrgent { socket, byte } => {
                done(self.get(*socket).send_out_of_band(&[*byte]).map(drop))
            }
            Call::Receive { socket, length } => {
                let mut bytes = Vec::new();
                let limit = u64::try_from(*length).unwrap_or(u64::MAX);
                self.get(*socket).take(limit).read_to_end(&mut bytes)?;
                Ok(Answer::Bytes(bytes))
            }
            Call::Shutdown(socket) => done(self.get(*socket).shutdown(Shutdown::Write)),
            Call::Reset(socket) => {
                self.get(*socket).set_linger(Some(Duration::ZERO))?;
                Ok(self.close(*socket))
            }
            Call::Close(socket) => Ok(self.close(*socket)),
            Call::Duplicate(socket) => {
                let socket = self.get(*socket).try_clone()?;
                Ok(self.keep(socket))
            }
            Call::Pass { socket, path } => done(passing::pass(self.get(*socket), path)),
            Call::Take(path) => passing::take(path).map(|socket| self.keep(socket)),
            Call::BecomeUser { uid, gid } => done(become_user(*uid, *gid)),
            Call::InChild(call) => self.in_child(call),
            Call::InThread(call) => self.in_thread(call),
            streams => self.perform_stream(streams),
        }
    }

    /// Calls that send much by one socket.
    fn perform_stream(&mut self, call: &Call) -> io::Result<Answer> {
        match call {
            Call::Verify {
                socket,
                seed,
                length,
            } => {
                let payload = Payload { seed: *seed };
                let verified = payload.verify(&mut self.get(*socket), *length);
                done(verified.map_err(streams::numbered))
            }
            Call::Exchange {
                socket,
                seed,
                length,
            } => done(streams::exchange(
                self.get(*socket),
                Payload { seed: *seed },
                *length,
            )),
            Call::Converse {
                socket,
                seed,
                rounds,
                length,
            } => done(streams::converse(
                self.get(*socket),
                Payload { seed: *seed },
                *rounds,
                *length,
            )),
            Call::SendUntilBlocked {
                socket,
                seed,
                length,
            } => {
                let payload = Payload { seed: *seed };
                streams::send_until_blocked(self.get(*socket), payload, *length).map(Answer::Number)
            }
            many => self.perform_many(many),
        }
    }

    /// Calls that are about whole connections.
    fn perform_many(&mut self, call: &Call) -> io::Result<Answer> {
        match call {
            Call::Probe(address) => probe(*address).map(Answer::Route),
            Call::Storm(storm) => Ok(Answer::Outcomes(many::storm(storm))),
            Call::Stress(flows) => Ok(Answer::Failures(flows.play())),
            Call::Deliver {
                address,
                count,
                length,
            } => done(many::deliver(*address, *count, *length)),
            Call::Hold { address, count } => done(many::hold(*address, *count, &mut self.held)),
            Call::ExchangeHeld { length } => done(many::exchange_held(&self.held, *length)),
            Call::Serve(address) => visits::serve(*address).map(Answer::Address),
            Call::Visit(storm) => Ok(Answer::Visits(visits::visit(storm))),
            call => Err(io::Error::other(format!("{call:?} is about one socket"))),
        }
    }

    fn in_thread(&mut self, call: &Call) -> io::Result<Answer> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| self.perform(call));
            thread.join().expect("the thread")
        })
    }

    /// The answer comes back through a pipe, by the same protocol.
    fn in_child(&mut self, call: &Call) -> io::Result<Answer> {
        let answer =
            passing::in_child(|| serde_json::to_vec(&self.answer(call)).expect("a reply as JSON"))?;
        let reply: Reply = serde_json::from_slice(&answer).expect("a reply");
        reply.map_err(io::Error::from_raw_os_error)
    }

    fn get(&self, number: u32) -> &Socket {
        let socket = self.sockets.get(number as usize).and_then(Option::as_ref);
        socket.unwrap_or_else(|| panic!("there is no socket {number}"))
    }

    fn keep(&mut self, socket: Socket) -> Answer {
        self.sockets.push(Some(socket));
        Answer::Socket(u32::try_from(self.sockets.len() - 1).expect("few sockets"))
    }

    fn close(&mut self, number: u32) -> Answer {
        let socket = self.sockets.get_mut(number as usize).and_then(Option::take);
        drop(socket.unwrap_or_else(|| panic!("there is no socket {number}")));
        Answer::Done
    }
}

fn done(result: io::Result<()>) -> io::Result<Answer> {
    result.map(|()| Answer::Done)
}

fn address(address: &SockAddr) -> Answer {
    Answer::Address(address.as_socket().expect("an internet address"))
}

fn open(Opening { family, kind }: Opening) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let (kind, protocol) = match kind {
        Kind::Tcp => (Type::STREAM, Protocol::TCP),
        Kind::Mptcp => (Type::STREAM, Protocol::MPTCP),
        Kind::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn connect(socket: &Socket, address: SocketAddr, how: &How) -> io::Result<()> {
    let address = SockAddr::from(address);
    match how {
        How::Connect => socket.connect(&address),
        How::IoUring => uring::connect(socket, &address),
        How::FastOpen(bytes) => {
            let sent = socket.send_to_with_flags(bytes, &address, libc::MSG_FASTOPEN)?;
            assert_eq!(sent, bytes.len(), "a short first write");
            Ok(())
        }
    }
}

fn disconnect(socket: &Socket) -> io::Result<()> {
    let nowhere = libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_UNSPEC).expect("a small number"),
        sa_data: [0; 14],
    };
    let length = socklen(size_of_val(&nowhere));
    // SAFETY: the address is a whole `sockaddr` and its length is right.
    check(unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) })
}

fn finish_connect(socket: &Socket) -> io::Result<()> {
    let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let patience = PollTimeout::try_from(PATIENCE).expect("a timeout");
    assert_ne!(poll(&mut waiting, patience)?, 0, "connect is not over");
    socket.take_error()?.map_or(Ok(()), Err)
}

fn get_option(socket: &Socket, level: i32, name: i32, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut length = socklen(buffer.len());
    // SAFETY: the buffer is as long as said, and both it and the length outlive the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    buffer.truncate(length as usize);
    Ok(buffer)
}

fn set_option(socket: &Socket, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the value is as long as said and outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            socklen(value.len()),
        )
    })
}

fn socklen(length: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(length).expect("a length")
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    Ok(setresuid(uid, uid, uid)?)
}

/// Asks a mirror how it sees us.
fn probe(address: SocketAddr) -> io::Result<Route> {
    let family = Family::of(address);
    let kind = Kind::Tcp;
    let mut socket = open(Opening { family, kind })?;
    socket.connect(&address.into())?;
    let mut seen = String::new();
    socket.read_to_string(&mut seen)?;
    let seen: SocketAddr = seen.parse().expect("an address from the mirror");
    let own = socket.local_addr()?.as_socket().expect("an address");
    let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    Ok(if canonical(seen) == canonical(own) {
        Route::Direct
    } else {
        Route::Relayed
    })
}
