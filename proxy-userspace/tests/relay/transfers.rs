//! Everything arrives, once and in order.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_userspace::{close::CloseReason, relay::Path, rule::PathChoice};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    payload::{Payload, expect_end},
    rig::{Rig, Way, in_time, on_each_path},
};

on_each_path!(
    both_ways_at_once,
    through_tiny_buffers,
    to_a_slow_reader,
    server_speaks_first,
    request_and_response,
    nothing_at_all,
    bulk,
    a_thousand_at_once,
);

/// Sends one payload and expects another at the same time, then the end of both.
async fn exchange(stream: TcpStream, sends: Payload, expects: Payload, largest: usize) {
    let (mut reading, mut writing) = stream.into_split();
    let send = async {
        sends.send(&mut writing, largest).await.unwrap();
        writing.shutdown().await.unwrap();
    };
    let receive = async {
        expects.receive(&mut reading, largest).await;
        expect_end(&mut reading).await;
    };
    tokio::join!(send, receive);
}

async fn exchange_through(rig: Rig, up: Payload, down: Payload, largest: usize) {
    let Rig {
        app,
        server,
        progress,
        ended,
    } = rig;
    tokio::join!(
        exchange(app, up, down, largest),
        exchange(server, down, up, largest),
    );
    let ended = ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::Done, "{ended:?}");
    assert!(ended.first_error.is_none(), "{ended:?}");
    assert_eq!(
        (progress.up(), progress.down()),
        (up.length, down.length),
        "byte counts"
    );
}

async fn both_ways_at_once(way: Way) {
    let rig = Rig::new(way).await;
    let (up, down) = (Payload::new(1, 8 << 20), Payload::new(2, 8 << 20));
    exchange_through(rig, up, down, 200_000).await;
}

async fn through_tiny_buffers(way: Way) {
    let rig = Rig::with_buffers(way, Some(2048)).await;
    let (up, down) = (Payload::new(3, 1 << 20), Payload::new(4, 1 << 20));
    exchange_through(rig, up, down, 7_000).await;
}

async fn to_a_slow_reader(way: Way) {
    let Rig {
        mut app,
        mut server,
        ended,
        ..
    } = Rig::new(way).await;
    // Far more than all socket buffers on the way take, into an app that takes small sips.
    let reply = Payload::new(5, 24 << 20);
    let serving = tokio::spawn(async move {
        reply.send(&mut server, 1 << 20).await.unwrap();
        server.shutdown().await.unwrap();
        expect_end(&mut server).await;
    });
    reply.receive(&mut app, 3_000).await;
    expect_end(&mut app).await;
    drop(app);
    serving.await.unwrap();
    assert_eq!(ended.await.unwrap().reason, CloseReason::Done);
}

async fn server_speaks_first(way: Way) {
    let mut rig = Rig::new(way).await;
    let greeting = Payload::new(6, 60);
    greeting.send(&mut rig.server, 60).await.unwrap();
    greeting.receive(&mut rig.app, 60).await;
    let answer = Payload::new(7, 10);
    answer.send(&mut rig.app, 10).await.unwrap();
    answer.receive(&mut rig.server, 10).await;
    drop(rig.server);
    expect_end(&mut rig.app).await;
    drop(rig.app);
    assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
}

async fn request_and_response(way: Way) {
    let mut rig = Rig::new(way).await;
    for round in 0..200 {
        // Also of sizes around the first read size and around what is worth a pipe.
        let size = [1, 64, 16_383, 16_384, 16_385, 65_536, 300_000][round % 7];
        let request = Payload::new(round as u64, size);
        let response = Payload::new(!(round as u64), size / 2 + 1);
        let asking = async {
            request.send(&mut rig.app, 1 << 20).await.unwrap();
            response.receive(&mut rig.app, 1 << 20).await;
        };
        let answering = async {
            request.receive(&mut rig.server, 1 << 20).await;
            response.send(&mut rig.server, 1 << 20).await.unwrap();
        };
        tokio::join!(asking, answering);
    }
    drop((rig.app, rig.server));
    assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
}

async fn nothing_at_all(way: Way) {
    let rig = Rig::new(way).await;
    let (up, down) = (Payload::new(8, 0), Payload::new(9, 0));
    exchange_through(rig, up, down, 1).await;
}

async fn bulk(way: Way) {
    let rig = Rig::new(way).await;
    let progress = rig.progress.clone();
    let (up, down) = (Payload::new(10, 64 << 20), Payload::new(11, 5));
    exchange_through(rig, up, down, 1 << 20).await;
    // Where a choice changes all the time, it is by chance where it ends.
    let expected = match way {
        Way::By(PathChoice::Splice) | Way::Best([Path::Splice, Path::Splice, Path::Splice]) => {
            Path::Splice
        }
        // The server has told its end before the relay begins, and the kernel takes open connections only.
        Way::By(_) | Way::Best([Path::Sockmap, ..]) => Path::Copy,
        Way::Best(_) => return,
    };
    assert_eq!(progress.path(), expected, "nothing made it fall back");
}

async fn a_thousand_at_once(way: Way) {
    // Four files each; interactive shells start with 1024.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut flows = JoinSet::new();
    for number in 0..1000 {
        flows.spawn(async move {
            let rig = Rig::new(way).await;
            let up = Payload::new(2 * number, 1 + number * 97);
            let down = Payload::new(2 * number + 1, 1 + (1000 - number) * 89);
            exchange_through(rig, up, down, 20_000).await;
        });
    }
    while let Some(flow) = flows.join_next().await {
        flow.unwrap();
    }
}

#[tokio::test]
async fn counts_grow_while_it_runs() {
    let mut rig = Rig::new(Way::By(PathChoice::Auto)).await;
    let mut echoed = [0; 3];
    rig.app.write_all(b"abc").await.unwrap();
    rig.server.read_exact(&mut echoed).await.unwrap();
    assert_eq!((rig.progress.up(), rig.progress.down()), (3, 0));
    rig.server.write_all(b"de").await.unwrap();
    rig.app.read_exact(&mut echoed[..2]).await.unwrap();
    assert_eq!((rig.progress.up(), rig.progress.down()), (3, 2));
}

/// Passed bytes that find no room wait where a read does not see them, and the end of the stream with them. What goes wrong
/// then goes wrong one time in fifteen.
#[tokio::test]
async fn the_end_waits_for_bytes_that_found_no_room() {
    if crate::rig::promotion().is_some() {
        for _ in 0..40 {
            in_time(through_tiny_buffers(Way::By(PathChoice::Sockmap))).await;
        }
    }
}
