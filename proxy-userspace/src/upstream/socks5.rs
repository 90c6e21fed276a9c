//! The client side of SOCKS5 (RFC 1928) with a user name and password (RFC 1929).
//!
//! The protocol is `tokio-socks`, which reads every reply to its last byte and never beyond; what its errors mean for
//! a connection is decided here.

use secrecy::ExposeSecret;
use tokio_socks::{Error, IntoTargetAddr, TargetAddr, tcp::Socks5Stream};

use super::{
    Hop, Host, Next, UpstreamStream,
    error::{HandshakeError, OnwardCause, ProtocolCause, RefusalCause},
    without_scope,
};

/// Asks the SOCKS5 proxy at the other end of `stream` to connect to `next`.
pub(super) async fn connect(
    stream: &mut UpstreamStream,
    hop: &Hop,
    next: Next<'_>,
) -> Result<(), HandshakeError> {
    let target = target(next)?;
    let outcome = match &hop.credentials {
        None => Socks5Stream::connect_with_socket(stream, target).await,
        Some(credentials) => {
            Socks5Stream::connect_with_password_and_socket(
                stream,
                target,
                &credentials.user,
                credentials.password.expose_secret(),
            )
            .await
        }
    };
    match outcome {
        Ok(_) => Ok(()),
        // Offered nothing but going without, so what it wants is some login.
        Err(Error::NoAcceptableAuthMethods) if hop.credentials.is_none() => {
            Err(HandshakeError::Refused(RefusalCause::CredentialsWanted))
        }
        Err(error) => Err(error.into()),
    }
}

fn target(next: Next<'_>) -> Result<TargetAddr<'_>, Error> {
    match next {
        Next::Hop(hop) => match &hop.host {
            Host::Ip(ip) => (*ip, hop.port).into_target_addr(),
            Host::Name(name) => (name.as_str(), hop.port).into_target_addr(),
        },
        Next::Destination(address) => without_scope(address).into_target_addr(),
    }
}

impl From<Error> for HandshakeError {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(error) => error.into(),
            Error::AuthorizationRequired => Self::Refused(RefusalCause::CredentialsWanted),
            Error::PasswordAuthFailure(_) => Self::Refused(RefusalCause::CredentialsRejected),
            Error::InvalidAuthValues(why) => Self::Refused(RefusalCause::CredentialsUnfit(why)),
            Error::NoAcceptableAuthMethods => Self::Refused(RefusalCause::LoginMethod),
            Error::ConnectionNotAllowedByRuleset => Self::Refused(RefusalCause::Ruleset),
            Error::GeneralSocksServerFailure => Self::Refused(RefusalCause::Failure),
            Error::CommandNotSupported => Self::Refused(RefusalCause::Command),
            Error::AddressTypeNotSupported => Self::Refused(RefusalCause::AddressType),
            Error::ConnectionRefused => Self::Onward(OnwardCause::Refused),
            Error::NetworkUnreachable => Self::Onward(OnwardCause::Network),
            Error::HostUnreachable => Self::Onward(OnwardCause::Host),
            Error::TtlExpired => Self::Onward(OnwardCause::Ttl),
            other => Self::Protocol(ProtocolCause::Socks5(other)),
        }
    }
}
