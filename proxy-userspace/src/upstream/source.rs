//! Connections from the address of a client, so that the server sees who connects: the socket, and what its route back takes.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Mutex, PoisonError},
};

use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};

use super::connect::{ConnectError, Exempt};
use crate::{
    delivery::{DeliveryError, Place, Places},
    socket::{self, SourcePort},
};

/// Who connects, as far as a server is to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The client.
    pub client: SocketAddr,
    /// What it is connected to.
    pub met: SocketAddr,
}

/// Why a server cannot be shown a client's address.
#[derive(Debug, Error)]
pub enum SourceError {
    /// They are of different families.
    #[error(
        "{server} cannot be connected to from the client's address {client}, which is of the other family"
    )]
    Family {
        /// The client.
        client: IpAddr,
        /// The server.
        server: IpAddr,
    },
    /// Answers would go to the client itself.
    #[error(
        "answers of {server} to clients' addresses do not come back here (yet); `culvert plan` tells what they need"
    )]
    NoReturn {
        /// The server.
        server: IpAddr,
    },
    /// Where the server is cannot be told.
    #[error("cannot tell where {server} is")]
    Place {
        /// The server.
        server: IpAddr,
        /// What went wrong.
        #[source]
        source: Box<DeliveryError>,
    },
}

/// What connections from addresses of clients need: the same for all workers, and known once a rule wants any.
#[derive(Debug, Default)]
pub struct Foreign {
    now: Mutex<Return>,
}

/// How answers come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return {
    /// The mark that has answers routed back here; none before there are rules for it.
    pub mark: Option<u32>,
    /// Ports that the kernel chooses from.
    pub ephemeral: RangeInclusive<u16>,
}

impl Default for Return {
    fn default() -> Self {
        Self {
            mark: None,
            // The kernel's own.
            ephemeral: 32768..=60999,
        }
    }
}

impl Foreign {
    /// From now on.
    pub fn set(&self, now: Return) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn now(&self) -> Return {
        self.now
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The first port that no privilege is needed for.
const FIRST_FREE: u16 = 1024;
/// So many ports are tried before the kernel is asked for one.
const TRIES: u32 = 4;

/// A connection to be made.
struct Plan {
    ip: IpAddr,
    mark: Option<u32>,
    ports: Vec<SourcePort>,
}

/// Connects from the client's address. Where that cannot mean anything to the server, because it is of this host's
/// loopback and the server is elsewhere, it is our own.
pub(super) async fn connect_from(
    exempt: &dyn Exempt,
    foreign: &Foreign,
    source: Source,
    address: SocketAddr,
) -> Result<TcpStream, ConnectError> {
    let Some(plan) = plan(foreign, source, address).map_err(Box::new)? else {
        return super::connect::connect(exempt, address).await;
    };
    let mut last = None;
    for port in &plan.ports {
        let socket = match bound(exempt, &plan, port, address) {
            Ok(socket) => socket,
            Err(ConnectError::Socket { source, .. }) if last_chance(&source, port) => continue,
            Err(error) => return Err(error),
        };
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(source) => {
                let is_taken = last_chance(&source, port);
                last = Some(ConnectError::Connect { address, source });
                if !is_taken {
                    break;
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::Connect {
        address,
        source: io::ErrorKind::AddrNotAvailable.into(),
    }))
}

/// Whether another port is to be tried.
fn last_chance(error: &io::Error, port: &SourcePort) -> bool {
    socket::is_taken(error) && *port != SourcePort::Any
}

fn plan(
    foreign: &Foreign,
    source: Source,
    address: SocketAddr,
) -> Result<Option<Plan>, SourceError> {
    let (client, server) = (source.client.ip().to_canonical(), address.ip());
    if client.is_ipv4() != server.is_ipv4() {
        return Err(SourceError::Family { client, server });
    }
    if client.is_loopback() && !server.is_loopback() {
        return Ok(None);
    }
    let Return { mark, ephemeral } = foreign.now();
    let this = |port| SourcePort::This {
        port,
        ephemeral: ephemeral.clone(),
    };
    let mut ports = vec![this(source.client.port()), SourcePort::Any];
    let beside = |ports: &mut Vec<_>| {
        let free = FIRST_FREE..*ephemeral.start();
        let random = RandomState::new();
        let chosen = (0..TRIES).filter_map(|round: u32| {
            let length = u64::try_from(free.len()).ok()?;
            let at = random.hash_one(round).checked_rem(length)?;
            Some(this(free.start + u16::try_from(at).ok()?))
        });
        ports.splice(0..1, chosen);
    };
    let place = Places::open()
        .and_then(|mut places| places.of(server))
        .map_err(|source| SourceError::Place {
            server,
            source: Box::new(source),
        })?;
    let mark = match place {
        Place::Loopback => None,
        Place::Local => {
            // The service's socket would have the very addresses and ports of the client's own connection, which is ours. Nor may it
            // have those of another connection of that client, so ports that clients are rarely given come first.
            if SocketAddr::new(source.met.ip().to_canonical(), source.met.port()) == address {
                beside(&mut ports);
            }
            Some(mark.ok_or(SourceError::NoReturn { server })?)
        }
        Place::Remote(_) | Place::Nowhere => {
            mark.ok_or(SourceError::NoReturn { server })?;
            None
        }
    };
    Ok(Some(Plan {
        ip: client,
        mark,
        ports,
    }))
}

fn bound(
    exempt: &dyn Exempt,
    plan: &Plan,
    port: &SourcePort,
    address: SocketAddr,
) -> Result<TcpSocket, ConnectError> {
    let failed = |step| move |source| ConnectError::Socket { step, source };
    let socket = socket::for_upstream(address).map_err(failed("create a socket"))?;
    exempt
        .exempt_foreign(&socket)
        .map_err(failed("exempt a socket from interception"))?;
    if let Some(mark) = plan.mark {
        socket
            .set_mark(mark)
            .map_err(failed("mark a socket (`keep_source`)"))?;
    }
    socket::bind_foreign(&socket, plan.ip, port)
        .map_err(failed("use a client's address (`keep_source`)"))?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}
