//! Why a connection ended: metric label, log field and test assertion in one.

use std::fmt;

/// The reason in a close record. [`CloseReason::label`] is stable: dashboards and tests depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both sides finished and every byte was delivered.
    Done,
    /// The app reset the connection, or vanished.
    DownstreamReset,
    /// The server, or the proxy before it, reset the connection.
    UpstreamReset,
    /// No byte moved for the idle timeout.
    IdleTimeout,
    /// The daemon ended before the connection did.
    Shutdown,
    /// The upstream proxy itself could not be reached.
    ProxyUnreachable,
    /// The upstream proxy refused us (credentials, rules).
    ProxyRefused,
    /// The upstream proxy broke its protocol, or TLS to it failed.
    ProxyProtocol,
    /// The destination refused the connection.
    DestinationRefused,
    /// The destination could not be reached.
    DestinationUnreachable,
    /// Connecting to the destination took longer than the connect timeout.
    ConnectTimeout,
    /// The upstream proxies took longer than the handshake timeout, for their own sake or the destination's.
    HandshakeTimeout,
    /// The kernel had no record of it: somebody connected to the listener itself.
    NotIntercepted,
    /// The rule that selected it is gone since a reload.
    RuleGone,
    /// The daemon ran out of files or memory for it.
    OutOfResources,
    /// A trusted sender's PROXY header was missing, malformed or late.
    SenderProtocol,
    /// A client began with a PROXY header that is not trusted to say who it is.
    UntrustedHeader,
    /// Its source had as many connections to the group as it may have.
    SourceLimit,
    /// As many waited for an endpoint of the group as may.
    QueueFull,
    /// No endpoint of the group had room in time.
    QueueTimeout,
    /// The group has no endpoint: its names stand for none.
    NoEndpoint,
    /// The rule refuses what asks for that name, or for none, or cannot be read.
    NameRefused,
    /// Its endpoint or its rule was drained, and the time for that is over.
    Drained,
    /// Somebody told the daemon to end it.
    Ended,
    /// Nobody is left in the network namespace of the app, and the time for its connections is over.
    NamespaceGone,
}

impl CloseReason {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 25] = [
        Self::Done,
        Self::DownstreamReset,
        Self::UpstreamReset,
        Self::IdleTimeout,
        Self::Shutdown,
        Self::ProxyUnreachable,
        Self::ProxyRefused,
        Self::ProxyProtocol,
        Self::DestinationRefused,
        Self::DestinationUnreachable,
        Self::ConnectTimeout,
        Self::HandshakeTimeout,
        Self::NotIntercepted,
        Self::RuleGone,
        Self::OutOfResources,
        Self::SenderProtocol,
        Self::UntrustedHeader,
        Self::SourceLimit,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::NoEndpoint,
        Self::NameRefused,
        Self::Drained,
        Self::Ended,
        Self::NamespaceGone,
    ];

    /// The stable name in logs, records and counters.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::DownstreamReset => "downstream_reset",
            Self::UpstreamReset => "upstream_reset",
            Self::IdleTimeout => "idle_timeout",
            Self::Shutdown => "shutdown",
            Self::ProxyUnreachable => "proxy_unreachable",
            Self::ProxyRefused => "proxy_refused",
            Self::ProxyProtocol => "proxy_protocol",
            Self::DestinationRefused => "destination_refused",
            Self::DestinationUnreachable => "destination_unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::NotIntercepted => "not_intercepted",
            Self::RuleGone => "rule_gone",
            Self::OutOfResources => "out_of_resources",
            Self::SenderProtocol => "sender_protocol",
            Self::UntrustedHeader => "untrusted_header",
            Self::SourceLimit => "source_limit",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::NoEndpoint => "no_endpoint",
            Self::NameRefused => "name_refused",
            Self::Drained => "drained",
            Self::Ended => "ended",
            Self::NamespaceGone => "namespace_gone",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_index() {
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
