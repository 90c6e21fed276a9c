//! One TCP connection to one address, exempt from interception. The way out of the daemon.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::Socket;
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};

use super::source::SourceError;
use crate::socket;

/// Keeps the daemon's own sockets out of the daemon's own interception.
///
/// Called for every TCP socket this module tree connects, before it connects: afterwards it would be too late.
pub trait Exempt: Send + Sync {
    /// Marks a socket that is not connected yet.
    ///
    /// # Errors
    ///
    /// Whatever the marking runs into; the socket is not used then.
    fn exempt(&self, socket: &Socket) -> io::Result<()>;

    /// Marks one that is to connect from the address of a client to a server whose answers are to come back.
    ///
    /// # Errors
    ///
    /// As [`Exempt::exempt`].
    fn exempt_foreign(&self, socket: &Socket, _from: IpAddr, _to: SocketAddr) -> io::Result<()> {
        self.exempt(socket)
    }
}

/// Marks nothing: for when nothing is intercepted.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoExemption;

impl Exempt for NoExemption {
    fn exempt(&self, _socket: &Socket) -> io::Result<()> {
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

pub(super) async fn connect(
    exempt: &dyn Exempt,
    address: SocketAddr,
) -> Result<TcpStream, ConnectError> {
    unconnected(exempt, address)?
        .connect(address)
        .await
        .map_err(|source| ConnectError::Connect { address, source })
}

/// Apart from [`connect`] so that its future holds nothing but the connect itself.
fn unconnected(exempt: &dyn Exempt, address: SocketAddr) -> Result<TcpSocket, ConnectError> {
    let failed = |step| move |source| ConnectError::Socket { step, source };
    let socket = socket::for_upstream(address).map_err(failed("create a socket"))?;
    exempt
        .exempt(&socket)
        .map_err(failed("exempt a socket from interception"))?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}
