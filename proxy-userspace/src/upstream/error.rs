//! Why a dial failed, and whose fault it was: ours, a proxy's or the destination's.
//!
//! Messages name proxies by scheme, host and port, never by credentials, and leave the cause to
//! [`std::error::Error::source`].

use std::{fmt, io, net::SocketAddr, time::Duration};

use thiserror::Error;

use super::{Next, ResolveError, SourceError, TrustError, connect::ConnectError};
use crate::{close::CloseReason, socket};

/// Why there is no connection to the destination.
#[derive(Debug, Error)]
pub enum DialError {
    /// There was no socket to connect with: too many files, or no memory.
    #[error("cannot {step} to reach {target}; check the limits on open files and memory")]
    Socket {
        /// Who was to be reached.
        target: Target,
        /// What could not be done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Nobody is left in the network namespace to connect from.
    #[error(
        "nobody is left in the network namespace of the app, from where {target} was to be reached"
    )]
    NoSpace {
        /// Who was to be reached.
        target: Target,
    },
    /// The host name of the first hop has no address.
    #[error(
        "cannot resolve the host of {target}; check the name in the upstream's url and /etc/resolv.conf"
    )]
    Resolve {
        /// The first hop.
        target: Target,
        /// What the resolver said.
        #[source]
        source: Box<ResolveError>,
    },
    /// The first TCP connect failed.
    #[error("cannot connect to {}{}", target.at(*address), target.hint())]
    Connect {
        /// Who was to be reached.
        target: Target,
        /// The address that was tried, or the last one of several; none at a Unix socket.
        address: Option<SocketAddr>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The client's address cannot be used.
    #[error("no connection to {target}")]
    Source {
        /// Who was to be reached.
        target: Target,
        /// What is in the way.
        #[source]
        source: Box<SourceError>,
    },
    /// The first TCP connect took too long.
    #[error("no connection to {target} within the connect timeout of {limit:?}{}", target.hint())]
    ConnectTimeout {
        /// Who was to be reached.
        target: Target,
        /// The limit.
        limit: Duration,
    },
    /// An endpoint hung up before it was told who connects.
    #[error("cannot send the PROXY protocol header to {target}; check that it wants one")]
    Announce {
        /// The endpoint.
        target: Target,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The handshakes took too long.
    #[error("{hop} did not connect to {target} within the handshake timeout of {limit:?}")]
    HandshakeTimeout {
        /// The hop that owed an answer.
        hop: Target,
        /// What it was asked to connect to.
        target: Target,
        /// The limit for all hops together.
        limit: Duration,
    },
    /// A proxy will not serve us.
    #[error("{hop} refuses to connect to {target}")]
    Refused {
        /// The proxy.
        hop: Target,
        /// What it was asked to connect to.
        target: Target,
        /// Its reason.
        #[source]
        source: RefusalCause,
    },
    /// A proxy does not speak its protocol, or the connection to it broke.
    #[error("the handshake with {hop} failed; check the scheme and port in the upstream's url")]
    Protocol {
        /// The proxy.
        hop: Target,
        /// What went wrong.
        #[source]
        source: ProtocolCause,
    },
    /// TLS to a proxy failed.
    #[error(
        "TLS with {hop} failed; if its certificate is from a private authority, name that in ca_file"
    )]
    Tls {
        /// The proxy.
        hop: Target,
        /// What TLS said.
        #[source]
        source: io::Error,
    },
    /// TLS to a proxy was not even tried.
    #[error("no trust for TLS with {hop}")]
    Trust {
        /// The proxy.
        hop: Target,
        /// What is missing.
        #[source]
        source: Box<TrustError>,
    },
    /// A proxy served us, but could not reach what comes next.
    #[error("{hop} cannot connect to {target}")]
    Onward {
        /// The proxy.
        hop: Target,
        /// What it was asked to connect to.
        target: Target,
        /// What it says.
        #[source]
        source: OnwardCause,
    },
}

/// A party of a failed dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A hop, as the URL of the configuration without its credentials.
    Proxy(String),
    /// The original destination.
    Destination(SocketAddr),
    /// An endpoint of a group, as the configuration writes it.
    Endpoint(String),
}

/// Why a proxy will not serve us.
#[derive(Debug, Error)]
pub enum RefusalCause {
    /// It wants credentials and there are none.
    #[error("it wants a user name and password; add them to the upstream's url")]
    CredentialsWanted,
    /// It does not accept the credentials.
    #[error("it does not accept the user name and password")]
    CredentialsRejected,
    /// The credentials do not fit into the protocol.
    #[error("the user name and password cannot be sent: {0}")]
    CredentialsUnfit(&'static str),
    /// It wants a way to log in that is not spoken here.
    #[error("it accepts neither a user name and password nor going without")]
    LoginMethod,
    /// Its rules forbid the connection.
    #[error("its rules do not allow it")]
    Ruleset,
    /// It failed and does not say how.
    #[error("it reports a general failure; see its log")]
    Failure,
    /// It does not know the request.
    #[error("it does not support CONNECT")]
    Command,
    /// It does not know the kind of address, most often IPv6.
    #[error("it does not support this kind of address")]
    AddressType,
    /// It said so in HTTP.
    #[error("it answered CONNECT with status {0}")]
    Status(u16),
}

/// How a proxy broke its protocol.
#[derive(Debug, Error)]
pub enum ProtocolCause {
    /// It hung up instead of answering.
    #[error("it closed the connection in the middle of the handshake")]
    Closed,
    /// The connection broke.
    #[error("the connection broke in the middle of the handshake")]
    Broken(#[source] io::Error),
    /// What it said is not SOCKS5.
    #[error("its answer is not SOCKS5")]
    Socks5(#[source] tokio_socks::Error),
    /// What it said is not HTTP.
    #[error("its answer is not HTTP")]
    Http(#[source] httparse::Error),
    /// What it said is HTTP, but no answer to CONNECT.
    #[error("status {0} is no answer to CONNECT")]
    Status(u16),
    /// It does not come to an end.
    #[error("its answer is longer than {0} bytes")]
    HeadTooLong(usize),
}

/// Why a proxy could not reach what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OnwardCause {
    /// The connection was refused (SOCKS5 reply 5).
    #[error("connection refused")]
    Refused,
    /// There is no way to the network (SOCKS5 reply 3).
    #[error("network unreachable")]
    Network,
    /// There is no way to the host (SOCKS5 reply 4).
    #[error("host unreachable")]
    Host,
    /// The way is too long (SOCKS5 reply 6).
    #[error("TTL expired")]
    Ttl,
    /// It said so in HTTP (502, 503, 504).
    #[error("it answered CONNECT with status {0}")]
    Status(u16),
}

/// What one hop's handshake can run into, before the dialer adds between whom.
#[derive(Debug)]
pub(super) enum HandshakeError {
    Refused(RefusalCause),
    Protocol(ProtocolCause),
    Onward(OnwardCause),
    Tls(io::Error),
    Trust(Box<TrustError>),
}

impl DialError {
    /// The error and what caused it, in one line.
    #[must_use]
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// The reason in the close record.
    #[must_use]
    pub fn close_reason(&self) -> CloseReason {
        match self {
            Self::Socket { .. } => CloseReason::OutOfResources,
            Self::NoSpace { .. } => CloseReason::NamespaceGone,
            Self::Resolve { .. } => CloseReason::ProxyUnreachable,
            Self::Source { .. } => CloseReason::DestinationUnreachable,
            Self::Connect { target, source, .. } | Self::Announce { target, source } => {
                connect_reason(target, source)
            }
            Self::ConnectTimeout { target, .. } => match target {
                Target::Proxy(_) => CloseReason::ProxyUnreachable,
                Target::Destination(_) | Target::Endpoint(_) => CloseReason::ConnectTimeout,
            },
            Self::HandshakeTimeout { .. } => CloseReason::HandshakeTimeout,
            Self::Refused { .. } => CloseReason::ProxyRefused,
            Self::Protocol {
                source: ProtocolCause::Broken(error),
                ..
            } if socket::is_resource_exhaustion(error) => CloseReason::OutOfResources,
            Self::Protocol { .. } | Self::Tls { .. } | Self::Trust { .. } => {
                CloseReason::ProxyProtocol
            }
            Self::Onward { target, source, .. } => match (target, source) {
                (Target::Proxy(_), _) => CloseReason::ProxyUnreachable,
                (_, OnwardCause::Refused) => CloseReason::DestinationRefused,
                (_, _) => CloseReason::DestinationUnreachable,
            },
        }
    }

    /// Whether it says nothing of who was to be reached, but of whom that should have seen.
    #[must_use]
    pub const fn is_of_source(&self) -> bool {
        matches!(self, Self::Source { .. })
    }

    pub(super) fn connecting(target: Target, error: ConnectError) -> Self {
        match error {
            ConnectError::Socket { step, source } => Self::Socket {
                target,
                step,
                source,
            },
            ConnectError::NoSpace => Self::NoSpace { target },
            ConnectError::Source(source) => Self::Source { target, source },
            ConnectError::Connect { address, source } => Self::Connect {
                target,
                address: Some(address),
                source,
            },
        }
    }

    pub(super) fn handshaking(hop: Target, target: Target, error: HandshakeError) -> Self {
        match error {
            HandshakeError::Refused(source) => Self::Refused {
                hop,
                target,
                source,
            },
            HandshakeError::Protocol(source) => Self::Protocol { hop, source },
            HandshakeError::Onward(source) => Self::Onward {
                hop,
                target,
                source,
            },
            HandshakeError::Tls(source) => Self::Tls { hop, source },
            HandshakeError::Trust(source) => Self::Trust { hop, source },
        }
    }
}

fn connect_reason(target: &Target, error: &io::Error) -> CloseReason {
    if socket::is_resource_exhaustion(error) {
        return CloseReason::OutOfResources;
    }
    match (target, error.kind()) {
        (Target::Proxy(_), _) => CloseReason::ProxyUnreachable,
        // It took the connection, and reset it before we looked.
        (_, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            CloseReason::UpstreamReset
        }
        (_, io::ErrorKind::ConnectionRefused) => CloseReason::DestinationRefused,
        (_, io::ErrorKind::TimedOut) => CloseReason::ConnectTimeout,
        (_, _) => CloseReason::DestinationUnreachable,
    }
}

impl Target {
    /// The URL of a proxy does not tell which of its addresses was tried.
    fn at(&self, address: Option<SocketAddr>) -> String {
        match (self, address) {
            (Self::Proxy(_), Some(address)) => format!("{self} at {address}"),
            _ => self.to_string(),
        }
    }

    /// A destination that cannot be reached is the app's affair, a proxy that cannot is the operator's.
    const fn hint(&self) -> &'static str {
        match self {
            Self::Proxy(_) => "; check that it runs and can be reached from here",
            Self::Destination(_) | Self::Endpoint(_) => "",
        }
    }
}

impl From<Next<'_>> for Target {
    fn from(next: Next<'_>) -> Self {
        match next {
            Next::Hop(hop) => Self::Proxy(hop.to_string()),
            Next::Destination(address) => Self::Destination(address),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proxy(url) => write!(formatter, "proxy {url}"),
            Self::Destination(address) => write!(formatter, "destination {address}"),
            Self::Endpoint(name) => write!(formatter, "endpoint {name}"),
        }
    }
}

impl From<io::Error> for ProtocolCause {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Broken(error),
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::Protocol(error.into())
    }
}

impl From<ProtocolCause> for HandshakeError {
    fn from(cause: ProtocolCause) -> Self {
        Self::Protocol(cause)
    }
}
