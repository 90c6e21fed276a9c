//! The far side of the demonstration: an origin server on every address, and a SOCKS5 proxy.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use super::{
    network,
    payload::{self, Side},
};
use crate::socket;

/// Port of the origin, on every address.
pub(super) const ORIGIN_PORT: u16 = 8080;
/// Port of the SOCKS5 proxy.
pub(super) const SOCKS_PORT: u16 = 1080;

/// A connection as the origin saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    /// Its own address on it.
    pub(super) destination: SocketAddr,
    /// Who connected.
    pub(super) client: SocketAddr,
    /// What went wrong, if anything.
    pub(super) error: Option<String>,
}

/// The running servers.
pub(super) struct Servers {
    /// What the origin served.
    pub(super) served: UnboundedReceiver<Served>,
    /// What the proxy was asked for.
    pub(super) asked: UnboundedReceiver<SocketAddr>,
}

impl Servers {
    /// Starts them on the runtime of the caller; they end with it.
    ///
    /// # Errors
    /// When a listener cannot be made.
    pub(super) fn start(ipv6: bool) -> io::Result<Self> {
        let (tell_served, served) = unbounded_channel();
        let (tell_asked, asked) = unbounded_channel();
        let v4 = listen((Ipv4Addr::UNSPECIFIED, ORIGIN_PORT).into())?;
        tokio::spawn(origin(v4, tell_served.clone()));
        if ipv6 {
            let v6 = listen((Ipv6Addr::UNSPECIFIED, ORIGIN_PORT).into())?;
            tokio::spawn(origin(v6, tell_served));
        }
        let proxy = listen((network::HOME, SOCKS_PORT).into())?;
        tokio::spawn(socks(proxy, tell_asked));
        Ok(Self { served, asked })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = socket::listener(address, 16)?;
    // A server closes in order, unlike the relay.
    socket::end_orderly(&listener);
    TcpListener::from_std(listener)
}

async fn origin(listener: TcpListener, told: UnboundedSender<Served>) {
    while let Ok((mut stream, client)) = listener.accept().await {
        let told = told.clone();
        tokio::spawn(async move {
            let Ok(destination) = stream.local_addr() else {
                return;
            };
            let done = payload::exchange(&mut stream, destination, Side::Origin).await;
            // Nobody listens any more when the demonstration was given up.
            let _ = told.send(Served {
                destination,
                client,
                error: done.err().map(|error| error.to_string()),
            });
        });
    }
}

async fn socks(listener: TcpListener, asked: UnboundedSender<SocketAddr>) {
    while let Ok((stream, _)) = listener.accept().await {
        let asked = asked.clone();
        tokio::spawn(async move {
            if let Err(error) = tunnel(stream, &asked).await {
                tracing::debug!(%error, "the proxy of the demonstration gave a connection up");
            }
        });
    }
}

/// One connection through the proxy: RFC 1928 without authentication, CONNECT to an address.
async fn tunnel(mut client: TcpStream, asked: &UnboundedSender<SocketAddr>) -> io::Result<()> {
    const VERSION: u8 = 5;
    const NO_AUTHENTICATION: u8 = 0;
    let unexpected = || io::Error::from(io::ErrorKind::InvalidData);

    let [VERSION, methods] = take(&mut client).await? else {
        return Err(unexpected());
    };
    client.read_exact(&mut vec![0; methods.into()]).await?;
    client.write_all(&[VERSION, NO_AUTHENTICATION]).await?;

    let ip: IpAddr = match take(&mut client).await? {
        [VERSION, 1, 0, 1] => IpAddr::from(take::<4>(&mut client).await?),
        [VERSION, 1, 0, 4] => IpAddr::from(take::<16>(&mut client).await?),
        _ => return Err(unexpected()),
    };
    let destination = SocketAddr::new(ip, u16::from_be_bytes(take(&mut client).await?));
    let _ = asked.send(destination);
    let mut server = TcpStream::connect(destination).await?;
    client
        .write_all(&[VERSION, 0, 0, 1, 0, 0, 0, 0, 0, 0])
        .await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

async fn take<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
