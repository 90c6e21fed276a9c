//! Asking a server whether it is well: TLS and HTTP on a connection that is there already.

use std::{io, ops::RangeInclusive, path::PathBuf};

use http_body_util::Empty;
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use thiserror::Error;

use super::{Dialer, Host, TrustError, UpstreamStream, tls};

/// What is asked of a server, beside that it accepts a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// A TLS handshake with a certificate that is trusted.
    pub tls: Option<TlsProbe>,
    /// An answer to a request, over TLS if that is asked for, too.
    pub http: Option<HttpProbe>,
}

/// The name and the trust for a TLS handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsProbe {
    /// The name the certificate must be for; the endpoint's own if there is none.
    pub name: Option<Host>,
    /// A file of PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// A request and what is to come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// The path, with a query if need be.
    pub path: String,
    /// The `Host` field; the endpoint's own if there is none.
    pub host: Option<String>,
    /// The statuses that are healthy.
    pub expected: Vec<RangeInclusive<u16>>,
}

/// Why a server is not well.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// There is nothing to trust.
    #[error("no trust for its certificate")]
    Trust(#[source] Box<TrustError>),
    /// TLS failed.
    #[error("TLS failed")]
    Tls(#[source] io::Error),
    /// It does not speak HTTP, or hung up.
    #[error("it gives no answer in HTTP")]
    Http(#[source] hyper::Error),
    /// The request cannot be written.
    #[error("the request for {path:?} cannot be sent")]
    Request {
        /// The path.
        path: String,
        /// What is wrong with it.
        #[source]
        source: hyper::http::Error,
    },
    /// It says that it is not.
    #[error("it answered with status {0}")]
    Status(u16),
}

impl Dialer {
    /// Asks a server on a connection to it. `own` is its name or address.
    ///
    /// # Errors
    ///
    /// What speaks against it.
    pub async fn probe(
        &self,
        stream: UpstreamStream,
        own: &Host,
        probe: &Probe,
    ) -> Result<(), ProbeError> {
        let stream = match &probe.tls {
            None => stream,
            Some(wanted) => {
                let name = wanted.name.as_ref().unwrap_or(own);
                tls::verify(self.trust(), name, wanted.ca_file.as_deref(), stream).await?
            }
        };
        match &probe.http {
            None => Ok(()),
            Some(wanted) => ask(stream, own, wanted).await,
        }
    }
}

async fn ask(stream: UpstreamStream, own: &Host, wanted: &HttpProbe) -> Result<(), ProbeError> {
    let own = match own {
        Host::Ip(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.clone(),
    };
    let request = Request::get(wanted.path.as_str())
        .header(HOST, wanted.host.as_ref().unwrap_or(&own))
        .header(USER_AGENT, concat!("culvert/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|source| ProbeError::Request {
            path: wanted.path.clone(),
            source,
        })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(ProbeError::Http)?;
    // Only the head matters; the connection goes with what is left of the answer.
    let answer = tokio::select! {
        answer = sender.send_request(request) => answer,
        Err(error) = connection => Err(error),
    };
    let status = answer.map_err(ProbeError::Http)?.status().as_u16();
    if wanted.expected.iter().any(|good| good.contains(&status)) {
        Ok(())
    } else {
        Err(ProbeError::Status(status))
    }
}
