//! What app and origin send each other, at the same time, and how they know that it arrived whole.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

/// What goes each way, in bytes.
pub(super) const SIZE: usize = 8 << 20;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    /// The one that connects.
    App,
    /// The one that accepts.
    Origin,
}

/// Sends what is due to the other side of a connection to `destination`, and checks all that comes from there, up to
/// the end of the stream.
///
/// # Errors
/// What the connection runs into, or [`io::ErrorKind::InvalidData`] for a byte that is wrong, missing or too much.
pub(super) async fn exchange(
    stream: &mut TcpStream,
    destination: SocketAddr,
    side: Side,
) -> io::Result<()> {
    let (app, origin) = (
        Pattern::new(destination, Side::App),
        Pattern::new(destination, Side::Origin),
    );
    let (mine, theirs) = match side {
        Side::App => (app, origin),
        Side::Origin => (origin, app),
    };
    let (read, write) = stream.split();
    tokio::try_join!(send(write, mine), receive(read, theirs))?;
    Ok(())
}

const CHUNK: usize = 64 << 10;

async fn send(mut stream: WriteHalf<'_>, mut pattern: Pattern) -> io::Result<()> {
    for _ in 0..SIZE / CHUNK {
        stream.write_all(pattern.next()).await?;
    }
    stream.shutdown().await
}

async fn receive(mut stream: ReadHalf<'_>, mut pattern: Pattern) -> io::Result<()> {
    let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let mut chunk = vec![0; CHUNK];
    for _ in 0..SIZE / CHUNK {
        stream.read_exact(&mut chunk).await?;
        if chunk != pattern.next() {
            return wrong("the bytes are not those that were sent");
        }
    }
    match stream.read(&mut chunk).await? {
        0 => Ok(()),
        _ => wrong("there are more bytes than were sent"),
    }
}

/// Bytes that only this side of a connection to this address sends, so that an answer from anywhere else is wrong:
/// a block of noise with a number at its head, again and again.
struct Pattern {
    block: Vec<u8>,
    number: u64,
}

impl Pattern {
    fn new(destination: SocketAddr, side: Side) -> Self {
        // An IPv4 address is the same in its IPv6 form.
        let address = match destination.ip().to_canonical() {
            IpAddr::V4(ip) => u128::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip),
        };
        let mut noise = DefaultHasher::new();
        (address, side).hash(&mut noise);
        let mut block = Vec::with_capacity(CHUNK);
        while block.len() < CHUNK {
            noise.write_usize(block.len());
            block.extend(noise.finish().to_le_bytes());
        }
        Self { block, number: 0 }
    }

    fn next(&mut self) -> &[u8] {
        self.number += 1;
        if let Some(head) = self.block.first_chunk_mut() {
            *head = self.number.to_le_bytes();
        }
        &self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_side_of_each_address_sends_other_bytes() {
        let first = |address, side| Pattern::new(at(address), side).next().to_owned();
        let app = first("192.0.2.1:1", Side::App);
        assert_ne!(app, first("192.0.2.1:1", Side::Origin));
        assert_ne!(app, first("192.0.2.2:1", Side::App));
        assert_eq!(app, first("[::ffff:192.0.2.1]:1", Side::App));
    }

    #[test]
    fn no_chunk_is_like_the_one_before() {
        let mut pattern = Pattern::new(at("192.0.2.1:1"), Side::App);
        let first = pattern.next().to_owned();
        assert_eq!(first.len(), CHUNK);
        assert_ne!(first, pattern.next());
    }

    /// What both sides say, when the origin takes the connection for one to `taken_for`.
    async fn both(taken_for: &str) -> (io::Result<()>, io::Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let origin = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            exchange(&mut stream, at(taken_for), Side::Origin).await
        };
        let app = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            exchange(&mut stream, at("192.0.2.1:80"), Side::App).await
        };
        tokio::join!(app, origin)
    }

    #[tokio::test]
    async fn a_whole_exchange_satisfies_both_sides() {
        let (app, origin) = both("192.0.2.1:80").await;
        app.unwrap();
        origin.unwrap();
    }

    #[tokio::test]
    async fn an_answer_from_another_address_is_noticed() {
        let (app, origin) = both("192.0.2.2:80").await;
        assert!(app.is_err() && origin.is_err());
    }
}
