//! A direction is given to the kernel and taken from it again at every place around which something changes, with packets lost and
//! without: every byte arrives, and the hand-over is where it has to be.
//!
//! The kernel and the relay are the real ones. Only how far the credit reaches is for the test to say ([`Ration`]).

use std::{
    os::fd::{AsFd as _, OwnedFd},
    process::Command,
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use proxy_userspace::{
    close::CloseReason,
    relay::{FIRST_WINDOW, Promotion},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedWriteHalf},
    runtime::Builder,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    payload::{Payload, expect_end},
    ration::{Entered, Ration, Rationed},
    rig::{Rig, SOON, await_that, connected, in_time, promotion},
};

/// Most bytes to send before they have arrived: the credit is extended meanwhile.
const PIECE: u64 = 16 * 1024;

/// What comes at the place where the credit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A message that begins there.
    Message,
    /// A message of which one byte is before the place and one behind it.
    Across,
    /// One byte, and in the same segment the end of the stream.
    LastByte,
    /// The end of the stream.
    End,
}

/// One connection.
#[derive(Clone, Copy, Debug)]
struct Case {
    is_down: bool,
    /// Bytes that are copied before the connection is promoted.
    copied: u64,
    /// Bytes that wait on the socket when it is entered.
    queued: u64,
    /// Bytes that the kernel gets.
    place: u64,
    next: Next,
}

/// The far ends of a connection, and what goes from one to the other.
struct Line {
    from: TcpStream,
    to: TcpStream,
    payload: Payload,
    at: u64,
}

impl Line {
    /// The next bytes of the stream.
    fn take(&mut self, length: u64) -> Vec<u8> {
        let bytes = self
            .payload
            .bytes(self.at, usize::try_from(length).unwrap());
        self.at += length;
        bytes
    }

    async fn receive(&mut self, bytes: &[u8]) {
        let mut received = vec![0; bytes.len()];
        self.to.read_exact(&mut received).await.unwrap();
        assert!(received == bytes, "within {} at {}", bytes.len(), self.at);
    }

    /// Sends bytes and waits until they have arrived.
    async fn cross(&mut self, length: u64) {
        let bytes = self.take(length);
        self.from.write_all(&bytes).await.unwrap();
        self.receive(&bytes).await;
    }

    /// The other way.
    async fn answer(&mut self) {
        self.to.write_all(b"!").await.unwrap();
        let mut answer = [0];
        self.from.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"!");
    }
}

impl Case {
    async fn play(self, promotion: Promotion) {
        let (app, downstream) = connected(None).await;
        let (upstream, server) = connected(None).await;
        let (from, to) = if self.is_down {
            (server, app)
        } else {
            (app, server)
        };
        let mut line = Line {
            payload: Payload::new(self.place ^ self.copied << 20, u64::MAX),
            at: 0,
            from,
            to,
        };
        let peer: OwnedFd = line.from.as_fd().try_clone_to_owned().unwrap();
        let waiting = usize::try_from(self.queued).unwrap();
        let waiting = line.payload.bytes(self.copied, waiting);
        let rationed = Arc::new(Rationed {
            inner: promotion.accelerator,
            is_down: self.is_down,
            // Once more for a byte and for the same again, and then never.
            spans: vec![self.place, 1, self.place],
            queued: Mutex::new((self.queued > 0).then(|| (peer.into(), waiting))),
            entered: OnceLock::new(),
        });
        let promotion = Promotion {
            accelerator: Arc::<Rationed>::clone(&rationed),
            bytes: self.copied,
            reads: u32::MAX,
        };
        let (progress, ended) = Rig::relayed(promotion, downstream, upstream);
        if self.copied > 0 {
            line.cross(self.copied).await;
        }
        await_that("a promotion", || rationed.entered.get().is_some()).await;
        let Entered { ration, other } = rationed.entered.get().unwrap().clone();
        if self.queued > 0 {
            let waiting = line.take(self.queued);
            line.receive(&waiting).await;
            assert_eq!(ration.moved(), (0, self.queued));
        }
        let mut turn = 0;
        let is_over = loop {
            turn += 1;
            let span = if turn == 2 { 1 } else { self.place };
            await_that("the kernel to take over", || ration.state().resumed == turn).await;
            if self.hand_over(&mut line, &ration, span).await {
                break true;
            }
            let (redirected, answered) = (ration.moved(), other.redirected());
            line.answer().await;
            assert_eq!(other.redirected(), answered + 1, "the other direction");
            assert_eq!(ration.moved(), redirected);
            if turn == 3 {
                break false;
            }
        };
        if !is_over {
            // Back to copying for good.
            let (redirected, passed) = ration.moved();
            line.cross(PIECE).await;
            assert_eq!(ration.moved(), (redirected, passed + PIECE));
            line.from.shutdown().await.unwrap();
        }
        expect_end(&mut line.to).await;
        line.to.shutdown().await.unwrap();
        expect_end(&mut line.from).await;
        assert_eq!(ended.await.unwrap().reason, CloseReason::Done);
        let (redirected, passed) = ration.moved();
        assert_eq!(redirected + passed, line.at - self.copied);
        let one_way = if self.is_down {
            progress.down()
        } else {
            progress.up()
        };
        assert_eq!(one_way, line.at);
    }

    /// Has the kernel redirect a span and pass what comes next; returns whether that was the end.
    async fn hand_over(self, line: &mut Line, ration: &Ration, span: u64) -> bool {
        let (mut redirected, mut passed) = ration.moved();
        let held_back = u64::from(self.next == Next::Across);
        let mut left = span - held_back;
        while left > 0 {
            let piece = left.min(PIECE);
            left -= piece;
            redirected += piece;
            let granted = || ration.state().limit >= redirected;
            await_that("credit", granted).await;
            if left == 0 && self.next == Next::End {
                let bytes = line.take(piece);
                line.from.write_all(&bytes).await.unwrap();
                line.from.shutdown().await.unwrap();
                line.receive(&bytes).await;
                assert_eq!(ration.moved(), (redirected, passed));
                return true;
            }
            line.cross(piece).await;
            assert_eq!(ration.moved(), (redirected, passed), "before the place");
        }
        match self.next {
            Next::Message | Next::Across => {
                passed += 1 + held_back;
                line.cross(1 + held_back).await;
            }
            Next::LastByte => {
                passed += 1;
                let last = line.take(1);
                SockRef::from(&line.from).set_tcp_cork(true).unwrap();
                line.from.write_all(&last).await.unwrap();
                line.from.shutdown().await.unwrap();
                line.receive(&last).await;
            }
            Next::End => unreachable!("every span has a byte"),
        }
        assert_eq!(ration.moved(), (redirected, passed), "behind the place");
        self.next == Next::LastByte
    }
}

/// Around a byte, a segment, where the credit is extended, and where it ends.
fn places(segment: u64) -> Vec<u64> {
    let around = [segment, FIRST_WINDOW / 2, FIRST_WINDOW];
    let around = around.into_iter().flat_map(|place| place - 1..=place + 1);
    [1, 2, 700].into_iter().chain(around).collect()
}

fn cases(segment: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    for is_down in [false, true] {
        for place in places(segment) {
            for next in [Next::Message, Next::Across, Next::LastByte, Next::End] {
                cases.push(Case {
                    is_down,
                    copied: 0,
                    queued: 0,
                    place,
                    next,
                });
            }
            // Promoted there, and not at the beginning.
            for queued in [0, 1, segment - 1, segment, segment + 1, 10_000] {
                cases.push(Case {
                    is_down,
                    copied: place,
                    queued,
                    place: segment,
                    next: Next::Message,
                });
            }
        }
    }
    cases
}

/// Bytes of a segment on loopback.
async fn segment() -> u64 {
    let (one, _other) = connected(None).await;
    SockRef::from(&one).tcp_mss().unwrap().into()
}

/// Does something in a network namespace that ends with it, where segments are small and come one by one. One packet in so many
/// is lost, if any.
fn apart(loss: Option<u32>, work: impl Future<Output = ()> + Send) {
    let loss = loss.map(|packets| {
        format!(
            "nft add table inet loss
             nft add chain inet loss lossy {{ type filter hook input priority 0 ; }}
             nft add rule inet loss lossy tcp flags & (rst | syn) == 0 numgen random mod {packets} lt 1 drop"
        )
    });
    let commands = [
        "ip link set lo mtu 1500 gso_max_segs 1 up".to_owned(),
        loss.unwrap_or_default(),
    ];
    let work = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for command in commands.iter().flat_map(|lines| lines.lines()) {
            let mut words = command.split_ascii_whitespace();
            let status = Command::new(words.next().unwrap()).args(words).status();
            assert!(status.unwrap().success(), "{command}");
        }
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(in_time(work));
    };
    thread::scope(|scope| {
        let done = scope.spawn(work).join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn at_every_place(loss: Option<u32>) {
    let Some(promotion) = promotion() else {
        return;
    };
    apart(loss, async {
        let mut all = JoinSet::new();
        for case in cases(segment().await) {
            let promotion = promotion.clone();
            all.spawn(async move {
                // Told from the others if it fails.
                let played = tokio::spawn(timeout(SOON, case.play(promotion))).await;
                let played = played.unwrap_or_else(|error| panic!("{case:?}: {error}"));
                assert!(played.is_ok(), "{case:?} hangs");
            });
        }
        all.join_all().await;
    });
}

#[test]
fn the_kernel_lets_go_and_takes_over_at_every_place() {
    at_every_place(None);
}

#[test]
fn so_it_does_while_packets_are_lost() {
    at_every_place(Some(30));
}

/// Sends everything, and lets the relay catch up now and then: only then the kernel may take over.
async fn send_with_pauses(payload: Payload, sink: &mut OwnedWriteHalf) {
    let mut at = 0;
    while at < payload.length {
        let size = (1 + at * 7 % 9973).min(payload.length - at);
        let bytes = payload.bytes(at, usize::try_from(size).unwrap());
        sink.write_all(&bytes).await.unwrap();
        at += size;
        if at % 5 == 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }
    sink.shutdown().await.unwrap();
}

/// All spans one after the other, and again, without waiting for what was sent to arrive. Returns how often the kernel was to take
/// over.
async fn in_flow(promotion: Promotion, seed: u64) -> usize {
    const LENGTH: u64 = 2 << 20;
    let rationed = |is_down, inner, segment| {
        let spans = places(segment).into_iter().cycle().take(1000).collect();
        Arc::new(Rationed {
            inner,
            is_down,
            spans,
            queued: Mutex::new(None),
            entered: OnceLock::new(),
        })
    };
    let segment = segment().await;
    let up = rationed(false, promotion.accelerator, segment);
    let both = rationed(true, Arc::<Rationed>::clone(&up) as _, segment);
    let (app, downstream) = connected(None).await;
    let (upstream, server) = connected(None).await;
    let promotion = Promotion {
        accelerator: Arc::<Rationed>::clone(&both),
        bytes: 0,
        reads: 0,
    };
    let (progress, ended) = Rig::relayed(promotion, downstream, upstream);
    let (mut from_app, mut to_app) = app.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (first, second) = (Payload::new(seed, LENGTH), Payload::new(!seed, LENGTH));
    tokio::join!(
        send_with_pauses(first, &mut to_app),
        send_with_pauses(second, &mut to_server),
        async {
            first.receive(&mut from_server, 100_000).await;
            expect_end(&mut from_server).await;
        },
        async {
            second.receive(&mut from_app, 100_000).await;
            expect_end(&mut from_app).await;
        },
    );
    assert_eq!(ended.await.unwrap().reason, CloseReason::Done);
    assert_eq!((progress.up(), progress.down()), (LENGTH, LENGTH));
    let resumed =
        [up, both].map(|direction| direction.entered.get().unwrap().ration.state().resumed);
    resumed.iter().sum()
}

#[test]
fn it_does_so_again_and_again_while_bytes_flow_and_packets_are_lost() {
    let Some(promotion) = promotion() else {
        return;
    };
    apart(Some(30), async {
        let flows: JoinSet<_> = (0..8)
            .map(|seed| in_flow(promotion.clone(), seed))
            .collect();
        let resumed: usize = flows.join_all().await.iter().sum();
        // How often depends on how busy the machine is.
        assert!(resumed > 50, "{resumed}");
    });
}
