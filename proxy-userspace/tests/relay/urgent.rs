//! Urgent data stays in the stream and stops nothing.
//!
//! A read stops in front of the urgent byte although more waits, and `splice(2)` sees nothing there at all, so each case
//! sends without letting the relay run in between: no later packet may be what wakes it.

use proxy_userspace::close::CloseReason;
use socket2::SockRef;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    payload::{Payload, expect_end, expect_text},
    rig::{Rig, Way, on_each_path},
};

on_each_path!(
    in_the_middle,
    at_the_start,
    right_before_the_end,
    from_the_server,
    behind_and_before_bulk,
);

fn send_now(stream: &TcpStream, text: &[u8]) {
    assert_eq!(SockRef::from(stream).send(text).unwrap(), text.len());
}

fn send_urgent_now(stream: &TcpStream, text: &[u8]) {
    let sent = SockRef::from(stream).send_out_of_band(text).unwrap();
    assert_eq!(sent, text.len());
}

/// Lets the relay come to rest with something already moved both ways.
async fn warmed_up(way: Way) -> Rig {
    let mut rig = Rig::new(way).await;
    rig.app.write_all(b"ping").await.unwrap();
    expect_text(&mut rig.server, b"ping").await;
    rig.server.write_all(b"pong").await.unwrap();
    expect_text(&mut rig.app, b"pong").await;
    rig
}

async fn in_the_middle(way: Way) {
    let mut rig = warmed_up(way).await;
    send_now(&rig.app, b"ab");
    send_urgent_now(&rig.app, b"c");
    send_now(&rig.app, b"def");
    expect_text(&mut rig.server, b"abcdef").await;
}

async fn at_the_start(way: Way) {
    let mut rig = Rig::new(way).await;
    send_urgent_now(&rig.app, b"a");
    send_now(&rig.app, b"bc");
    expect_text(&mut rig.server, b"abc").await;
}

async fn right_before_the_end(way: Way) {
    let mut rig = warmed_up(way).await;
    send_now(&rig.app, b"ab");
    send_urgent_now(&rig.app, b"c");
    rig.app.shutdown().await.unwrap();
    expect_text(&mut rig.server, b"abc").await;
    expect_end(&mut rig.server).await;
    drop(rig.server);
    assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
}

async fn from_the_server(way: Way) {
    let mut rig = warmed_up(way).await;
    send_now(&rig.server, b"ab");
    send_urgent_now(&rig.server, b"c");
    send_now(&rig.server, b"def");
    expect_text(&mut rig.app, b"abcdef").await;
}

async fn behind_and_before_bulk(way: Way) {
    let Rig {
        mut app,
        mut server,
        ended,
        ..
    } = warmed_up(way).await;
    let (before, behind) = (Payload::new(1, 9_000_000), Payload::new(2, 9_000_000));
    let sending = async {
        before.send(&mut app, 1 << 20).await.unwrap();
        app.writable().await.unwrap();
        send_urgent_now(&app, b"!");
        behind.send(&mut app, 1 << 20).await.unwrap();
        app.shutdown().await.unwrap();
    };
    let receiving = async {
        before.receive(&mut server, 1 << 20).await;
        expect_text(&mut server, b"!").await;
        behind.receive(&mut server, 1 << 20).await;
        expect_end(&mut server).await;
    };
    tokio::join!(sending, receiving);
    drop((app, server));
    assert_eq!(ended.await.unwrap().reason, CloseReason::Done);
}
