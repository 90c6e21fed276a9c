//! Where relayed connections go: a chain of proxies, or the original destination itself.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use secrecy::SecretString;

/// A named upstream: the proxies to pass, nearest first. No hop means the destination is dialled directly.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Name in the configuration.
    pub name: Arc<str>,
    /// Proxies on the way, nearest first.
    pub hops: Vec<Hop>,
    /// Limit for the first TCP connect.
    pub connect_timeout: Duration,
    /// Limit for all proxy handshakes of one connection together.
    pub handshake_timeout: Duration,
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

/// Marks a socket as the proxy's own before it connects, so that it is never intercepted.
pub trait Exempt: Send + Sync {
    /// Called with every upstream socket before `connect()`.
    ///
    /// # Errors
    /// When the kernel refuses; the socket must then not be connected.
    fn exempt(&self, socket: &socket2::Socket) -> std::io::Result<()>;
}
