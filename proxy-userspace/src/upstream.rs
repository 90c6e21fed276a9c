//! Where relayed connections go: a chain of proxies, or the original destination itself.
//!
//! The types here say what an upstream is; [`Dialer`] makes the connection. It is called by `connection` once the
//! original destination is known, and knows neither rules nor what the connection is for.

mod connect;
mod dial;
mod error;
mod http;
mod names;
mod probe;
mod socks5;
mod source;
mod stream;
mod tls;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;

pub use self::{
    connect::{Abroad, Exempt, Goal, Made, NoExemption, Space},
    dial::{Connected, Dialer, Timings},
    error::{DialError, OnwardCause, ProtocolCause, RefusalCause, Target},
    names::{Answer, ResolveError, Service},
    probe::{HttpProbe, Probe, ProbeError, TlsProbe},
    source::{Foreign, Return, Source, SourceError},
    stream::UpstreamStream,
    tls::TrustError,
};

/// A named upstream: the proxies to pass, nearest first. No hop means the destination is dialled directly.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Name in the configuration.
    pub name: Arc<str>,
    /// Proxies on the way, nearest first.
    pub hops: Vec<Hop>,
    /// Limit for the first TCP connect, name resolution included.
    pub connect_timeout: Duration,
    /// Limit for all proxy handshakes of one connection together.
    pub handshake_timeout: Duration,
}

impl Upstream {
    /// Name of the upstream that every configuration has: no proxy at all.
    const DIRECT: &'static str = "direct";

    /// The destination itself instead, with the same patience.
    #[must_use]
    pub fn without_proxies(&self) -> Self {
        Self {
            name: Self::DIRECT.into(),
            hops: Vec::new(),
            ..self.clone()
        }
    }

    /// The address of the first proxy, where the configuration tells it without a look-up.
    #[must_use]
    pub fn entrance(&self) -> Option<SocketAddr> {
        let hop = self.hops.first()?;
        let ip = match &hop.host {
            Host::Ip(ip) => *ip,
            // RFC 6761 section 6.3.
            Host::Name(name) if name == "localhost" => Ipv4Addr::LOCALHOST.into(),
            Host::Name(_) => return None,
        };
        Some(SocketAddr::new(ip, hop.port))
    }
}

/// One proxy on the way.
#[derive(Clone, Debug)]
pub struct Hop {
    /// The protocol spoken to it.
    pub scheme: Scheme,
    /// Its host.
    pub host: Host,
    /// Its TCP port.
    pub port: u16,
    /// User name and password, where it wants them.
    pub credentials: Option<Credentials>,
    /// For [`Scheme::Https`]: a file of PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// As in a URL, without the credentials: `socks5://10.0.0.1:1080`.
impl fmt::Display for Hop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", self.scheme, Next::Hop(self))
    }
}

/// Protocol of a [`Hop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// RFC 1928, with RFC 1929 where there are credentials.
    Socks5,
    /// HTTP CONNECT (RFC 9110 section 9.3.6).
    Http,
    /// HTTP CONNECT over TLS.
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Socks5 => "socks5",
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// Host of a [`Hop`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name, resolved at each dial through the resolver's cache.
    Name(String),
}

/// User name and password for a proxy. The password never reaches `Debug`, logs or status.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password.
    pub password: SecretString,
}

/// What one hop is asked to connect to.
#[derive(Clone, Copy, Debug)]
enum Next<'a> {
    /// The proxy behind it. Its name is resolved by the hop before it, the only one that knows the network there.
    Hop(&'a Hop),
    /// The original destination.
    Destination(SocketAddr),
}

/// As in the authority of a URL: `host:port`, with IPv6 addresses in brackets.
impl fmt::Display for Next<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hop(hop) => match &hop.host {
                Host::Ip(ip) => SocketAddr::new(*ip, hop.port).fmt(formatter),
                Host::Name(name) => write!(formatter, "{name}:{}", hop.port),
            },
            Self::Destination(address) => without_scope(*address).fmt(formatter),
        }
    }
}

/// Interface numbers mean nothing on another host.
fn without_scope(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

#[cfg(test)]
mod tests;
