use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{ServerConfig, crypto::ring};
use rustls_pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::upstream::names::Files;

/// A certificate authority with one certificate, for a proxy.
pub(super) struct Authority {
    /// Its own certificate, as a `ca_file`.
    pub(super) file: NamedTempFile,
    acceptor: TlsAcceptor,
}

impl Authority {
    pub(super) fn certifying(hosts: &[&str]) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("a root");
        let file = NamedTempFile::new().expect("a file");
        fs::write(&file, root.pem()).expect("a ca_file");

        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().expect("a key");
        let leaf =
            CertificateParams::new(hosts.iter().copied().map(String::from).collect::<Vec<_>>())
                .expect("hosts");
        let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a private key");
        let mut settings = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .expect("a certificate with its key");
        settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(settings));
        Self { file, acceptor }
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}

/// An https hop at this address which is trusted by this file.
pub(super) fn trusting(ca_file: &Path, address: SocketAddr) -> Hop {
    let ca_file = Some(ca_file.to_owned());
    let plain = with_credentials(hop(Scheme::Https, address));
    Hop { ca_file, ..plain }
}

/// A proxy that answers CONNECT within TLS and says this in the same breath.
async fn proxy(authority: &Authority, answer: &'static str) -> Scripted {
    let acceptor = authority.acceptor();
    Scripted::new(async move |stream| {
        let mut tls = acceptor.accept(stream).await.expect("a handshake");
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let head = peer::read_head(&mut tls).await;
        assert!(head.starts_with("CONNECT 192.0.2.7:443 "), "{head}");
        assert!(head.contains("\r\nProxy-Authorization: Basic "), "{head}");
        tls.write_all(answer.as_bytes()).await.expect("an answer");
        peer::until_closed(tls).await;
    })
    .await
}

/// A proxy with which the handshake will not succeed.
async fn distrusted(authority: &Authority) -> Scripted {
    let acceptor = authority.acceptor();
    Scripted::new(async move |stream| {
        acceptor.accept(stream).await.expect_err("an alert");
    })
    .await
}

/// A dialer that knows `proxy.test` and `other.test` as this host.
fn knowing_names() -> (Dialer, NamedTempFile) {
    let hosts = NamedTempFile::new().expect("a file");
    fs::write(&hosts, "127.0.0.1 proxy.test other.test\n").expect("a hosts file");
    let files = Files {
        hosts: hosts.path().to_owned(),
        ..Files::default()
    };
    (Dialer::with_files(Arc::new(NoExemption), files), hosts)
}

fn named(name: &str, hop: Hop) -> Hop {
    let host = Host::Name(name.into());
    Hop { host, ..hop }
}

#[tokio::test]
async fn words_behind_the_answer_are_the_destinations() {
    let authority = Authority::certifying(&["127.0.0.1"]);
    let proxy = proxy(&authority, "HTTP/1.1 200 OK\r\n\r\n220 ready\r\n").await;
    let upstream = upstream([trusting(authority.file.path(), proxy.address)]);
    let connected = dialer().dial(&upstream, elsewhere()).await;
    let mut connected = connected.unwrap_or_else(|error| panic!("{}", told(&error)));
    assert!(matches!(connected.stream, UpstreamStream::Tls(_)));
    assert_eq!(connected.peer, Some(proxy.address));
    assert!(!connected.timings.handshake.is_zero());
    let mut words = [0; peer::GREETING.len()];
    connected
        .stream
        .read_exact(&mut words)
        .await
        .expect("the first words");
    assert_eq!(words, peer::GREETING.as_bytes());
    connected.stream.shutdown().await.expect("a closing alert");
    drop(connected);
    proxy.finish().await;
}

#[tokio::test]
async fn a_connection_in_tls_can_be_reset() {
    let authority = Authority::certifying(&["127.0.0.1"]);
    let acceptor = authority.acceptor();
    let proxy = Scripted::new(async move |stream| {
        let mut tls = acceptor.accept(stream).await.expect("a handshake");
        peer::read_head(&mut tls).await;
        tls.write_all(b"HTTP/1.1 200 OK\r\n\r\n")
            .await
            .expect("an answer");
        let error = tls.read_u8().await.expect_err("a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    })
    .await;
    let upstream = upstream([trusting(authority.file.path(), proxy.address)]);
    let connected = dialer()
        .dial(&upstream, elsewhere())
        .await
        .expect("a connection");
    let peer = connected
        .stream
        .tcp()
        .expect("TCP")
        .peer_addr()
        .expect("its address");
    assert_eq!(Some(peer), connected.peer);
    connected.stream.reset();
    proxy.finish().await;
}

#[tokio::test]
async fn a_certificate_is_for_the_name_in_the_url() {
    let authority = Authority::certifying(&["proxy.test"]);
    let (dialer, _hosts) = knowing_names();
    let right = proxy(&authority, "HTTP/1.1 403 Forbidden\r\n\r\n").await;
    let hop = trusting(authority.file.path(), right.address);
    assert_failed(
        dialer
            .dial(&upstream([named("proxy.test", hop)]), elsewhere())
            .await,
        CloseReason::ProxyRefused,
        &["https://proxy.test:", "status 403"],
    );
    right.finish().await;

    let wrong = distrusted(&authority).await;
    let hop = trusting(authority.file.path(), wrong.address);
    assert_failed(
        dialer
            .dial(&upstream([named("other.test", hop)]), elsewhere())
            .await,
        CloseReason::ProxyProtocol,
        &["TLS with proxy https://other.test:", "not valid for name"],
    );
    wrong.finish().await;
}

#[tokio::test]
async fn a_stranger_is_not_trusted() {
    let (ours, theirs) = (
        Authority::certifying(&["127.0.0.1"]),
        Authority::certifying(&["127.0.0.1"]),
    );
    for ca_file in [Some(ours.file.path().to_owned()), None] {
        let proxy = distrusted(&theirs).await;
        let hop = trusting(ours.file.path(), proxy.address);
        assert_failed(
            dialer()
                .dial(&upstream([Hop { ca_file, ..hop }]), elsewhere())
                .await,
            CloseReason::ProxyProtocol,
            // A system without roots cannot even begin.
            &["TLS with proxy https://127.0.0.1:"],
        );
        proxy.finish().await;
    }
}

#[tokio::test]
async fn a_proxy_without_tls_breaks_the_protocol() {
    let authority = Authority::certifying(&["127.0.0.1"]);
    let proxy = Scripted::new(async |mut stream| {
        stream.read_u8().await.expect("a request");
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .expect("an answer");
        peer::drain(stream).await;
    })
    .await;
    let upstream = upstream([trusting(authority.file.path(), proxy.address)]);
    assert_failed(
        dialer().dial(&upstream, elsewhere()).await,
        CloseReason::ProxyProtocol,
        &["TLS with proxy https://127.0.0.1"],
    );
    proxy.finish().await;
}

#[tokio::test]
async fn useless_ca_files_are_named_before_and_at_the_first_dial() {
    let proxy = Scripted::new(peer::until_closed).await;
    let empty = NamedTempFile::new().expect("a file");
    let broken = NamedTempFile::new().expect("a file");
    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(&broken, text).expect("a ca_file");
    for (path, tells) in [
        (
            Path::new("/nonexistent/ca.pem"),
            "cannot read certificates from ca_file /nonexistent/ca.pem",
        ),
        (empty.path(), "no certificate in ca_file"),
        (broken.path(), "cannot be used as a root"),
    ] {
        let hop = trusting(path, proxy.address);
        let error = dialer().prepare(&upstream([hop])).expect_err("no trust");
        assert!(told(&error).contains(tells), "{}", told(&error));
    }
    let hop = trusting(empty.path(), proxy.address);
    assert_failed(
        dialer().dial(&upstream([hop]), elsewhere()).await,
        CloseReason::ProxyProtocol,
        &[
            "no trust for TLS with proxy https://",
            "no certificate in ca_file",
        ],
    );
    proxy.heard_nothing().await;
}

#[test]
fn certificates_are_read_once() {
    let authority = Authority::certifying(&["127.0.0.1"]);
    let upstream = upstream([trusting(authority.file.path(), loopback(1))]);
    let dialer = dialer();
    dialer.prepare(&upstream).expect("a good ca_file");
    authority.file.close().expect("the file goes");
    dialer.prepare(&upstream).expect("what was read before");
}

#[tokio::test]
async fn a_host_that_no_certificate_can_carry_is_named() {
    let proxy = Scripted::new(async |mut stream| {
        peer::read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
            .await
            .expect("an answer");
        peer::until_closed(stream).await;
    })
    .await;
    let authority = Authority::certifying(&["127.0.0.1"]);
    let behind = named("not_a/host", trusting(authority.file.path(), loopback(1)));
    assert_failed(
        dialer()
            .dial(
                &upstream([hop(Scheme::Http, proxy.address), behind]),
                elsewhere(),
            )
            .await,
        CloseReason::ProxyProtocol,
        &["no trust for TLS", "\"not_a/host\" is not a host name"],
    );
    proxy.finish().await;
}
