use std::{
    io,
    net::{Ipv6Addr, SocketAddrV6, TcpListener as StdListener},
    sync::atomic::{AtomicUsize, Ordering},
};

use socket2::Socket;
use tokio::{io::AsyncWriteExt, net::TcpListener};

use super::*;

/// Counts the sockets it is shown, all of which must be on their way and none connected.
#[derive(Default)]
struct Witness(AtomicUsize);

impl Exempt for Witness {
    fn exempt(&self, socket: &Socket, _: SocketAddr) -> io::Result<()> {
        let error = socket.peer_addr().expect_err("exempt before connect");
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Has no room for another socket.
struct Full;

impl Exempt for Full {
    fn exempt(&self, _: &Socket, _: SocketAddr) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }
}

#[tokio::test]
async fn a_direct_dial_is_one_exempt_socket_to_the_destination() {
    for local in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let server = TcpListener::bind(SocketAddr::new(local, 0))
            .await
            .expect("a listener");
        let address = server.local_addr().expect("its address");
        let witness = Arc::new(Witness::default());
        let dialer = Dialer::new(Arc::<Witness>::clone(&witness));
        let connected = dialer
            .dial(&upstream([]), address)
            .await
            .expect("a connection");
        let (_, client) = server.accept().await.expect("the connection");
        let local = connected
            .stream
            .tcp()
            .expect("TCP")
            .local_addr()
            .expect("its address");
        assert_eq!((local, connected.peer), (client, Some(address)));
        assert_eq!(connected.timings.handshake, Duration::ZERO);
        assert!(matches!(connected.stream, UpstreamStream::Tcp(_)));
        assert!(
            connected
                .stream
                .tcp()
                .expect("TCP")
                .nodelay()
                .expect("TCP_NODELAY")
        );
        assert_eq!(witness.0.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test]
async fn a_mapped_destination_is_the_ipv4_address_it_is() {
    let server = TcpListener::bind(loopback(0)).await.expect("a listener");
    let address = server.local_addr().expect("its address");
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let mapped: SocketAddr = SocketAddrV6::new(mapped, address.port(), 0, 0).into();
    let connected = dialer()
        .dial(&upstream([]), mapped)
        .await
        .expect("a connection");
    assert_eq!(connected.peer, Some(address));
}

#[tokio::test]
async fn nothing_connects_that_could_not_be_exempted() {
    let server = TcpListener::bind(loopback(0)).await.expect("a listener");
    let address = server.local_addr().expect("its address");
    let dialer = Dialer::new(Arc::new(Full));
    assert_failed(
        dialer.dial(&upstream([]), address).await,
        CloseReason::OutOfResources,
        &["exempt a socket from interception", "check the limits"],
    );
    let proxy = upstream([with_credentials(hop(Scheme::Socks5, address))]);
    assert_failed(
        dialer.dial(&proxy, elsewhere()).await,
        CloseReason::OutOfResources,
        &["exempt", "socks5://127.0.0.1"],
    );
    let server = server.into_std().expect("the listener");
    let nothing = server.accept().expect_err("no connection came");
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_refusing_destination_refuses() {
    let (nobody, _port) = peer::nobody();
    assert_failed(
        dialer().dial(&upstream([]), nobody).await,
        CloseReason::DestinationRefused,
        &[
            &format!("cannot connect to destination {nobody}: "),
            "refused",
        ],
    );
}

#[tokio::test]
async fn a_destination_without_a_route_is_unreachable() {
    let multicast = SocketAddr::new(Ipv4Addr::new(224, 0, 0, 1).into(), 80);
    assert_failed(
        dialer().dial(&upstream([]), multicast).await,
        CloseReason::DestinationUnreachable,
        &["destination 224.0.0.1:80"],
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_destination_takes_the_connect_timeout() {
    let (address, _full) = peer::swallowing(loopback(0));
    let begun = tokio::time::Instant::now();
    assert_failed(
        dialer().dial(&upstream([]), address).await,
        CloseReason::ConnectTimeout,
        &["destination", "connect timeout of 30s"],
    );
    assert_eq!(begun.elapsed().as_secs(), AMPLE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_silent_proxy_host_is_an_unreachable_proxy() {
    let (address, _full) = peer::swallowing(loopback(0));
    let upstream = upstream([with_credentials(hop(Scheme::Http, address))]);
    assert_failed(
        dialer().dial(&upstream, elsewhere()).await,
        CloseReason::ProxyUnreachable,
        &["no connection to proxy http://127.0.0.1", "connect timeout"],
    );
}

#[tokio::test]
async fn dropping_a_dial_closes_what_it_opened() {
    let (asked, reached) = tokio::sync::oneshot::channel();
    let proxy = Scripted::new(async |mut stream| {
        peer::read_head(&mut stream).await;
        asked.send(()).expect("the test waits");
        peer::until_closed(stream).await;
    })
    .await;
    let upstream = upstream([hop(Scheme::Http, proxy.address)]);
    let dialer = dialer();
    tokio::select! {
        outcome = dialer.dial(&upstream, elsewhere()) => panic!("no answer, yet {outcome:?}"),
        asked = reached => asked.expect("the proxy is asked"),
    }
    proxy.finish().await;
}

/// A packet less: what is said first ends the handshake. Who may not speak first must not wait with it, or the server would wait, too.
#[tokio::test]
async fn the_first_word_ends_the_handshake_where_there_is_one() {
    for speaks_first in [false, true] {
        let server = StdListener::bind(loopback(0)).expect("a listener");
        server.set_nonblocking(true).expect("a listener");
        let goal = Goal {
            address: server.local_addr().expect("its address"),
            speaks_first,
        };
        let dialled = dialer().dial(&upstream([]), goal).await;
        let mut stream = dialled.expect("a connection").stream;
        let heard = server.accept().map(|_| ());
        if !speaks_first {
            heard.expect("heard of at once");
            continue;
        }
        heard.expect_err("nothing was said");
        stream.write_all(b"hello").await.expect("room");
        server.accept().expect("heard of with the first word");
    }
}

/// What every relayed connection pays for while its upstream is dialled, so it has to stay small.
#[test]
fn the_future_of_a_dial_is_small() {
    let (dialer, upstream) = (dialer(), upstream([]));
    let size = size_of_val(&dialer.dial(&upstream, loopback(1)));
    assert!(size <= 768, "{size} bytes");
}
