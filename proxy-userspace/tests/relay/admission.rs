//! How a connection gets under the program, and what becomes of it when the kernel does not want it.

use std::sync::Arc;

use proxy_userspace::{
    close::CloseReason,
    intercept::Overlap,
    relay::{FIRST_WINDOW, Path, Promotion, Refusal},
    rule::PathChoice,
    socket,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    payload::{Payload, expect_end},
    rig::{Rig, Way, connected, in_time, promotion, promotion_with},
    sockmap::{Sockmap, asks_and_is_answered},
};

/// The kernel takes open connections only. That of a server which has ended its stream is not, and by then the app's socket is
/// in: what arrives on it meanwhile must not go with it.
#[tokio::test]
async fn bytes_that_come_while_upstream_is_refused_are_kept() {
    let Some(promotion) = promotion() else {
        return;
    };
    in_time(async {
        for round in 0..100 {
            let (mut app, mut downstream) = connected(None).await;
            let (mut upstream, mut server) = connected(None).await;
            server.shutdown().await.unwrap();
            expect_end(&mut upstream).await;
            let payload = Payload::new(round, 2_000_000);
            let sending = tokio::task::spawn_blocking(move || {
                // On a thread of its own, so that bytes come while the sockets are entered.
                let runtime = tokio::runtime::Handle::current();
                runtime.block_on(payload.send(&mut app, 100_000)).unwrap();
                app
            });
            downstream.readable().await.unwrap();
            let pair = promotion.accelerator.admit(&downstream, &upstream);
            let pair = pair.unwrap();
            assert!(!pair.whole, "the kernel took a connection that has ended");
            socket::handle_waiting(&downstream).unwrap();
            payload.receive(&mut downstream, 100_000).await;
            drop(sending.await.unwrap());
            expect_end(&mut downstream).await;
        }
    })
    .await;
}

/// A connection that is refused half-way is copied to its end.
#[tokio::test]
async fn a_connection_of_which_one_socket_is_taken_is_copied() {
    if promotion().is_none() {
        return;
    }
    in_time(async {
        let (stranger, _far) = connected(None).await;
        let (app, downstream) = connected(None).await;
        let (upstream, server) = connected(None).await;
        let somebody_else = Sockmap::new(2).unwrap();
        somebody_else.insert(0, &upstream).unwrap();
        somebody_else.insert(1, &stranger).unwrap();
        let mut rig = Rig::over(
            Way::By(PathChoice::Sockmap),
            (app, downstream),
            (upstream, server),
        );
        asks_and_is_answered(&mut rig).await;
        assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
        assert_eq!(rig.progress.path(), Path::Copy);
        assert_eq!((rig.progress.in_kernel(), rig.progress.demotions()), (0, 0));
    })
    .await;
}

/// What waits on both sockets when they are entered is handled, and goes before what comes later.
#[tokio::test]
async fn what_waits_arrives_first() {
    if promotion().is_none() {
        return;
    }
    in_time(async {
        for waiting in [1, 2, 4095, 4096, 65_535, 65_536, 300_000] {
            let (mut app, downstream) = connected(None).await;
            let (upstream, mut server) = connected(None).await;
            let (up, down) = (Payload::new(1, 2_000_000), Payload::new(2, 2_000_000));
            app.write_all(&up.bytes(0, waiting)).await.unwrap();
            server.write_all(&down.bytes(0, waiting)).await.unwrap();
            let mut rig = Rig::over(
                Way::By(PathChoice::Sockmap),
                (app, downstream),
                (upstream, server),
            );
            let later = 2_000_000 - waiting;
            let (later_up, later_down) = (
                up.bytes(waiting as u64, later),
                down.bytes(waiting as u64, later),
            );
            let (mut from_app, mut to_app) = rig.app.split();
            let (mut from_server, mut to_server) = rig.server.split();
            tokio::join!(
                async { to_app.write_all(&later_up).await.unwrap() },
                async { to_server.write_all(&later_down).await.unwrap() },
                up.receive(&mut from_server, 100_000),
                down.receive(&mut from_app, 100_000),
            );
            assert_eq!(rig.progress.path(), Path::Sockmap);
        }
    })
    .await;
}

/// Sends `length` bytes in writes of `size`, each of which the server has before the next one goes.
async fn one_by_one(rig: &mut Rig, length: usize, size: usize) {
    let mut received = vec![0; size];
    for _ in 0..length / size {
        rig.app.write_all(&received).await.unwrap();
        rig.server.read_exact(&mut received).await.unwrap();
    }
}

#[tokio::test]
async fn it_is_promoted_after_so_many_bytes_and_not_before() {
    let Some(promotion) = promotion() else {
        return;
    };
    for bytes in [2, 4095, 4096, 65_535, 65_536] {
        let mut rig = Rig::promoted(Promotion {
            bytes: bytes as u64,
            reads: u32::MAX,
            ..promotion.clone()
        })
        .await;
        one_by_one(&mut rig, bytes - 1, bytes - 1).await;
        assert_eq!(rig.progress.path(), Path::Copy, "after {bytes} - 1");
        one_by_one(&mut rig, 1, 1).await;
        assert_eq!(rig.progress.path(), Path::Sockmap, "after {bytes}");
    }
}

#[tokio::test]
async fn it_is_promoted_after_so_many_reads_and_not_before() {
    let Some(promotion) = promotion() else {
        return;
    };
    for reads in [2_u32, 3, 8] {
        let mut rig = Rig::promoted(Promotion {
            bytes: u64::MAX,
            reads,
            ..promotion.clone()
        })
        .await;
        one_by_one(&mut rig, reads as usize - 1, 1).await;
        assert_eq!(rig.progress.path(), Path::Copy, "after {reads} - 1");
        one_by_one(&mut rig, 1, 1).await;
        assert_eq!(rig.progress.path(), Path::Sockmap, "after {reads}");
    }
}

/// What all connections together may have in flight has a bound; whoever finds nothing left is copied.
#[tokio::test]
async fn connections_share_a_budget() {
    /// More than it is.
    const BEYOND: u64 = 1 << 30;
    // Of this test alone, since it takes everything.
    let Some(promotion) = promotion_with(Overlap::Cut) else {
        return;
    };
    let accelerator = Arc::clone(&promotion.accelerator);
    let sockets = [connected(None).await, connected(None).await];
    let others = [connected(None).await, connected(None).await];
    let greedy = accelerator.admit(&sockets[0].1, &sockets[1].0).unwrap();
    assert!(!greedy.up.reserve(BEYOND));
    let pieces = BEYOND / FIRST_WINDOW;
    let taken = (0..pieces).take_while(|_| greedy.up.reserve(FIRST_WINDOW));
    assert!((100..pieces).contains(&(taken.count() as u64)));
    let refused = accelerator.admit(&others[0].1, &others[1].0);
    assert_eq!(refused.err(), Some(Refusal::Budget));
    let mut rig = Rig::promoted(promotion).await;
    one_by_one(&mut rig, 100, 10).await;
    assert_eq!(rig.progress.path(), Path::Copy);
    drop(greedy);
    assert!(accelerator.admit(&others[0].1, &others[1].0).is_ok());
}
