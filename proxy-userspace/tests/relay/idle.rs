//! The idle timeout, on a clock that only runs when nothing else does.

use std::{ops::Range, sync::Arc, time::Duration};

use proxy_userspace::{
    close::CloseReason,
    relay::{Ended, Progress, Relay},
    rule::PathChoice,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::rig::Veiled;

const TIMEOUT: Duration = Duration::from_secs(100);
/// When a connection may be ended, counted from its last byte.
const ALLOWED: Range<Duration> = TIMEOUT..Duration::from_secs(126);
const BUFFER: usize = 1000;

struct Quiet {
    app: DuplexStream,
    server: DuplexStream,
    progress: Arc<Progress>,
    ended: JoinHandle<Ended>,
}

fn relayed(idle_timeout: Option<Duration>) -> Quiet {
    let (app, downstream) = duplex(BUFFER);
    let (upstream, server) = duplex(BUFFER);
    let progress = Arc::default();
    let mut relay = Relay::new(Arc::clone(&progress), idle_timeout);
    let ended = tokio::spawn(async move {
        relay
            .run(
                &mut Veiled(downstream),
                &mut Veiled(upstream),
                PathChoice::Copy,
            )
            .await
    });
    Quiet {
        app,
        server,
        progress,
        ended,
    }
}

async fn expect_timeout(ended: JoinHandle<Ended>, since: Instant) {
    let ended = ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::IdleTimeout);
    assert!(ended.must_reset() && ended.first_error.is_none());
    assert!(ALLOWED.contains(&since.elapsed()), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_ended() {
    let started = Instant::now();
    let quiet = relayed(Some(TIMEOUT));
    expect_timeout(quiet.ended, started).await;
}

#[tokio::test(start_paused = true)]
async fn a_byte_in_either_direction_keeps_it() {
    let mut quiet = relayed(Some(TIMEOUT));
    for _ in 0..20 {
        sleep(TIMEOUT * 9 / 10).await;
        quiet.app.write_all(b"a").await.unwrap();
        assert_eq!(quiet.server.read_u8().await.unwrap(), b'a');
        sleep(TIMEOUT * 9 / 10).await;
        quiet.server.write_all(b"b").await.unwrap();
        assert_eq!(quiet.app.read_u8().await.unwrap(), b'b');
    }
    expect_timeout(quiet.ended, Instant::now()).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_stops_reading_is_silent() {
    let mut quiet = relayed(Some(TIMEOUT));
    let started = Instant::now();
    quiet.app.write_all(&[7; 2 * BUFFER]).await.unwrap();
    expect_timeout(quiet.ended, started).await;
    assert_eq!(quiet.progress.up(), BUFFER as u64);
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_connection_is_ended_too() {
    let mut quiet = relayed(Some(TIMEOUT));
    let started = Instant::now();
    quiet.app.shutdown().await.unwrap();
    assert_eq!(quiet.server.read(&mut [0]).await.unwrap(), 0);
    expect_timeout(quiet.ended, started).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_timeout_it_stays() {
    let quiet = relayed(None);
    let month = Duration::from_hours(30 * 24);
    assert!(timeout(month, quiet.ended).await.is_err());
}
