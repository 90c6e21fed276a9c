//! A SOCKS5 proxy (RFC 1928) that notes what it is asked for.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use super::Server;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const IPV6: u8 = 4;
const SUCCEEDED: u8 = 0;
const CONNECTION_REFUSED: u8 = 5;

/// A proxy that connects where it is told and relays.
#[derive(Debug)]
pub struct Socks5 {
    server: Server,
    requests: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Socks5 {
    /// Serves on `address` until dropped; port 0 is a free one.
    pub fn start(address: impl Into<SocketAddr>) -> Self {
        let requests: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let noted = Arc::clone(&requests);
        let server = Server::start(address, move |stream| serve(stream, &noted));
        Self { server, requests }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What it was asked to connect to so far, in order.
    pub fn requests(&self) -> Vec<SocketAddr> {
        self.requests.lock().expect("requests").clone()
    }
}

fn serve(mut client: TcpStream, requests: &Mutex<Vec<SocketAddr>>) -> io::Result<()> {
    let [version, count] = read(&mut client)?;
    assert_eq!(version, VERSION, "not SOCKS5");
    let mut methods = vec![0; usize::from(count)];
    client.read_exact(&mut methods)?;
    assert!(methods.contains(&NO_AUTHENTICATION), "{methods:?}");
    client.write_all(&[VERSION, NO_AUTHENTICATION])?;

    let [version, command, _, kind] = read(&mut client)?;
    assert_eq!((version, command), (VERSION, CONNECT));
    let ip: IpAddr = match kind {
        IPV4 => Ipv4Addr::from(read::<4>(&mut client)?).into(),
        IPV6 => Ipv6Addr::from(read::<16>(&mut client)?).into(),
        other => panic!("address type {other}"),
    };
    let destination = SocketAddr::new(ip, u16::from_be_bytes(read(&mut client)?));
    requests.lock().expect("requests").push(destination);

    let connected = TcpStream::connect(destination);
    let reply = if connected.is_ok() {
        SUCCEEDED
    } else {
        CONNECTION_REFUSED
    };
    client.write_all(&[VERSION, reply, 0, IPV4, 0, 0, 0, 0, 0, 0])?;
    relay(&client, &connected?)
}

/// Moves bytes both ways until both have ended.
pub(super) fn relay(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    thread::scope(|scope| {
        scope.spawn(|| copy(client, server));
        copy(server, client)
    })
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}

fn read<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map(|()| bytes)
}
