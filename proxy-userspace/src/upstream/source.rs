//! Connections from the address of a client, so that the server sees who connects: the socket, and what its route back takes.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
};

use socket2::Socket;
use thiserror::Error;
use tokio::net::TcpStream;

use super::connect::{ConnectError, Exempt, Goal, answered, begin};
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

/// Connects from addresses of clients.
#[derive(Debug, Default)]
pub(super) struct Origins {
    foreign: Arc<Foreign>,
    places: Mutex<Places>,
}

/// A connection to be made.
struct Plan {
    ip: IpAddr,
    mark: Option<u32>,
    /// In the order that they are tried in.
    ports: Vec<SourcePort>,
}

impl Origins {
    pub(super) fn new(foreign: Arc<Foreign>) -> Self {
        Self {
            foreign,
            places: Mutex::default(),
        }
    }

    /// Connects from the client's address. Where that cannot mean anything to the server, because it is of this host's loopback
    /// and the server is elsewhere, it is our own.
    pub(super) async fn connect(
        &self,
        exempt: &dyn Exempt,
        source: Source,
        goal: Goal,
    ) -> Result<TcpStream, ConnectError> {
        let address = goal.address;
        let Some(plan) = self.plan(source, address).map_err(Box::new)? else {
            return super::connect::connect(exempt, None, goal).await;
        };
        let mut last = io::ErrorKind::AddrNotAvailable.into();
        for port in &plan.ports {
            let socket = match bound(exempt, &plan, port, address) {
                Err(ConnectError::Socket { source, .. }) if socket::is_taken(&source) => {
                    last = source;
                    continue;
                }
                bound => bound?,
            };
            let connected = match begin(socket, goal) {
                Ok(stream) => answered(stream).await,
                Err(error) => Err(error),
            };
            match connected {
                Ok(stream) => return Ok(stream),
                Err(source) => {
                    let is_taken = socket::is_taken(&source);
                    last = source;
                    if !is_taken {
                        break;
                    }
                }
            }
        }
        Err(ConnectError::Connect {
            address,
            source: last,
        })
    }

    fn plan(&self, source: Source, address: SocketAddr) -> Result<Option<Plan>, SourceError> {
        let (client, server) = (source.client.ip().to_canonical(), address.ip());
        if client.is_ipv4() != server.is_ipv4() {
            return Err(SourceError::Family { client, server });
        }
        if client.is_loopback() && !server.is_loopback() {
            return Ok(None);
        }
        let Return { mark, ephemeral } = self.foreign.now();
        let place = self.place(server)?;
        if place != Place::Loopback && mark.is_none() {
            return Err(SourceError::NoReturn { server });
        }
        // The sockets of services inherit it; answers of other hosts are given it by the program on the interface.
        let mark = mark.filter(|_| place == Place::Local);
        let met = SocketAddr::new(source.met.ip().to_canonical(), source.met.port());
        let ports = if place == Place::Local && met == address {
            unlikely(*ephemeral.start())
        } else {
            vec![source.client.port()]
        };
        let this = |port| SourcePort::This {
            port,
            ephemeral: ephemeral.clone(),
        };
        let ports = ports.into_iter().map(this);
        Ok(Some(Plan {
            ip: client,
            mark,
            ports: ports.chain([SourcePort::Any]).collect(),
        }))
    }

    fn place(&self, server: IpAddr) -> Result<Place, SourceError> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.of(server).map_err(|source| SourceError::Place {
            server,
            source: Box::new(source),
        })
    }
}

/// The first port that no privilege is needed for.
const FIRST_FREE: u16 = 1024;
/// So many ports are tried before the kernel is asked for one.
const TRIES: u16 = 4;

/// Ports that clients are rarely given, for a service behind the very address that the client is connected to. Its socket would have
/// the addresses and ports of the client's own connection, which is ours; nor may it have those of another one of that client.
fn unlikely(ephemeral: u16) -> Vec<u16> {
    let free = u64::from(ephemeral.saturating_sub(FIRST_FREE).max(1));
    let random = RandomState::new();
    let chosen = (0..TRIES).filter_map(|round| u16::try_from(random.hash_one(round) % free).ok());
    chosen.map(|port| FIRST_FREE.saturating_add(port)).collect()
}

fn bound(
    exempt: &dyn Exempt,
    plan: &Plan,
    port: &SourcePort,
    address: SocketAddr,
) -> Result<Socket, ConnectError> {
    let failed = |step| move |source| ConnectError::Socket { step, source };
    let socket = socket::for_upstream(address).map_err(failed("create a socket"))?;
    exempt
        .exempt_foreign(&socket, plan.ip, address)
        .map_err(failed("exempt a socket from interception"))?;
    if let Some(mark) = plan.mark {
        socket
            .set_mark(mark)
            .map_err(failed("mark a socket (`keep_source`)"))?;
    }
    socket::bind_foreign(&socket, plan.ip, port)
        .map_err(failed("use a client's address (`keep_source`)"))?;
    Ok(socket)
}
