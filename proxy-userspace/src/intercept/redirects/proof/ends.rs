//! What is said of a stream's end, and of a socket that is gone.

use std::io::{self, ErrorKind};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::flow::{Bench, Flow, crosses, message, reset};
use crate::{relay::Pair, socket};

/// The lengths of a socket's queues tell what the relay waits for: that nothing is left to read, and that what was redirected
/// is on its way to the target's peer.
pub(super) async fn queue_lengths(bench: &Bench<'_>) -> io::Result<bool> {
    let mut flow = Flow::new(bench).await?;
    let Pair { up, .. } = bench.enter(&flow)?;
    let before = socket::sent(&flow.upstream)?;
    up.grant(100, u64::MAX);
    up.resume(0);
    let redirected = crosses(&message(50), &mut flow.app, &mut flow.server).await?
        && socket::sent(&flow.upstream)? == before + 100
        && socket::unread(&flow.downstream)? == 0;
    let passed = crosses(&message(50), &mut flow.app, &mut flow.downstream).await?
        && (up.redirected(), up.passed()) == (100, 100)
        && socket::unread(&flow.downstream)? == 0;
    flow.app.shutdown().await?;
    let ended = flow.downstream.read(&mut [0]).await? == 0
        && socket::unread(&flow.downstream)? == 0
        && socket::sent(&flow.upstream)? == before + 100;
    Ok(redirected && passed && ended)
}

/// When the target is gone, bytes are passed and not dropped.
pub(super) async fn missing_target(bench: &Bench<'_>) -> io::Result<bool> {
    let mut flow = Flow::new(bench).await?;
    let Pair { up, .. } = bench.enter(&flow)?;
    up.grant(u64::MAX, u64::MAX);
    up.resume(0);
    let redirected = crosses(b"before", &mut flow.app, &mut flow.server).await?;
    // Closing takes it out of the map; a reset by its peer does not.
    drop(flow.upstream);
    let passed = crosses(b"after", &mut flow.app, &mut flow.downstream).await?;
    Ok(redirected && passed && (up.redirected(), up.passed()) == (6, 5))
}

/// The end of a stream comes behind its last byte, and the other direction goes on; whoever ends first.
pub(super) async fn both_ends(bench: &Bench<'_>) -> io::Result<bool> {
    let talk = async |mut first: TcpStream, mut second: TcpStream| {
        let begun = crosses(b"one", &mut first, &mut second).await?;
        first.write_all(b"question").await?;
        first.shutdown().await?;
        let mut question = Vec::new();
        second.read_to_end(&mut question).await?;
        second.write_all(b"answer").await?;
        second.shutdown().await?;
        let mut answer = Vec::new();
        first.read_to_end(&mut answer).await?;
        Ok(begun && question == b"question" && answer == b"answer")
    };
    let flow = Flow::new(bench).await?;
    let (app_first, _) = flow.relayed(bench, talk).await?;
    let flow = Flow::new(bench).await?;
    let (server_first, _) = flow
        .relayed(bench, async |app, server| talk(server, app).await)
        .await?;
    Ok(app_first && server_first)
}

/// A reset reaches the other end behind what was sent before it, and no end of stream does.
pub(super) async fn resets(bench: &Bench<'_>) -> io::Result<bool> {
    let break_off = async |mut first: TcpStream, mut second: TcpStream| {
        let before = crosses(&message(32 * 1024), &mut first, &mut second).await?;
        reset(first)?;
        let broken = second.read(&mut [0]).await;
        let told = broken.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        Ok(before && told)
    };
    let flow = Flow::new(bench).await?;
    let (app_first, _) = flow.relayed(bench, break_off).await?;
    let flow = Flow::new(bench).await?;
    let (server_first, _) = flow
        .relayed(bench, async |app, server| break_off(server, app).await)
        .await?;
    Ok(app_first && server_first)
}
