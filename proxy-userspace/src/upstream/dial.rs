//! From an upstream and a destination to a connection: connect to the first hop, then hand the stream from hop to hop.
//!
//! Owns the order of the steps and their time limits. What is said to a hop is up to `socks5`, `http` and `tls`.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpStream, UnixStream},
    time::{Instant, error::Elapsed, timeout, timeout_at},
};

use super::{
    Answer, DialError, Exempt, Hop, Host, Next, ResolveError, Scheme, Service, Target, Upstream,
    UpstreamStream,
    connect::{ConnectError, Goal, Space, connect},
    error::HandshakeError,
    http,
    names::{Files, Names},
    socks5,
    source::{Foreign, Origins, Source},
    tls::{self, Trust},
};

/// Makes connections to upstreams. One for each worker, or one for all: it keeps the resolver's cache and TLS sessions.
pub struct Dialer {
    exempt: Arc<dyn Exempt>,
    origins: Origins,
    names: Arc<Names>,
    trust: Arc<Trust>,
    /// Where it connects from, if that is not the daemon's network namespace.
    space: Option<Space>,
}

/// A connection whose next byte, both ways, is the app's and the destination's.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub stream: UpstreamStream,
    /// The address that was connected to: the destination's, or the first hop's. None at a Unix socket.
    pub peer: Option<SocketAddr>,
    /// What took how long.
    pub timings: Timings,
}

/// What took how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// The first TCP connect, name resolution included.
    pub connect: Duration,
    /// The handshakes with all hops; zero without any.
    pub handshake: Duration,
}

impl Dialer {
    /// A dialer whose TCP sockets are all shown to `exempt` before they connect.
    #[must_use]
    pub fn new(exempt: Arc<dyn Exempt>) -> Self {
        Self::with_files(exempt, Files::default())
    }

    /// With what connections from addresses of clients need.
    #[must_use]
    pub fn with_foreign(mut self, foreign: Arc<Foreign>) -> Self {
        self.origins = Origins::new(foreign);
        self
    }

    /// The same that connects from another network namespace. Names are still resolved in the daemon's.
    #[must_use]
    pub fn within(&self, space: Space) -> Self {
        Self {
            exempt: Arc::clone(&self.exempt),
            origins: Origins::default(),
            names: Arc::clone(&self.names),
            trust: Arc::clone(&self.trust),
            space: Some(space),
        }
    }

    pub(super) fn with_files(exempt: Arc<dyn Exempt>, files: Files) -> Self {
        Self {
            names: Arc::new(Names::new(Arc::clone(&exempt), files)),
            exempt,
            origins: Origins::default(),
            trust: Arc::default(),
            space: None,
        }
    }

    /// Reads the certificates an upstream needs, so that a wrong `ca_file` shows at start and the first connection
    /// does not wait for the disk.
    ///
    /// # Errors
    ///
    /// [`DialError::Trust`] for the first hop without usable certificates.
    pub fn prepare(&self, upstream: &Upstream) -> Result<(), DialError> {
        let encrypted = |hop: &&Hop| hop.scheme == Scheme::Https;
        for hop in upstream.hops.iter().filter(encrypted) {
            self.trust
                .settings(hop.ca_file.as_deref())
                .map_err(|source| DialError::Trust {
                    hop: Target::from(Next::Hop(hop)),
                    source: Box::new(source),
                })?;
        }
        Ok(())
    }

    /// Connects to a destination by way of an upstream.
    ///
    /// An IPv4-mapped destination is dialled, and named to proxies, as the IPv4 address it is. Dropping the future
    /// closes whatever it opened.
    ///
    /// # Errors
    ///
    /// A [`DialError`] for the step that failed or took too long.
    pub fn dial(
        &self,
        upstream: &Upstream,
        destination: impl Into<Goal>,
    ) -> impl Future<Output = Result<Connected, DialError>> {
        let goal = canonical(destination);
        async move {
            if upstream.hops.is_empty() {
                let target = Next::Destination(goal.address).into();
                self.direct(upstream.connect_timeout, goal, target).await
            } else {
                // Boxed: handshakes are rare beside the direct path and many times its size.
                Box::pin(self.through(upstream, goal)).await
            }
        }
    }

    /// Connects to an endpoint of a group.
    ///
    /// # Errors
    ///
    /// A [`DialError`] when that failed or took too long.
    pub async fn connect(
        &self,
        address: impl Into<Goal>,
        limit: Duration,
    ) -> Result<Connected, DialError> {
        let goal = canonical(address);
        let target = Target::Endpoint(goal.address.to_string());
        self.direct(limit, goal, target).await
    }

    /// Connects to an endpoint at a Unix socket, which no interception is about.
    ///
    /// # Errors
    ///
    /// A [`DialError`] when that failed or took too long.
    pub async fn connect_unix(&self, path: &Path, limit: Duration) -> Result<Connected, DialError> {
        let begun = Instant::now();
        let target = || Target::Endpoint(format!("unix:{}", path.display()));
        match timeout(limit, UnixStream::connect(path)).await {
            Ok(Ok(unix)) => Ok(established(UpstreamStream::Unix(unix), None, begun)),
            Ok(Err(source)) => Err(DialError::Connect {
                target: target(),
                address: None,
                source,
            }),
            Err(_) => Err(DialError::ConnectTimeout {
                target: target(),
                limit,
            }),
        }
    }

    /// Connects to an endpoint of a group from the address of a client.
    ///
    /// # Errors
    ///
    /// A [`DialError`] when that failed or took too long, or the endpoint cannot be shown that address.
    pub async fn connect_from(
        &self,
        source: Source,
        address: impl Into<Goal>,
        limit: Duration,
    ) -> Result<Connected, DialError> {
        let goal = canonical(address);
        let target = Target::Endpoint(goal.address.to_string());
        self.direct_from(source, limit, goal, target).await
    }

    /// Connects to a destination itself from the address of a client.
    ///
    /// # Errors
    ///
    /// A [`DialError`] when that failed or took too long, or the destination cannot be shown that address.
    pub async fn dial_from(
        &self,
        source: Source,
        destination: impl Into<Goal>,
        limit: Duration,
    ) -> Result<Connected, DialError> {
        let goal = canonical(destination);
        let target = Next::Destination(goal.address).into();
        self.direct_from(source, limit, goal, target).await
    }

    /// The addresses of a name, and how long they hold.
    ///
    /// # Errors
    ///
    /// A [`ResolveError`] when nobody knows any.
    pub async fn resolve(&self, name: &str) -> Result<Answer<IpAddr>, ResolveError> {
        self.names.resolve(name).await
    }

    /// The hosts of a service by its SRV records, and how long they hold.
    ///
    /// # Errors
    ///
    /// A [`ResolveError`] when nobody knows any.
    pub async fn services(&self, name: &str) -> Result<Answer<Service>, ResolveError> {
        self.names.services(name).await
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    async fn direct(
        &self,
        limit: Duration,
        goal: Goal,
        target: Target,
    ) -> Result<Connected, DialError> {
        let begun = Instant::now();
        let attempt = connect(self.exempt.as_ref(), self.space.as_ref(), goal);
        let connected = timeout(limit, attempt).await;
        first(connected, begun, limit, goal.address, target)
    }

    async fn direct_from(
        &self,
        source: Source,
        limit: Duration,
        goal: Goal,
        target: Target,
    ) -> Result<Connected, DialError> {
        let begun = Instant::now();
        let attempt = self.origins.connect(self.exempt.as_ref(), source, goal);
        let connected = timeout(limit, attempt).await;
        first(connected, begun, limit, goal.address, target)
    }

    async fn through(&self, upstream: &Upstream, goal: Goal) -> Result<Connected, DialError> {
        let destination = goal.address;
        let Some(first) = upstream.hops.first() else {
            let target = Next::Destination(destination).into();
            return self.direct(upstream.connect_timeout, goal, target).await;
        };
        let mut connected = self.reach(first, upstream.connect_timeout).await?;

        let begun = Instant::now();
        let limit = upstream.handshake_timeout;
        let behind = upstream.hops.iter().skip(1).map(Next::Hop);
        let asked_for = behind.chain([Next::Destination(destination)]);
        for (hop, next) in upstream.hops.iter().zip(asked_for) {
            let handshake = self.pass(hop, connected.stream, next);
            let names = || (Target::from(Next::Hop(hop)), Target::from(next));
            connected.stream = match timeout_at(begun + limit, handshake).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    let (hop, target) = names();
                    return Err(DialError::handshaking(hop, target, error));
                }
                Err(_) => {
                    let (hop, target) = names();
                    return Err(DialError::HandshakeTimeout { hop, target, limit });
                }
            };
        }
        connected.timings.handshake = begun.elapsed();
        Ok(connected)
    }

    /// Connects to the first hop: to each of its addresses in turn, until one answers.
    async fn reach(&self, hop: &Hop, limit: Duration) -> Result<Connected, DialError> {
        let begun = Instant::now();
        let deadline = begun + limit;
        let target = Next::Hop(hop);
        let too_late = || DialError::ConnectTimeout {
            target: target.into(),
            limit,
        };
        let addresses = timeout_at(deadline, self.addresses(hop))
            .await
            .map_err(|_| too_late())??;

        let mut failure = too_late();
        for (tried, ip) in addresses.iter().enumerate() {
            let address = SocketAddr::new(*ip, hop.port);
            let goal = Goal {
                address,
                // All protocols of proxies begin with a question.
                speaks_first: true,
            };
            let attempt = connect(self.exempt.as_ref(), self.space.as_ref(), goal);
            // An address that swallows packets leaves the others their share of the time.
            let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match timeout(share, attempt).await {
                Ok(Ok(tcp)) => {
                    return Ok(established(UpstreamStream::Tcp(tcp), Some(address), begun));
                }
                Ok(Err(error)) => failure = DialError::connecting(target.into(), error),
                Err(_) => failure = too_late(),
            }
        }
        Err(failure)
    }

    async fn addresses(&self, hop: &Hop) -> Result<Vec<IpAddr>, DialError> {
        match &hop.host {
            Host::Ip(ip) => Ok(vec![*ip]),
            Host::Name(name) => {
                self.names
                    .lookup(name)
                    .await
                    .map_err(|source| DialError::Resolve {
                        target: Next::Hop(hop).into(),
                        source: Box::new(source),
                    })
            }
        }
    }

    /// Gets past one hop: afterwards the stream leads to `next`.
    async fn pass(
        &self,
        hop: &Hop,
        stream: UpstreamStream,
        next: Next<'_>,
    ) -> Result<UpstreamStream, HandshakeError> {
        let mut stream = match hop.scheme {
            Scheme::Https => tls::wrap(&self.trust, hop, stream).await?,
            Scheme::Http | Scheme::Socks5 => stream,
        };
        match hop.scheme {
            Scheme::Socks5 => socks5::connect(&mut stream, hop, next).await?,
            Scheme::Http | Scheme::Https => http::connect(&mut stream, hop, next).await?,
        }
        Ok(stream)
    }
}

/// What became of the first TCP connect.
fn first(
    connected: Result<Result<TcpStream, ConnectError>, Elapsed>,
    begun: Instant,
    limit: Duration,
    address: SocketAddr,
    target: Target,
) -> Result<Connected, DialError> {
    match connected {
        Ok(Ok(tcp)) => Ok(established(UpstreamStream::Tcp(tcp), Some(address), begun)),
        Ok(Err(error)) => Err(DialError::connecting(target, error)),
        Err(_) => Err(DialError::ConnectTimeout { target, limit }),
    }
}

fn established(stream: UpstreamStream, peer: Option<SocketAddr>, begun: Instant) -> Connected {
    let timings = Timings {
        connect: begun.elapsed(),
        handshake: Duration::ZERO,
    };
    Connected {
        stream,
        peer,
        timings,
    }
}

/// The zone of a link-local address stays, the IPv6 wrapping of an IPv4 address goes.
fn canonical(goal: impl Into<Goal>) -> Goal {
    let mut goal = goal.into();
    if let IpAddr::V4(ip) = goal.address.ip().to_canonical() {
        goal.address = SocketAddr::new(ip.into(), goal.address.port());
    }
    goal
}
