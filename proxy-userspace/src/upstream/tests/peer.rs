//! The other ends: scripted proxies, proxies that serve, and a server that speaks first.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::UnboundedSender,
    task::{JoinHandle, yield_now},
    time::timeout,
};

/// What the server says before it is asked.
pub(super) const GREETING: &str = "220 ready\r\n";

/// A peer that takes one connection and runs a script on it.
pub(super) struct Scripted {
    pub(super) address: SocketAddr,
    script: JoinHandle<()>,
}

impl Scripted {
    pub(super) async fn new<F>(script: impl FnOnce(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = listener().await;
        let address = listener.local_addr().expect("its address");
        let script = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("TCP_NODELAY");
            script(stream).await;
        });
        Self { address, script }
    }

    /// Answers each expected request with its reply, then keeps the connection until the other side ends it.
    pub(super) async fn talking(lines: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self::new(async move |mut stream| {
            for (request, reply) in lines {
                expect(&mut stream, &request).await;
                stream.write_all(&reply).await.expect("a reply goes out");
            }
            until_closed(stream).await;
        })
        .await
    }

    /// Waits for the script, which holds assertions of its own.
    pub(super) async fn finish(self) {
        self.script.await.expect("the script runs to its end");
    }

    /// Nothing was said to it. Nor has it heard of a connection then: what is said first would have ended the handshake.
    pub(super) async fn heard_nothing(self) {
        let script = timeout(Duration::from_millis(50), self.script).await;
        assert!(script.is_err(), "somebody connected");
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a listener")
}

/// An address on which nothing listens, of either family, as long as the socket lives and keeps the port.
pub(super) fn nobody() -> (SocketAddr, impl Sized) {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
    socket.set_only_v6(false).expect("both families");
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    socket.bind(&any.into()).expect("bind");
    let bound = socket
        .local_addr()
        .ok()
        .and_then(|address| address.as_socket());
    let port = bound.expect("its address").port();
    ((Ipv4Addr::LOCALHOST, port).into(), socket)
}

/// An address that swallows SYNs, as long as the sockets live: the queue of its listener is full.
pub(super) fn swallowing(address: SocketAddr) -> (SocketAddr, impl Sized) {
    let kind = Type::STREAM;
    let listener = Socket::new(Domain::for_address(address), kind, None).expect("a socket");
    listener.bind(&SockAddr::from(address)).expect("bind");
    listener.listen(0).expect("listen");
    let address = listener
        .local_addr()
        .ok()
        .and_then(|address| address.as_socket())
        .expect("its address");
    let queued = std::net::TcpStream::connect(address).expect("the one connection it takes");
    poll(
        &mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)],
        PollTimeout::NONE,
    )
    .expect("poll");
    (address, (listener, queued))
}

pub(super) async fn expect(stream: &mut (impl AsyncRead + Unpin), request: &[u8]) {
    let mut got = vec![0; request.len()];
    stream.read_exact(&mut got).await.expect("a request");
    assert_eq!(
        got.escape_ascii().to_string(),
        request.escape_ascii().to_string()
    );
}

/// Sends each byte on its own and lets the other side have it before the next.
pub(super) async fn dribble(stream: &mut TcpStream, bytes: &[u8]) {
    for byte in bytes {
        stream.write_all(&[*byte]).await.expect("a byte goes out");
        yield_now().await;
    }
}

/// Waits for the other side to end the connection, one way or the other.
pub(super) async fn drain(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut rest = Vec::new();
    // Dropping a connection with unread bytes is a reset, and as good an end as any.
    _ = stream.read_to_end(&mut rest).await;
    rest
}

/// Waits for the end of a connection on which nothing more may come.
pub(super) async fn until_closed(stream: impl AsyncRead + Unpin) {
    let rest = drain(stream).await;
    assert!(rest.is_empty(), "unexpected: {}", rest.escape_ascii());
}

pub(super) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a request"));
    }
    String::from_utf8(head).expect("text")
}

/// A server that greets, then sends back what it gets.
pub(super) async fn greeter() -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(GREETING.as_bytes()).await?;
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    address
}

/// Serves one connection as a SOCKS5 proxy; tells what it was asked for.
pub(super) async fn serve_socks5(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    asked: UnboundedSender<String>,
) {
    expect(&mut stream, &[5, 1, 0]).await;
    stream.write_all(&[5, 0]).await.expect("the method");
    stream.flush().await.expect("the method goes out");
    expect(&mut stream, &[5, 1, 0]).await;
    let host = match stream.read_u8().await.expect("the address type") {
        1 => Ipv4Addr::from(stream.read_u32().await.expect("an address")).to_string(),
        3 => {
            let mut name = vec![0; stream.read_u8().await.expect("a length").into()];
            stream.read_exact(&mut name).await.expect("a name");
            String::from_utf8(name).expect("text")
        }
        other => panic!("address type {other}"),
    };
    let port = stream.read_u16().await.expect("a port");
    asked
        .send(format!("{host}:{port}"))
        .expect("the test listens");
    let reply = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    join(stream, &host, port, &reply).await;
}

/// Serves one connection as an HTTP proxy; tells what it was asked for.
pub(super) async fn serve_http(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    asked: UnboundedSender<String>,
) {
    let head = read_head(&mut stream).await;
    let target = head.split(' ').nth(1).expect("a target");
    let (host, port) = target.rsplit_once(':').expect("host and port");
    let port = port.parse().expect("a port");
    asked.send(target.to_owned()).expect("the test listens");
    join(stream, host, port, b"HTTP/1.1 200 Established\r\n\r\n").await;
}

/// Replies with the next one's first words, if there are any yet, glued to the reply; then carries bytes both ways.
async fn join(mut near: impl AsyncRead + AsyncWrite + Unpin, host: &str, port: u16, reply: &[u8]) {
    // The only name the tests use is that of a peer here.
    let host = if host == "hop.test" {
        "127.0.0.1"
    } else {
        host
    };
    let mut far = TcpStream::connect((host, port))
        .await
        .expect("the next in the chain");
    let mut early = [0; GREETING.len()];
    let waiting = far.try_read(&mut early).unwrap_or(0);
    let first = [reply, &early[..waiting]].concat();
    near.write_all(&first).await.expect("the reply");
    near.flush().await.expect("the reply goes out");
    // The dialer's side may just drop the connection.
    _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}
