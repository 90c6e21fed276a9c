//! The dialer against peers on loopback that do what a script says, or serve as a proxy in earnest.

mod chain;
mod direct;
mod http;
mod names;
mod peer;
mod probe;
mod socks5;
mod tls;

use std::{error::Error, fmt::Write as _, net::Ipv4Addr};

use tokio::io::AsyncReadExt;

use self::peer::Scripted;
use super::*;
use crate::close::CloseReason;

/// In every hop with credentials, and in no message ever.
const PASSWORD: &str = "correct-horse";
const USER: &str = "alice";
/// Long enough for a crowded machine; tests that wait for a limit to pass set their own.
const AMPLE: Duration = Duration::from_secs(30);

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

/// A documentation address: whoever is asked for it must not be able to reach it.
fn elsewhere() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(192, 0, 2, 7).into(), 443)
}

fn dialer() -> Dialer {
    Dialer::new(Arc::new(NoExemption))
}

fn upstream(hops: impl Into<Vec<Hop>>) -> Upstream {
    Upstream {
        name: "test".into(),
        hops: hops.into(),
        connect_timeout: AMPLE,
        handshake_timeout: AMPLE,
    }
}

fn hop(scheme: Scheme, address: SocketAddr) -> Hop {
    Hop {
        scheme,
        host: Host::Ip(address.ip()),
        port: address.port(),
        credentials: None,
        ca_file: None,
    }
}

fn with_credentials(hop: Hop) -> Hop {
    let credentials = Some(Credentials {
        user: USER.into(),
        password: PASSWORD.into(),
    });
    Hop { credentials, ..hop }
}

/// The message of an error and of everything below it, as an operator would read it.
fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, ": {error}").expect("a string takes everything");
        cause = error.source();
    }
    text
}

/// The error of a dial that had to fail: with this reason, telling all of this, and never the password.
fn assert_failed(
    outcome: Result<Connected, DialError>,
    reason: CloseReason,
    tells: &[&str],
) -> DialError {
    let error = outcome.expect_err("the dial should have failed");
    let text = told(&error);
    assert_eq!(error.close_reason(), reason, "{text}");
    for expected in tells {
        assert!(text.contains(expected), "{expected:?} is not in: {text}");
    }
    for shown in [text, format!("{error:?}"), format!("{error:#?}")] {
        assert!(!shown.contains(PASSWORD), "a password in: {shown}");
    }
    error
}

/// The first bytes the app would get from the destination, after a dial that had to succeed with a bare socket.
async fn first_words(outcome: Result<Connected, DialError>, length: usize) -> String {
    let connected = outcome.unwrap_or_else(|error| panic!("{}", told(&error)));
    let UpstreamStream::Tcp(mut tcp) = connected.stream else {
        panic!("a chain without TLS ends in a bare socket");
    };
    let mut words = vec![0; length];
    tcp.read_exact(&mut words).await.expect("the first words");
    String::from_utf8(words).expect("text")
}

/// Runs `dial` until `reached` happens, then lets time fly until a limit ends it.
async fn after_limit<T>(dial: impl Future<Output = T>, reached: impl Future<Output = ()>) -> T {
    let stall = async {
        reached.await;
        tokio::time::pause();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = dial => outcome,
        () = stall => unreachable!("pending"),
    }
}

#[test]
fn hops_are_named_like_urls_without_credentials() {
    for (host, expected) in [
        (Host::Name("proxy.test".into()), "socks5://proxy.test:1080"),
        (Host::Ip([10, 0, 0, 1].into()), "socks5://10.0.0.1:1080"),
        (
            Host::Ip([0, 0, 0, 0, 0, 0, 0, 1].into()),
            "socks5://[::1]:1080",
        ),
    ] {
        let hop = with_credentials(hop(Scheme::Socks5, loopback(1080)));
        assert_eq!(Hop { host, ..hop }.to_string(), expected);
    }
}

#[test]
fn debug_output_of_an_upstream_holds_no_password() {
    let all = upstream([with_credentials(hop(Scheme::Https, loopback(443)))]);
    let shown = format!("{all:?} {all:#?} {:?}", Next::Hop(&all.hops[0]));
    assert!(shown.contains(USER) && !shown.contains(PASSWORD), "{shown}");
}

#[test]
fn a_dialer_can_be_shared_between_workers() {
    fn is_shared<T: Send + Sync>(_: &T) {}
    is_shared(&dialer());
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_not_the_destinations_fault() {
    let (nobody, _port) = peer::nobody();
    for scheme in [Scheme::Socks5, Scheme::Http, Scheme::Https] {
        let upstream = upstream([with_credentials(hop(scheme, nobody))]);
        let name = format!("proxy {scheme}://{nobody}");
        assert_failed(
            dialer().dial(&upstream, elsewhere()).await,
            CloseReason::ProxyUnreachable,
            &["cannot connect to", &name, "refused", "check that it runs"],
        );
    }
}

#[tokio::test]
async fn a_silent_proxy_ends_the_handshake_not_the_connect() {
    for scheme in [Scheme::Socks5, Scheme::Http, Scheme::Https] {
        let (asked, reached) = tokio::sync::oneshot::channel();
        let proxy = Scripted::new(async |mut stream| {
            stream.read_u8().await.expect("a request");
            asked.send(()).expect("the test waits");
            peer::drain(stream).await;
        })
        .await;
        let upstream = upstream([with_credentials(hop(scheme, proxy.address))]);
        let dialer = dialer();
        let reached = async { reached.await.expect("the proxy is asked") };
        let outcome = after_limit(dialer.dial(&upstream, elsewhere()), reached).await;
        assert_failed(
            outcome,
            CloseReason::HandshakeTimeout,
            &[
                &proxy.address.to_string(),
                "192.0.2.7:443",
                "handshake timeout of 30s",
            ],
        );
        tokio::time::resume();
        proxy.finish().await;
    }
}

#[tokio::test]
async fn a_proxy_that_hangs_up_breaks_its_protocol() {
    for scheme in [Scheme::Socks5, Scheme::Http] {
        let proxy = Scripted::new(async |mut stream| {
            // All it was sent is read, so that closing sends a FIN.
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.expect("a request");
            assert_ne!(length, 0);
        })
        .await;
        let upstream = upstream([with_credentials(hop(scheme, proxy.address))]);
        assert_failed(
            dialer().dial(&upstream, elsewhere()).await,
            CloseReason::ProxyProtocol,
            &["closed the connection in the middle of the handshake"],
        );
        proxy.finish().await;
    }
}

#[tokio::test]
async fn a_proxy_that_resets_breaks_its_protocol() {
    for scheme in [Scheme::Socks5, Scheme::Http] {
        let proxy = Scripted::new(async |mut stream| {
            stream.read_u8().await.expect("a request");
            crate::socket::reset(stream);
        })
        .await;
        let upstream = upstream([with_credentials(hop(scheme, proxy.address))]);
        assert_failed(
            dialer().dial(&upstream, elsewhere()).await,
            CloseReason::ProxyProtocol,
            &["the connection broke", "reset"],
        );
        proxy.finish().await;
    }
}
