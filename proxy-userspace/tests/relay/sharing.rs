//! What connections on one worker owe each other: little memory, and turns.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use proxy_userspace::{
    relay::{Progress, Relay, Side},
    rule::PathChoice,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use crate::{
    payload::expect_text,
    rig::{Rig, Way, connected, in_time},
};

/// Gives and takes without end and without ever waiting.
struct Torrent;

impl Side for Torrent {
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

impl AsyncRead for Torrent {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buffer.set_filled(buffer.capacity());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Torrent {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_torrent_lets_others_through() {
    const EXCHANGES: u64 = 50;
    let progress = Arc::<Progress>::default();
    let mut relay = Relay::new(Arc::clone(&progress), None);
    let torrent = tokio::spawn(async move {
        relay
            .run(&mut Torrent, &mut Torrent, PathChoice::Copy)
            .await
    });
    let mut rig = Rig::new(Way::By(PathChoice::Auto)).await;
    let before = progress.up();
    in_time(async {
        for _ in 0..EXCHANGES {
            rig.app.write_all(b"ping").await.unwrap();
            expect_text(&mut rig.server, b"ping").await;
            rig.server.write_all(b"pong").await.unwrap();
            expect_text(&mut rig.app, b"pong").await;
        }
    })
    .await;
    // Two reads by the relay and two by the apps, each behind at most a few turns of the torrent.
    let each = (progress.up() - before) / EXCHANGES;
    assert!(each <= 16 << 20, "{each} bytes went first in each exchange");
    torrent.abort();
}

#[tokio::test]
async fn a_connection_is_small() {
    let (mut downstream, mut upstream) = connected(None).await;
    let mut relay = Relay::new(Arc::default(), None);
    let state = size_of_val(&relay);
    let future = size_of_val(&relay.run(&mut downstream, &mut upstream, PathChoice::Auto));
    assert!(state <= 256, "{state} bytes of state");
    assert!(future <= 1024, "{future} bytes of future");
}
