//! How often the relay is woken for a connection that the kernel moves.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use proxy_userspace::{
    relay::{MOST_WINDOW, Path, Progress, Relay},
    rule::PathChoice,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::sleep};

use crate::{
    payload::{Payload, expect_text},
    rig::{connected, in_time, promotion, relay_and_close},
};

/// A connection whose turns are counted.
struct Counted {
    app: TcpStream,
    server: TcpStream,
    progress: Arc<Progress>,
    turns: Arc<AtomicU64>,
}

impl Counted {
    /// On the sockmap path, if there is one here.
    async fn new() -> Option<Self> {
        let promotion = promotion()?;
        let ((app, downstream), (upstream, server)) =
            (connected(None).await, connected(None).await);
        let progress = Arc::<Progress>::default();
        let relay = Relay::new(Arc::clone(&progress), None).with_promotion(Some(promotion));
        let turns = Arc::<AtomicU64>::default();
        let relaying = Turns {
            of: Box::pin(relay_and_close(
                relay,
                downstream,
                upstream,
                PathChoice::Sockmap,
            )),
            turns: Arc::clone(&turns),
        };
        tokio::spawn(relaying);
        Some(Self {
            app,
            server,
            progress,
            turns,
        })
    }

    /// Sends one payload from the app to the server, as fast as it goes: the turns that took.
    async fn transfer(&mut self, payload: Payload) -> u64 {
        let before = self.turns.load(Relaxed);
        tokio::join!(
            async { payload.send(&mut self.app, 1 << 20).await.unwrap() },
            payload.receive(&mut self.server, 1 << 20),
        );
        self.turns.load(Relaxed) - before
    }
}

struct Turns<F> {
    of: Pin<Box<F>>,
    turns: Arc<AtomicU64>,
}

impl<F: Future> Future for Turns<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.turns.fetch_add(1, Relaxed);
        self.of.as_mut().poll(cx)
    }
}

#[tokio::test]
async fn an_idle_connection_wakes_nobody() {
    in_time(async {
        let mut connections = Vec::new();
        for _ in 0..20 {
            let Some(mut connection) = Counted::new().await else {
                return;
            };
            connection.app.write_all(b"ping").await.unwrap();
            expect_text(&mut connection.server, b"ping").await;
            connection.server.write_all(b"pong").await.unwrap();
            expect_text(&mut connection.app, b"pong").await;
            assert_eq!(connection.progress.path(), Path::Sockmap);
            connections.push(connection);
        }
        let turns = || -> u64 {
            let each = connections.iter().map(|one| one.turns.load(Relaxed));
            each.sum()
        };
        // Longer than the longest pause between two looks at a target.
        sleep(Duration::from_millis(50)).await;
        let before = turns();
        sleep(Duration::from_millis(500)).await;
        assert_eq!(turns(), before);
    })
    .await;
}

/// Small messages are moved without a turn of the relay, as long as the credit lasts.
#[tokio::test]
async fn messages_within_the_credit_wake_nobody() {
    in_time(async {
        let Some(mut connection) = Counted::new().await else {
            return;
        };
        for round in 0..100 {
            if round == 10 {
                // Until it rests.
                sleep(Duration::from_millis(50)).await;
                connection.turns.store(0, Relaxed);
            }
            connection.app.write_all(b"question").await.unwrap();
            expect_text(&mut connection.server, b"question").await;
            connection.server.write_all(b"answer").await.unwrap();
            expect_text(&mut connection.app, b"answer").await;
        }
        assert_eq!(connection.turns.load(Relaxed), 0);
    })
    .await;
}

#[tokio::test]
async fn a_busy_connection_wakes_the_relay_at_most_once_per_half_window() {
    const LENGTH: u64 = 64 << 20;
    /// A machine that is busy with other things may keep the window small for a while.
    const ATTEMPTS: u64 = 20;
    in_time(async {
        let Some(mut connection) = Counted::new().await else {
            return;
        };
        for stream in 0..ATTEMPTS {
            let before = connection.progress.demotions();
            let turns = connection.transfer(Payload::new(stream, LENGTH)).await;
            let demotions = u64::from(connection.progress.demotions() - before);
            println!("{turns} turns, {demotions} demotions");
            // Each of those takes some turns to read what was passed and to go back.
            if demotions < 4 && turns <= LENGTH / (MOST_WINDOW / 2) + 8 * demotions + 1 {
                return;
            }
        }
        panic!("more than one turn per half window");
    })
    .await;
}
