//! Host names of proxies to addresses.
//!
//! hickory reads the system's configuration itself: the C library's resolver loads shared libraries, which a static
//! binary cannot. So `/etc/hosts` and `/etc/resolv.conf` count and `/etc/nsswitch.conf` does not. UDP queries are never
//! intercepted; TCP ones go out through [`Exempt`] like any other connection of ours.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use hickory_resolver::{
    Hosts, Resolver,
    config::ResolveHosts,
    lookup::Lookup,
    net::{
        NetError,
        runtime::{RuntimeProvider, TokioHandle, TokioTime, iocompat::AsyncIoTokioAsStd},
    },
    proto::{
        op::Query,
        rr::{Name, RData, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use thiserror::Error;
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{Exempt, Goal, connect::connect};

/// What counts when `resolv.conf` names no server, by resolv.conf(5).
const LOCAL_NAME_SERVER: &[u8] = b"\nnameserver 127.0.0.1\n";
/// How long one address family waits for the other, a little longer than the delay of RFC 8305 section 3.
const SECOND_FAMILY: Duration = Duration::from_millis(100);
/// For a TCP query when the resolver names no limit of its own.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the hosts file's word holds: it is looked at again.
const HOSTS_FILE: Duration = Duration::from_secs(5);

/// What is known of a name, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    /// What it stands for.
    pub found: Vec<T>,
    /// How long that holds.
    pub valid_for: Duration,
}

impl<T> Answer<T> {
    /// The same, made of other things.
    pub fn map<U>(self, made_of: impl FnMut(T) -> U) -> Answer<U> {
        Answer {
            found: self.found.into_iter().map(made_of).collect(),
            valid_for: self.valid_for,
        }
    }
}

/// A host that offers a service (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Its part of the connections.
    pub weight: u32,
}

/// Why a name has no address.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// A configuration file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The resolver cannot use its configuration.
    #[error("cannot use {path}")]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: NetError,
    },
    /// The name servers have no answer, or the answer is no.
    #[error("no address for {name}")]
    Lookup {
        /// The name.
        name: String,
        /// What they said.
        #[source]
        source: NetError,
    },
}

/// Where the resolver's configuration is.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
    /// Port of the name servers, which `resolv.conf` cannot say.
    pub(super) port: u16,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            port: 53,
        }
    }
}

/// The resolver, built at the first name and again when its files change.
pub(super) struct Names {
    files: Files,
    exempt: Arc<dyn Exempt>,
    built: Mutex<Option<Built>>,
}

#[derive(Clone)]
struct Built {
    of: Stamps,
    hosts: Arc<Hosts>,
    resolver: Resolver<Exempted>,
}

/// When the files were last written; no time for a file that is not there.
type Stamps = [Option<SystemTime>; 2];

impl Names {
    pub(super) fn new(exempt: Arc<dyn Exempt>, files: Files) -> Self {
        Self {
            files,
            exempt,
            built: Mutex::new(None),
        }
    }

    /// The addresses of a name, IPv6 and IPv4 in turns; never none.
    pub(super) async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        self.resolve(name).await.map(|answer| answer.found)
    }

    /// As [`Names::lookup`], with how long the answer holds.
    pub(super) async fn resolve(&self, name: &str) -> Result<Answer<IpAddr>, ResolveError> {
        let Built {
            hosts, resolver, ..
        } = self.current()?;
        let mut answer = Answer {
            found: listed(&hosts, name),
            valid_for: HOSTS_FILE,
        };
        if answer.found.is_empty() {
            answer = ask(&resolver, name).await.map_err(no_address(name))?;
        }
        answer.found = in_turns(answer.found);
        Ok(answer)
    }

    /// Where a service is offered, by its SRV records: those of the best priority.
    pub(super) async fn services(&self, name: &str) -> Result<Answer<Service>, ResolveError> {
        let Built { resolver, .. } = self.current()?;
        let lookup = resolver.srv_lookup(name).await.map_err(no_address(name))?;
        let records = lookup.answers().iter();
        let records = records.filter_map(|record| match &record.data {
            RData::SRV(record) => Some(record),
            _ => None,
        });
        let best = records.clone().map(|record| record.priority).min();
        let found = records
            .filter(|record| Some(record.priority) == best)
            .map(|record| Service {
                host: record.target.to_utf8(),
                port: record.port,
                weight: u32::from(record.weight).max(1),
            });
        Ok(Answer {
            found: found.collect(),
            valid_for: remaining(&lookup),
        })
    }

    /// Two `stat` calls a lookup keep a daemon that runs for months on the name servers of today.
    fn current(&self) -> Result<Built, ResolveError> {
        let of = [&self.files.resolv_conf, &self.files.hosts]
            .map(|path| fs::metadata(path).and_then(|file| file.modified()).ok());
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = built.as_ref().filter(|built| built.of == of) {
            return Ok(current.clone());
        }
        let new = Built {
            of,
            hosts: Arc::new(self.hosts()?),
            resolver: self.resolver()?,
        };
        *built = Some(new.clone());
        Ok(new)
    }

    fn hosts(&self) -> Result<Hosts, ResolveError> {
        let mut hosts = Hosts::default();
        let path = &self.files.hosts;
        hosts
            .read_hosts_conf(read_if_there(path)?.as_slice())
            .map_err(|source| ResolveError::Read {
                path: path.clone(),
                source,
            })?;
        Ok(hosts)
    }

    fn resolver(&self) -> Result<Resolver<Exempted>, ResolveError> {
        let path = &self.files.resolv_conf;
        let unusable = |source| ResolveError::Configuration {
            path: path.clone(),
            source,
        };
        let mut text = read_if_there(path)?;
        let mut lines = text.split(|byte| *byte == b'\n');
        if !lines.any(|line| line.starts_with(b"nameserver")) {
            text.extend_from_slice(LOCAL_NAME_SERVER);
        }
        let (mut config, mut options) = parse_resolv_conf(text).map_err(unusable)?;
        let servers = config.name_servers.iter_mut();
        for connection in servers.flat_map(|server| &mut server.connections) {
            connection.port = self.files.port;
        }
        options.use_hosts_file = ResolveHosts::Never;
        let provider = Exempted {
            exempt: Arc::clone(&self.exempt),
            handle: TokioHandle::default(),
        };
        Resolver::builder_with_config(config, provider)
            .with_options(options)
            .build()
            .map_err(unusable)
    }
}

/// What the hosts file says about a name. It is the last word: hickory would go on to ask the name servers for the
/// address family that is not listed, and wait for them.
fn listed(hosts: &Hosts, name: &str) -> Vec<IpAddr> {
    let Ok(name) = Name::from_utf8(name) else {
        return Vec::new();
    };
    [RecordType::AAAA, RecordType::A]
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
        .flat_map(|known| addresses(&known).collect::<Vec<_>>())
        .collect()
}

/// Asks for both families at once. Some name servers never answer one of the questions, which must not cost more than
/// [`SECOND_FAMILY`].
async fn ask(resolver: &Resolver<Exempted>, name: &str) -> Result<Answer<IpAddr>, NetError> {
    let mut v6 = pin!(resolver.ipv6_lookup(name));
    let mut v4 = pin!(resolver.ipv4_lookup(name));
    tokio::select! {
        first = &mut v6 => settle(first, v4).await,
        first = &mut v4 => settle(first, v6).await,
    }
}

async fn settle(
    first: Result<Lookup, NetError>,
    second: impl Future<Output = Result<Lookup, NetError>>,
) -> Result<Answer<IpAddr>, NetError> {
    let Ok(first) = first else {
        return second.await.map(|answer| Answer {
            found: addresses(&answer).collect(),
            valid_for: remaining(&answer),
        });
    };
    let mut answer = Answer {
        found: addresses(&first).collect(),
        valid_for: remaining(&first),
    };
    if let Ok(Ok(second)) = timeout(SECOND_FAMILY, second).await {
        answer.found.extend(addresses(&second));
        answer.valid_for = answer.valid_for.min(remaining(&second));
    }
    Ok(answer)
}

fn no_address(name: &str) -> impl FnOnce(NetError) -> ResolveError {
    |source| ResolveError::Lookup {
        name: name.to_owned(),
        source,
    }
}

fn remaining(lookup: &Lookup) -> Duration {
    lookup
        .valid_until()
        .saturating_duration_since(Instant::now())
}

fn addresses(lookup: &Lookup) -> impl Iterator<Item = IpAddr> {
    let records = lookup.answers().iter();
    records.filter_map(|record| record.data.ip_addr())
}

/// A file that is not there says as much as an empty one.
fn read_if_there(path: &PathBuf) -> Result<Vec<u8>, ResolveError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        outcome => outcome.map_err(|source| ResolveError::Read {
            path: path.clone(),
            source,
        }),
    }
}

/// One address family that leads nowhere costs every second attempt, not all the first ones (RFC 8305 section 4).
fn in_turns(found: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut ordered = Vec::with_capacity(found.len());
    let (v6, v4): (Vec<_>, Vec<_>) = found.into_iter().partition(IpAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    while v6.len() + v4.len() > 0 {
        ordered.extend(v6.next());
        ordered.extend(v4.next());
    }
    ordered
}

/// What hickory needs of a runtime: tokio's, but for the way TCP goes out.
#[derive(Clone)]
struct Exempted {
    exempt: Arc<dyn Exempt>,
    handle: TokioHandle,
}

/// A future as hickory's trait wants it.
type Outcome<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl RuntimeProvider for Exempted {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.handle.clone()
    }

    /// The bind address is never set by `resolv.conf`.
    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Outcome<Self::Tcp> {
        let exempt = Arc::clone(&self.exempt);
        Box::pin(async move {
            let limit = limit.unwrap_or(TCP_TIMEOUT);
            let goal = Goal {
                address: server,
                speaks_first: true,
            };
            match timeout(limit, connect(exempt.as_ref(), None, goal)).await {
                Ok(Ok(stream)) => Ok(AsyncIoTokioAsStd(stream)),
                Ok(Err(error)) => Err(io::Error::other(error)),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }

    fn bind_udp(&self, local: SocketAddr, _server: SocketAddr) -> Outcome<Self::Udp> {
        Box::pin(UdpSocket::bind(local))
    }
}
