//! A connection changes its path in the middle of everything and loses nothing.

use std::sync::Arc;

use proxy_userspace::{
    close::CloseReason,
    relay::{Ended, Path, Paths, Progress, Relay},
    rule::PathChoice,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::yield_now};

use crate::{
    payload::{Payload, expect_end},
    rig::{Veiled, connected, in_time, measured},
};

/// Relays by one path and the others in turns, each for a few polls.
async fn alternate(mut downstream: TcpStream, mut upstream: TcpStream) -> (Ended, usize) {
    let paths = Paths::judging_after(1, 1);
    paths.set_measured(measured([Path::Copy, Path::Splice, Path::Splice]));
    let mut relay = Relay::new(Arc::new(Progress::default()), None).with_paths(Arc::new(paths));
    for switches in 0.. {
        let path = [PathChoice::Copy, PathChoice::Splice, PathChoice::Auto][switches % 3];
        let stay = async {
            for _ in 0..switches % 4 {
                yield_now().await;
            }
        };
        tokio::select! {
            biased;
            ended = relay.run(&mut downstream, &mut upstream, path) => return (ended, switches),
            () = stay => {}
        }
    }
    unreachable!("the relay ends before the numbers do");
}

async fn exchange(buffers: Option<u32>, length: u64) {
    let (mut app, downstream) = connected(buffers).await;
    let (upstream, mut server) = connected(buffers).await;
    let relaying = tokio::spawn(alternate(downstream, upstream));
    let (up, down) = (Payload::new(1, length), Payload::new(2, length));
    let (mut app_reads, mut app_writes) = app.split();
    let (mut server_reads, mut server_writes) = server.split();
    tokio::join!(
        async {
            up.send(&mut app_writes, 1 << 20).await.unwrap();
            app_writes.shutdown().await.unwrap();
        },
        async {
            down.send(&mut server_writes, 1 << 20).await.unwrap();
            server_writes.shutdown().await.unwrap();
        },
        async {
            up.receive(&mut server_reads, 100_000).await;
            expect_end(&mut server_reads).await;
        },
        async {
            down.receive(&mut app_reads, 100_000).await;
            expect_end(&mut app_reads).await;
        },
    );
    let (ended, switches) = relaying.await.unwrap();
    assert_eq!(ended.reason, CloseReason::Done);
    // At most a mebibyte per poll and four polls per path.
    assert!(switches >= 8, "only {switches} switches");
}

#[tokio::test]
async fn while_much_is_in_flight() {
    in_time(exchange(None, 32 << 20)).await;
}

#[tokio::test]
async fn while_the_buffers_are_full() {
    in_time(exchange(Some(100_000), 24 << 20)).await;
}

/// What waits in a pipe goes on by copy where the sink no longer is a socket that takes a splice.
#[tokio::test]
async fn with_a_full_pipe() {
    let (mut app, mut downstream) = connected(None).await;
    let (mut upstream, mut server) = connected(None).await;
    let bulk = Payload::new(1, 32 << 20);
    let sending = tokio::spawn(async move {
        bulk.send(&mut app, 1 << 20).await.unwrap();
        app
    });
    let mut relay = Relay::new(Arc::default(), None);
    let until_stuck = async {
        for _ in 0..1000 {
            yield_now().await;
        }
    };
    tokio::select! {
        ended = relay.run(&mut downstream, &mut upstream, PathChoice::Splice) => panic!("{ended:?}"),
        () = until_stuck => {}
    }
    let mut upstream = Veiled(upstream);
    let receiving = async {
        bulk.receive(&mut server, 1 << 20).await;
        server.shutdown().await.unwrap();
        drop(sending.await.unwrap());
        expect_end(&mut server).await;
    };
    let (ended, ()) = in_time(async {
        tokio::join!(
            relay.run(&mut downstream, &mut upstream, PathChoice::Copy),
            receiving
        )
    })
    .await;
    assert_eq!(ended.reason, CloseReason::Done);
}
