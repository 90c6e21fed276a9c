//! The kernel's credit: what it bounds, and that a flow goes to the relay and back without a byte out of place.

use std::{pin::pin, time::Duration};

use proxy_userspace::close::CloseReason;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    payload::{Payload, expect_end},
    rig::{Rig, acknowledged, expect_reset, in_time, promotion, reset},
};

/// Silence after which a sender counts as stopped.
const STOPPED: Duration = Duration::from_millis(100);

/// Sends from where it is until nothing more is taken: the position then.
async fn send_until_stopped(
    payload: Payload,
    mut at: u64,
    sink: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> u64 {
    loop {
        let chunk = payload.bytes(at, 100_000);
        match timeout(STOPPED, sink.write(&chunk)).await {
            Ok(written) => at += written.unwrap() as u64,
            Err(_) => return at,
        }
    }
}

/// A reader that stops takes its direction out of the kernel; the other one stays, and does not wait for it.
#[tokio::test]
async fn a_slow_reader_demotes_its_own_direction_only() {
    const DOWN: Payload = Payload::new(2, 4 << 20);
    let Some(promotion) = promotion() else {
        return;
    };
    in_time(async {
        let mut rig = Rig::in_kernel(promotion).await;
        let up = Payload::new(1, u64::MAX);
        let sent = send_until_stopped(up, 0, &mut rig.app).await;
        let (before, demoted) = (rig.progress.in_kernel(), rig.progress.demotions());
        assert!(demoted > 0, "{sent} bytes found room without the relay");
        let mut at = 0;
        while at < DOWN.length {
            let message = DOWN.bytes(at, 8192);
            rig.server.write_all(&message).await.unwrap();
            let mut arrived = vec![0; message.len()];
            rig.app.read_exact(&mut arrived).await.unwrap();
            assert!(arrived == message, "at {at}");
            at += 8192;
        }
        let moved = rig.progress.in_kernel() - before;
        assert!(moved > DOWN.length / 2, "{moved} bytes by the kernel");
        Payload { length: sent, ..up }
            .receive(&mut rig.server, 100_000)
            .await;
    })
    .await;
}

/// The kernel gives a direction to the relay when the reader stops and takes it back when it reads, many times over.
#[tokio::test]
async fn a_direction_goes_to_the_relay_and_back() {
    const ROUNDS: u32 = 5;
    let Some(promotion) = promotion() else {
        return;
    };
    in_time(async {
        let mut rig = Rig::in_kernel(promotion).await;
        let payload = Payload::new(1, u64::MAX);
        let (mut sent, mut received) = (0, 0);
        for round in 0..ROUNDS {
            let before = rig.progress.in_kernel();
            sent = send_until_stopped(payload, sent, &mut rig.app).await;
            assert!(rig.progress.in_kernel() > before, "round {round}");
            assert!(rig.progress.demotions() > round, "round {round}");
            let mut arrived = vec![0; usize::try_from(sent - received).unwrap()];
            rig.server.read_exact(&mut arrived).await.unwrap();
            assert!(
                arrived == payload.bytes(received, arrived.len()),
                "round {round}"
            );
            received = sent;
        }
        rig.app.shutdown().await.unwrap();
        expect_end(&mut rig.server).await;
        drop(rig.server);
        expect_end(&mut rig.app).await;
        assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
        assert_eq!(rig.progress.up(), sent + 1);
    })
    .await;
}

/// The end is told behind the last redirected byte, however the bytes before it were cut into segments.
#[tokio::test]
async fn the_end_waits_for_what_was_redirected() {
    let Some(promotion) = promotion() else {
        return;
    };
    in_time(async {
        for round in 0..200 {
            let mut rig = Rig::in_kernel(promotion.clone()).await;
            let payload = Payload::new(round, 1 + round * 331);
            payload.send(&mut rig.app, 20_000).await.unwrap();
            rig.app.shutdown().await.unwrap();
            payload.receive(&mut rig.server, 100_000).await;
            expect_end(&mut rig.server).await;
            drop(rig.server);
            expect_end(&mut rig.app).await;
            assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
        }
    })
    .await;
}

/// What the kernel has taken before a reset arrives before the reset.
#[tokio::test]
async fn a_reset_overtakes_no_redirected_byte() {
    let Some(promotion) = promotion() else {
        return;
    };
    in_time(async {
        for round in 0..50 {
            let mut rig = Rig::in_kernel(promotion.clone()).await;
            let payload = Payload::new(round, 20_000);
            payload.send(&mut rig.app, 20_000).await.unwrap();
            acknowledged(&rig.app).await;
            reset(rig.app);
            payload.receive(&mut rig.server, 20_000).await;
            expect_reset(&mut rig.server).await;
            let ended = pin!(rig.ended).await.unwrap();
            assert_eq!(ended.reason, CloseReason::DownstreamReset);
        }
    })
    .await;
}

/// Whatever the relay and the kernel are doing when a reset comes, the other end never takes what arrived for the whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_reset_is_never_told_as_an_end() {
    let Some(promotion) = promotion() else {
        return;
    };
    in_time(async {
        for round in 0..2000 {
            let mut rig = Rig::promoted(promotion.clone()).await;
            let up = Payload::new(round, 1 + round % 3000);
            // As a target of the kernel's, the app's socket may be found broken by the kernel first. And nothing is written
            // later: a write would take the error that the read has to find.
            let down = Payload::new(!round, 60_000);
            down.send(&mut rig.server, 60_000).await.unwrap();
            up.send(&mut rig.app, 5000).await.unwrap();
            reset(rig.app);
            let mut arrived = Vec::new();
            let outcome = rig.server.read_to_end(&mut arrived).await;
            assert!(
                outcome.is_err(),
                "round {round}: the end after {} bytes",
                arrived.len()
            );
            assert!(arrived == up.bytes(0, arrived.len()), "round {round}");
        }
    })
    .await;
}
