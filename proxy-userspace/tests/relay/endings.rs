//! Half-close, reset and everything between: each side learns what the other one did.

use std::io::ErrorKind;

use proxy_userspace::close::CloseReason;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    payload::{Payload, expect_end, expect_text},
    rig::{Rig, Way, expect_reset, on_each_path, reset},
};

on_each_path!(
    app_half_closes_first,
    server_half_closes_first,
    half_close_behind_waiting_bytes,
    app_resets_while_sending,
    server_resets_while_sending,
    app_resets_while_receiving,
    server_resets_while_receiving,
    app_leaves_before_the_answer,
    server_leaves_before_the_question,
    refusal_of_an_upload,
    interruption_of_a_download,
    reset_after_half_close,
);

/// More than all the socket buffers on the way take.
const ENDLESS: Payload = Payload::new(1, 1 << 30);

/// `first` says something and half-closes; `second` learns it and still gets a long answer through.
async fn half_close(first: &mut TcpStream, second: &mut TcpStream) {
    let request = Payload::new(2, 1_000_000);
    let response = Payload::new(3, 5_000_000);
    let asking = async {
        request.send(first, 50_000).await.unwrap();
        first.shutdown().await.unwrap();
        response.receive(first, 50_000).await;
        expect_end(first).await;
    };
    let answering = async {
        request.receive(second, 50_000).await;
        expect_end(second).await;
        response.send(second, 50_000).await.unwrap();
        second.shutdown().await.unwrap();
    };
    tokio::join!(asking, answering);
}

async fn app_half_closes_first(way: Way) {
    let mut rig = Rig::new(way).await;
    half_close(&mut rig.app, &mut rig.server).await;
    let counts = (rig.progress.up(), rig.progress.down());
    assert_eq!(counts, (1_000_000, 5_000_000));
    assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
}

async fn server_half_closes_first(way: Way) {
    let mut rig = Rig::new(way).await;
    half_close(&mut rig.server, &mut rig.app).await;
    let counts = (rig.progress.up(), rig.progress.down());
    assert_eq!(counts, (5_000_000, 1_000_000));
    assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
}

async fn half_close_behind_waiting_bytes(way: Way) {
    let mut rig = Rig::with_buffers(way, Some(4096)).await;
    // Everything fits into the socket buffers and the relay only together, so the server reads when the app has closed.
    let request = Payload::new(4, 12_000);
    request.send(&mut rig.app, 12_000).await.unwrap();
    rig.app.shutdown().await.unwrap();
    request.receive(&mut rig.server, 500).await;
    expect_end(&mut rig.server).await;
    drop(rig.server);
    expect_end(&mut rig.app).await;
    assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
}

/// `from` sends without end to `to`, which takes some of it and then stops reading.
async fn begin_to_send(from: &mut TcpStream, to: &mut TcpStream) {
    tokio::select! {
        sent = ENDLESS.send(from, 1 << 20) => panic!("all of it went away: {sent:?}"),
        () = Payload::new(ENDLESS.stream, 3_000_000).receive(to, 50_000) => {}
    }
}

async fn app_resets_while_sending(way: Way) {
    let mut rig = Rig::new(way).await;
    begin_to_send(&mut rig.app, &mut rig.server).await;
    reset(rig.app);
    expect_reset(&mut rig.server).await;
    let ended = rig.ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::DownstreamReset, "{ended:?}");
    assert!(ended.first_error.is_some());
}

async fn server_resets_while_sending(way: Way) {
    let mut rig = Rig::new(way).await;
    begin_to_send(&mut rig.server, &mut rig.app).await;
    reset(rig.server);
    expect_reset(&mut rig.app).await;
    let ended = rig.ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::UpstreamReset, "{ended:?}");
    assert!(ended.first_error.is_some());
}

async fn app_resets_while_receiving(way: Way) {
    let mut rig = Rig::new(way).await;
    begin_to_send(&mut rig.server, &mut rig.app).await;
    reset(rig.app);
    expect_reset(&mut rig.server).await;
    let ended = rig.ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::DownstreamReset, "{ended:?}");
}

async fn server_resets_while_receiving(way: Way) {
    let mut rig = Rig::new(way).await;
    begin_to_send(&mut rig.app, &mut rig.server).await;
    reset(rig.server);
    expect_reset(&mut rig.app).await;
    let ended = rig.ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::UpstreamReset, "{ended:?}");
}

/// An end of stream is not yet a reset: what is sent to somebody who has gone is.
async fn expect_nobody_listens(stream: &mut TcpStream) {
    expect_end(stream).await;
    let error = ENDLESS.send(stream, 1 << 20).await.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ),
        "{error}"
    );
}

async fn app_leaves_before_the_answer(way: Way) {
    let mut rig = Rig::new(way).await;
    rig.app.write_all(b"quit").await.unwrap();
    drop(rig.app);
    expect_text(&mut rig.server, b"quit").await;
    expect_nobody_listens(&mut rig.server).await;
    let ended = rig.ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::DownstreamReset, "{ended:?}");
}

async fn server_leaves_before_the_question(way: Way) {
    let mut rig = Rig::new(way).await;
    rig.server.write_all(b"421 busy").await.unwrap();
    drop(rig.server);
    expect_text(&mut rig.app, b"421 busy").await;
    expect_nobody_listens(&mut rig.app).await;
    let ended = rig.ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::UpstreamReset, "{ended:?}");
}

async fn refusal_of_an_upload(way: Way) {
    let mut rig = Rig::new(way).await;
    // Refuses an upload it has not read: the answer is there first, the reset comes behind it.
    begin_to_send(&mut rig.app, &mut rig.server).await;
    rig.server.write_all(b"413 too large").await.unwrap();
    drop(rig.server);
    expect_text(&mut rig.app, b"413 too large").await;
    expect_reset(&mut rig.app).await;
    let ended = rig.ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::UpstreamReset, "{ended:?}");
}

async fn interruption_of_a_download(way: Way) {
    let mut rig = Rig::new(way).await;
    begin_to_send(&mut rig.server, &mut rig.app).await;
    rig.app.write_all(b"enough").await.unwrap();
    drop(rig.app);
    expect_text(&mut rig.server, b"enough").await;
    expect_reset(&mut rig.server).await;
    let ended = rig.ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::DownstreamReset, "{ended:?}");
}

async fn reset_after_half_close(way: Way) {
    let mut rig = Rig::new(way).await;
    rig.app.shutdown().await.unwrap();
    expect_end(&mut rig.server).await;
    reset(rig.server);
    expect_reset(&mut rig.app).await;
    let ended = rig.ended.await.unwrap();
    assert_eq!(ended.reason, CloseReason::UpstreamReset, "{ended:?}");
}
