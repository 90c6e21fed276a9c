//! TLS to `https` hops: whom to trust, and the handshake.
//!
//! rustls with ring. The system's roots, or a hop's own `ca_file`, are read when first needed and kept for the life of
//! the [`Trust`], that is until the next reload.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem, pem::PemObject};
use thiserror::Error;
use tokio_rustls::TlsConnector;

use super::{Hop, Host, UpstreamStream, error::HandshakeError, probe::ProbeError};

/// Why there is no trust for a hop.
#[derive(Debug, Error)]
pub enum TrustError {
    /// The `ca_file` is missing, unreadable or no PEM.
    #[error("cannot read certificates from ca_file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// A certificate of the `ca_file` cannot be a root.
    #[error("a certificate in ca_file {path} cannot be used as a root")]
    Root {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// The `ca_file` holds no certificate.
    #[error("there is no certificate in ca_file {path}; it must hold PEM blocks")]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },
    /// The system has no roots.
    #[error("this system has no root certificates; install ca-certificates or set ca_file")]
    NoSystemRoots,
    /// The host of the hop cannot stand in a certificate.
    #[error("{host:?} is not a host name that a certificate can carry")]
    HostName {
        /// The host.
        host: String,
        /// What is wrong with it.
        #[source]
        source: InvalidDnsNameError,
    },
    /// rustls does not accept its own defaults.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

/// The TLS settings in use, by `ca_file`; without one they trust the system's roots.
#[derive(Debug, Default)]
pub(super) struct Trust(Mutex<HashMap<Option<PathBuf>, Arc<ClientConfig>>>);

impl Trust {
    /// Settings that trust what `ca_file` holds. The first call for a file reads it, which takes milliseconds.
    pub(super) fn settings(&self, ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TrustError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = ca_file.map(Path::to_path_buf);
        if let Some(settings) = known.get(&key) {
            return Ok(Arc::clone(settings));
        }
        let roots = match ca_file {
            Some(path) => roots_of_file(path)?,
            None => roots_of_system()?,
        };
        let settings = Arc::new(trusting(roots).map_err(TrustError::Setup)?);
        known.insert(key, Arc::clone(&settings));
        Ok(settings)
    }
}

/// Wraps the stream to an `https` hop in TLS.
pub(super) async fn wrap(
    trust: &Trust,
    hop: &Hop,
    stream: UpstreamStream,
) -> Result<UpstreamStream, HandshakeError> {
    let untrusted = |error| HandshakeError::Trust(Box::new(error));
    let name = server_name(&hop.host).map_err(untrusted)?;
    let settings = trust.settings(hop.ca_file.as_deref()).map_err(untrusted)?;
    let tls = TlsConnector::from(settings)
        .connect(name, stream)
        .await
        .map_err(HandshakeError::Tls)?;
    Ok(UpstreamStream::Tls(Box::new(tls)))
}

/// Shakes hands with a server that may speak any protocol.
pub(super) async fn verify(
    trust: &Trust,
    host: &Host,
    ca_file: Option<&Path>,
    stream: UpstreamStream,
) -> Result<UpstreamStream, ProbeError> {
    let untrusted = |error| ProbeError::Trust(Box::new(error));
    let name = server_name(host).map_err(untrusted)?;
    let mut settings = (*trust.settings(ca_file).map_err(untrusted)?).clone();
    settings.alpn_protocols.clear();
    let tls = TlsConnector::from(Arc::new(settings))
        .connect(name, stream)
        .await
        .map_err(ProbeError::Tls)?;
    Ok(UpstreamStream::Tls(Box::new(tls)))
}

fn server_name(host: &Host) -> Result<ServerName<'static>, TrustError> {
    match host {
        Host::Ip(ip) => Ok(ServerName::from(*ip)),
        Host::Name(name) => {
            ServerName::try_from(name.clone()).map_err(|source| TrustError::HostName {
                host: name.clone(),
                source,
            })
        }
    }
}

fn roots_of_file(path: &Path) -> Result<RootCertStore, TrustError> {
    let unreadable = |source| TrustError::File {
        path: path.to_path_buf(),
        source,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        roots
            .add(certificate.map_err(unreadable)?)
            .map_err(|source| TrustError::Root {
                path: path.to_path_buf(),
                source,
            })?;
    }
    if roots.is_empty() {
        return Err(TrustError::EmptyFile {
            path: path.to_path_buf(),
        });
    }
    Ok(roots)
}

fn roots_of_system() -> Result<RootCertStore, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "skipping a root certificate of the system");
    }
    let mut roots = RootCertStore::empty();
    // A system's collection may hold oddities that rustls refuses; the rest is as good as without them.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(TrustError::NoSystemRoots);
    }
    Ok(roots)
}

fn trusting(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let mut settings = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // CONNECT is spoken in HTTP/1.1; a proxy that could do better must not choose it.
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(settings)
}
