//! Chains of proxies that serve in earnest, up to a server that speaks first and then echoes.

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    Scheme::{Http, Https, Socks5},
    tls::{Authority, trusting},
    *,
};

/// What the proxies were asked for, nearest first.
type Asked = mpsc::UnboundedReceiver<String>;

/// One proxy for each scheme, and an upstream through all of them. The ones behind the first are known by name only.
async fn chain(schemes: &[Scheme], authority: &Authority) -> (Upstream, Asked) {
    let (asked, requests) = mpsc::unbounded_channel();
    let mut hops = Vec::new();
    for (index, scheme) in schemes.iter().copied().enumerate() {
        let (asked, acceptor) = (asked.clone(), authority.acceptor());
        let proxy = Scripted::new(async move |stream: TcpStream| match scheme {
            Socks5 => peer::serve_socks5(stream, asked).await,
            Http => peer::serve_http(stream, asked).await,
            Https => {
                let tls = acceptor.accept(stream).await.expect("a TLS handshake");
                peer::serve_http(tls, asked).await;
            }
        })
        .await;
        let mut hop = match scheme {
            Https => trusting(authority.file.path(), proxy.address),
            Http | Socks5 => hop(scheme, proxy.address),
        };
        if index > 0 {
            hop.host = Host::Name("hop.test".into());
        }
        hops.push(hop);
    }
    (upstream(hops), requests)
}

async fn assert_echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut greeting = [0; peer::GREETING.len()];
    stream
        .read_exact(&mut greeting)
        .await
        .expect("the greeting");
    assert_eq!(greeting, peer::GREETING.as_bytes());
    let sent: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut echoed = vec![0; sent.len()];
    let (mut from, mut to) = tokio::io::split(stream);
    let sending = async {
        to.write_all(&sent).await.expect("bytes go out");
        to.flush().await.expect("all of them");
    };
    let receiving = async { from.read_exact(&mut echoed).await.expect("bytes come back") };
    tokio::join!(sending, receiving);
    assert_eq!(echoed, sent);
}

#[tokio::test]
async fn each_hop_is_reached_through_the_ones_before() {
    let authority = Authority::certifying(&["127.0.0.1", "hop.test"]);
    for schemes in [
        &[Socks5][..],
        &[Http],
        &[Https],
        &[Socks5, Http],
        &[Http, Socks5],
        &[Https, Socks5],
        &[Https, Http],
        &[Http, Https],
        &[Socks5, Https],
        &[Https, Https, Socks5],
        &[Https, Socks5, Https],
        &[Socks5, Socks5, Http, Http, Socks5],
    ] {
        let server = peer::greeter().await;
        let (upstream, mut asked) = chain(schemes, &authority).await;
        let outcome = dialer().dial(&upstream, server).await;
        let connected = outcome.unwrap_or_else(|error| panic!("{schemes:?}: {}", told(&error)));
        let encrypted = schemes.contains(&Https);
        assert_eq!(
            matches!(connected.stream, UpstreamStream::Tls(_)),
            encrypted
        );
        assert_echo(connected.stream).await;
        let behind = upstream
            .hops
            .iter()
            .skip(1)
            .map(|hop| format!("hop.test:{}", hop.port));
        for expected in behind.chain([server.to_string()]) {
            assert_eq!(asked.recv().await.expect("one request per hop"), expected);
        }
    }
}

fn plain(proxy: &Scripted) -> Hop {
    hop(Socks5, proxy.address)
}

/// A SOCKS5 proxy that gives one reply to whatever it is asked.
async fn refusing(code: u8) -> Scripted {
    Scripted::new(async move |mut stream| {
        peer::expect(&mut stream, &[5, 1, 0]).await;
        stream.write_all(&[5, 0]).await.expect("the method");
        stream.read_u8().await.expect("a request");
        let reply = [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
        stream.write_all(&reply).await.expect("the reply");
        peer::drain(stream).await;
    })
    .await
}

#[tokio::test]
async fn a_hop_that_another_cannot_reach_is_an_unreachable_proxy() {
    for code in 3..=6 {
        let first = refusing(code).await;
        let second = with_credentials(hop(Http, loopback(9)));
        let hops = [plain(&first), second];
        assert_failed(
            dialer().dial(&upstream(hops), elsewhere()).await,
            CloseReason::ProxyUnreachable,
            &[&format!(
                "proxy socks5://{} cannot connect to proxy http://127.0.0.1:9: ",
                first.address
            )],
        );
        first.finish().await;
    }
}

#[tokio::test]
async fn the_last_hop_speaks_for_the_destination() {
    let last = refusing(5).await;
    let authority = Authority::certifying(&["127.0.0.1"]);
    let (mut upstream, _asked) = chain(&[Http], &authority).await;
    upstream.hops.push(plain(&last));
    assert_failed(
        dialer().dial(&upstream, elsewhere()).await,
        CloseReason::DestinationRefused,
        &[&format!(
            "proxy socks5://{} cannot connect to destination 192.0.2.7:443: connection refused",
            last.address
        )],
    );
    last.finish().await;
}

#[tokio::test]
async fn the_handshake_timeout_is_for_all_hops_together() {
    let (first_asked, first_is_asked) = oneshot::channel();
    let (second_asked, second_is_asked) = oneshot::channel();
    let (answer, may_answer) = oneshot::channel();
    let hops = Scripted::new(async |mut stream| {
        peer::read_head(&mut stream).await;
        first_asked.send(()).expect("the test waits");
        may_answer.await.expect("the test goes on");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
            .await
            .expect("an answer");
        stream.read_u8().await.expect("a request to the second hop");
        second_asked.send(()).expect("the test waits");
        peer::drain(stream).await;
    })
    .await;
    let (first, second) = (hop(Http, hops.address), hop(Socks5, loopback(9)));
    let upstream = upstream([first, second]);
    let dialer = dialer();
    let begun = Instant::now();
    let most_of_it = AMPLE / 3 * 2;
    let reached = async {
        first_is_asked.await.expect("the first hop is asked");
        tokio::time::pause();
        tokio::time::advance(most_of_it).await;
        tokio::time::resume();
        answer.send(()).expect("the first hop waits");
        second_is_asked.await.expect("the second hop is asked");
    };
    let outcome = after_limit(dialer.dial(&upstream, elsewhere()), reached).await;
    assert!(
        begun.elapsed() < AMPLE + most_of_it / 2,
        "no limit for each"
    );
    assert_failed(
        outcome,
        CloseReason::HandshakeTimeout,
        &["proxy socks5://127.0.0.1:9 did not connect to destination 192.0.2.7:443"],
    );
    tokio::time::resume();
    hops.finish().await;
}
