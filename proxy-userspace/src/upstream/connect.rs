//! One TCP connection to one address, exempt from interception. The way out of the daemon.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use socket2::Socket;
use thiserror::Error;
use tokio::{io::Interest, net::TcpStream};

use super::source::SourceError;
use crate::socket;

/// Keeps the daemon's own sockets out of the daemon's own interception.
///
/// Called for every TCP socket this module tree connects, before it connects: afterwards it would be too late.
pub trait Exempt: Send + Sync {
    /// Marks a socket that is not connected yet, and is to connect there.
    ///
    /// # Errors
    ///
    /// Whatever the marking runs into; the socket is not used then.
    fn exempt(&self, socket: &Socket, to: SocketAddr) -> io::Result<()>;

    /// Marks one that is to connect from the address of a client to a server whose answers are to come back.
    ///
    /// # Errors
    ///
    /// As [`Exempt::exempt`].
    fn exempt_foreign(&self, socket: &Socket, _from: IpAddr, to: SocketAddr) -> io::Result<()> {
        self.exempt(socket, to)
    }
}

/// Marks nothing: for when nothing is intercepted.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoExemption;

impl Exempt for NoExemption {
    fn exempt(&self, _socket: &Socket, _to: SocketAddr) -> io::Result<()> {
        Ok(())
    }
}

/// What became of one attempt.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    /// There was no socket to try with.
    #[error("cannot {step}")]
    Socket {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// Nobody is left where it was to be made from.
    #[error("the network namespace of the app is gone")]
    NoSpace,
    /// The kernel or the other side said no.
    #[error("cannot connect to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// The client's address cannot be used.
    #[error(transparent)]
    Source(#[from] Box<SourceError>),
}

/// Makes sockets in other network namespaces: what a socket connects from is where it was made.
pub trait Abroad: Send + Sync {
    /// As [`socket::for_upstream`], in the network namespace of this cookie; `NotFound` when nobody was left in that.
    fn socket(&self, space: u64, address: SocketAddr) -> Made<'_>;
}

/// A socket that somebody else makes.
pub type Made<'a> = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send + 'a>>;

impl fmt::Debug for dyn Abroad {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Abroad")
    }
}

/// A network namespace that is not the daemon's.
#[derive(Clone, Debug)]
pub struct Space {
    /// Its cookie.
    pub cookie: u64,
    /// What makes sockets there.
    pub abroad: Arc<dyn Abroad>,
}

/// What to connect to.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Where it is.
    pub address: SocketAddr,
    /// Whether something is sent as soon as the connection is there. Then that carries the acknowledgement which ends the
    /// handshake, and a packet is saved. If nothing came the kernel would send it after a fifth of a second, and the server would
    /// not hear of the connection before.
    pub speaks_first: bool,
}

impl From<SocketAddr> for Goal {
    /// Somebody of whom it is not known.
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            speaks_first: false,
        }
    }
}

/// Connects, in the daemon's network namespace unless in another one.
pub(super) async fn connect(
    exempt: &dyn Exempt,
    space: Option<&Space>,
    goal: Goal,
) -> Result<TcpStream, ConnectError> {
    let address = goal.address;
    let socket = match space {
        None => unconnected(exempt, address)?,
        // Boxed: few connections are made so.
        Some(space) => Box::pin(unconnected_in(exempt, space, address)).await?,
    };
    let failed = |source| ConnectError::Connect { address, source };
    let stream = begin(socket, goal).map_err(failed)?;
    answered(stream).await.map_err(failed)
}

/// Sends the SYN.
pub(super) fn begin(socket: Socket, goal: Goal) -> io::Result<TcpStream> {
    if goal.speaks_first {
        // It only saves a packet.
        _ = socket.set_tcp_quickack(false);
    }
    match socket.connect(&goal.address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        Ok(()) | Err(_) => TcpStream::from_std(socket.into()),
    }
}

/// Waits until it is answered. Tokio's `TcpSocket::connect()` asks each time whether there was an error, where the event has told
/// already: a socket whose connection did not come about is closed for writing (`tcp_poll()` in `net/ipv4/tcp.c`).
pub(super) async fn answered(stream: TcpStream) -> io::Result<TcpStream> {
    let ready = stream.ready(Interest::WRITABLE).await?;
    match ready.is_write_closed().then(|| stream.take_error()) {
        Some(Ok(Some(error)) | Err(error)) => Err(error),
        Some(Ok(None)) | None => Ok(stream),
    }
}

/// Apart from [`connect`] so that its future holds nothing but the connect itself.
fn unconnected(exempt: &dyn Exempt, address: SocketAddr) -> Result<Socket, ConnectError> {
    let made = socket::for_upstream(address);
    exempted(exempt, made.map_err(failed("create a socket"))?, address)
}

async fn unconnected_in(
    exempt: &dyn Exempt,
    space: &Space,
    address: SocketAddr,
) -> Result<Socket, ConnectError> {
    let made = space.abroad.socket(space.cookie, address).await;
    let made = made.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ConnectError::NoSpace,
        _ => failed("create a socket in the container's network namespace")(source),
    })?;
    exempted(exempt, made, address)
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> ConnectError {
    move |source| ConnectError::Socket { step, source }
}

fn exempted(exempt: &dyn Exempt, socket: Socket, to: SocketAddr) -> Result<Socket, ConnectError> {
    exempt
        .exempt(&socket, to)
        .map_err(failed("exempt a socket from interception"))?;
    Ok(socket)
}
