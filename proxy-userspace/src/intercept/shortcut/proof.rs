//! The self-test of the shortcut, on sockets of its own over loopback and under the real program. Takes some milliseconds.
//!
//! Kernel versions are never consulted. A test that the kernel fails names what does not hold.

mod replies;

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, SkStorage, SockHash},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proxy_common::{Lane, LaneKey, Record, Socket, names, ours, role};
use socket2::{Domain, Protocol, Type};

use super::{Lanes, Office};
use crate::{
    intercept::{InterceptError, handles::duplicate, handles::map_error},
    paint::one_line,
    relay::shortcut::{Proof, Proofs, Shortcuts},
    socket::{self, repair},
};

/// How long a byte may take over loopback.
const PATIENCE: Duration = Duration::from_secs(1);
/// More than fits into all buffers of a connection over loopback, as the kernel sizes them by itself.
const TOO_MUCH: usize = 64 * 1024 * 1024;

/// Tries everything.
pub(super) fn prove(
    ebpf: &Ebpf,
    apps: SockHash<MapData, LaneKey>,
    office: &Office,
) -> Result<Proofs, InterceptError> {
    let sockets = SkStorage::try_from(Map::SkStorage(duplicate(ebpf, names::SOCKETS)?))
        .map_err(map_error("open", names::SOCKETS))?;
    let ours = SkStorage::try_from(Map::SkStorage(duplicate(ebpf, names::OURS)?))
        .map_err(map_error("open", names::OURS))?;
    let mut bench = Bench {
        apps,
        sockets,
        ours,
        lanes: Lanes::new(ebpf, office)?,
    };
    let requests = requests(&mut bench);
    let replies = if matches!(requests, Proof::Failed(_)) {
        Err("requests")
    } else if office.teller.get().is_none() {
        Err("program")
    } else {
        replies::prove(&mut bench)
    };
    Ok(Proofs { requests, replies })
}

/// Tries everything about what apps send.
fn requests(bench: &mut Bench) -> Proof {
    let tests: [(&'static str, Test); 4] = [
        ("order", order),
        ("whole messages", whole_messages),
        ("room", room),
        ("end of stream", end_of_stream),
    ];
    for (name, test) in tests {
        match bench.flow().and_then(|flow| test(&bench.lanes, &flow)) {
            Ok(true) => {}
            Ok(false) => return Proof::Failed(name),
            Err(error) => {
                tracing::warn!(
                    error = one_line(&error),
                    test = name,
                    "cannot test the shortcut"
                );
                return Proof::Failed(name);
            }
        }
    }
    match bench.flow().and_then(|flow| fionread(&flow)) {
        Ok(true) => Proof::Whole,
        _ => Proof::WithoutFionread,
    }
}

type Test = fn(&Lanes, &Flow) -> io::Result<bool>;

/// What makes a socket of ours look like an app's.
struct Bench {
    apps: SockHash<MapData, LaneKey>,
    sockets: SkStorage<MapData, Socket>,
    ours: SkStorage<MapData, u32>,
    lanes: Lanes,
}

/// Both connections of one flow, with the app's socket in the map.
struct Flow {
    key: LaneKey,
    app: TcpStream,
    relay: TcpStream,
    upstream: TcpStream,
    server: TcpStream,
}

impl Bench {
    fn flow(&mut self) -> io::Result<Flow> {
        let (app, relay) = self.pair()?;
        let (upstream, server) = self.pair()?;
        let record = Record {
            cookie: socket::cookie(&app)?,
            ..Record::default()
        };
        let key = record.lane();
        let known = Socket {
            role: role::INTERCEPTED,
            first_seq: repair::write_seq(&app)?,
            record,
            ..Socket::default()
        };
        self.sockets
            .insert(&app, known, 0)
            .map_err(io::Error::other)?;
        app.set_nonblocking(true)?;
        self.apps
            .insert(key, app.as_raw_fd(), 0)
            .map_err(io::Error::other)?;
        Ok(Flow {
            key,
            app,
            relay,
            upstream,
            server,
        })
    }

    /// Keeps our own hooks from a socket that is not connected yet.
    fn exempt(&mut self, socket: &socket2::Socket) -> io::Result<()> {
        self.ours
            .insert(socket, ours::OWN, 0)
            .map_err(io::Error::other)
    }

    /// A connection over loopback that gives up soon, and that our own hooks leave alone.
    fn pair(&mut self) -> io::Result<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let connecting = socket2::Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        self.exempt(&connecting)?;
        connecting.connect(&listener.local_addr()?.into())?;
        let connecting = TcpStream::from(connecting);
        let (accepted, _) = listener.accept()?;
        for end in [&connecting, &accepted] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(PATIENCE))?;
        }
        Ok((connecting, accepted))
    }
}

impl Flow {
    /// Whether what the app sends now arrives here, as it was sent.
    fn arrives(&self, bytes: &[u8], mut end: &TcpStream) -> io::Result<bool> {
        (&self.app).write_all(bytes)?;
        let mut arrived = vec![0; bytes.len()];
        match end.read_exact(&mut arrived) {
            Ok(()) => Ok(arrived == bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Bytes take the shortcut only when the relay has passed on all that came before.
fn order(lanes: &Lanes, flow: &Flow) -> io::Result<bool> {
    let before = flow.arrives(b"before", &flow.relay)?;
    lanes
        .open(flow.key, &flow.upstream, 0)
        .map_err(io::Error::other)?;
    let behind = flow.arrives(b"behind", &flow.relay)?;
    lanes.advance(
        flow.key,
        Lane {
            relayed: 12,
            rests: 0,
        },
    )?;
    let after = flow.arrives(b"after", &flow.server)?;
    let sent = lanes.close(flow.key, false)?;
    let closed = flow.arrives(b"closed", &flow.relay)?;
    Ok(before && behind && after && closed && (sent.bytes, sent.behind) == (5, 1))
}

/// What takes the shortcut arrives as it was sent, be it little or much.
fn whole_messages(lanes: &Lanes, flow: &Flow) -> io::Result<bool> {
    lanes
        .open(flow.key, &flow.upstream, 0)
        .map_err(io::Error::other)?;
    let much: Vec<u8> = (0..64 * 1024_u32).map(|n| n.to_le_bytes()[1]).collect();
    let arrived = flow.arrives(b"1", &flow.server)? && flow.arrives(&much, &flow.server)?;
    let sent = lanes.close(flow.key, false)?;
    Ok(arrived && sent.bytes == 1 + 64 * 1024)
}

/// A server that does not read makes the app wait at its own socket, where polling works, and nothing is lost.
fn room(lanes: &Lanes, flow: &Flow) -> io::Result<bool> {
    lanes
        .open(flow.key, &flow.upstream, 0)
        .map_err(io::Error::other)?;
    let chunk = vec![7; 256 * 1024];
    let mut taken = 0;
    let stopped = loop {
        match (&flow.app).write(&chunk) {
            Ok(written) if taken < TOO_MUCH => taken += written,
            Ok(_) => break false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
            Err(error) => return Err(error),
        }
    };
    let waits = !is_ready(&flow.app, PollFlags::POLLOUT, PollTimeout::ZERO)?;
    let sent = lanes.close(flow.key, false)?;
    let (relayed, direct) = receive(flow, taken)?;
    let all = relayed + direct == taken && u64::try_from(direct) == Ok(sent.bytes);
    Ok(stopped && waits && all && direct > 0 && sent.full > 0)
}

/// Nothing is accepted behind the end that the app has told.
fn end_of_stream(lanes: &Lanes, flow: &Flow) -> io::Result<bool> {
    lanes
        .open(flow.key, &flow.upstream, 0)
        .map_err(io::Error::other)?;
    flow.app.shutdown(std::net::Shutdown::Write)?;
    // Of the standard library's socket, which sends without SIGPIPE.
    let refused = (&flow.app).write(b"late");
    let sent = lanes.close(flow.key, false)?;
    Ok(refused.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) && sent.bytes == 0)
}

/// `FIONREAD` tells what waits.
fn fionread(flow: &Flow) -> io::Result<bool> {
    (&flow.relay).write_all(b"reply")?;
    let mut byte = [0];
    is_ready(&flow.app, PollFlags::POLLIN, PollTimeout::from(1000_u16))?;
    flow.app.peek(&mut byte)?;
    Ok(socket::unread(&flow.app)? == 5)
}

/// Reads what the app sent, and says how much of it the relay got and how much the server.
fn receive(flow: &Flow, sent: usize) -> io::Result<(usize, usize)> {
    let begun = Instant::now();
    let mut buffer = vec![0; 1024 * 1024];
    let mut take = |mut end: &TcpStream| match end.read(&mut buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        read => read,
    };
    for end in [&flow.relay, &flow.server] {
        end.set_nonblocking(true)?;
    }
    let (mut relayed, mut direct) = (0, 0);
    while relayed + direct < sent && begun.elapsed() < PATIENCE {
        relayed += take(&flow.relay)?;
        direct += take(&flow.server)?;
    }
    Ok((relayed, direct))
}

fn is_ready(socket: &TcpStream, how: PollFlags, patience: PollTimeout) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(socket.as_fd(), how)], patience)? > 0)
}
