//! Bytes arrive once and in order.

use std::{io, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use super::flow::{Bench, Flow, crosses, message};
use crate::{
    relay::Pair,
    socket::{self, repair},
};

/// What waited on a socket when it was entered is handled like what comes after it, and what was read does not come again.
pub(super) async fn waiting_bytes(bench: &Bench<'_>) -> io::Result<bool> {
    let mut flow = Flow::new(bench).await?;
    flow.app.write_all(b"read before").await?;
    flow.downstream.read_exact(&mut [0; 5]).await?;
    let Pair { up, .. } = bench.enter(&flow)?;
    // Entering it did that: nothing else has arrived that would.
    let handled = up.passed() == 6;
    flow.app.write_all(b" after").await?;
    let mut arrived = [0; 12];
    flow.downstream.read_exact(&mut arrived).await?;
    Ok(handled && &arrived == b"before after" && up.passed() == 12 && up.repairs() == 0)
}

/// The program finds the sequence numbers of TCP in the control block, and they are as far apart as there are bytes, and one
/// more where the stream ends.
pub(super) async fn sequence_numbers(bench: &Bench<'_>) -> io::Result<bool> {
    let mut flow = Flow::new(bench).await?;
    let Pair { up, .. } = bench.enter(&flow)?;
    let (app, downstream) = (&mut flow.app, &mut flow.downstream);
    let little = crosses(b"1", app, downstream).await?;
    let much = crosses(&message(32 * 1024), app, downstream).await?;
    // Held back until the end, so that one segment has the bytes and the FIN.
    SockRef::from(&*app).set_tcp_cork(true)?;
    app.write_all(b"last").await?;
    app.shutdown().await?;
    let mut last = Vec::new();
    downstream.read_to_end(&mut last).await?;
    let in_sequence = !up.is_faulty() && up.repairs() == 0;
    Ok(little && much && last == b"last" && in_sequence && up.passed() == 64 * 1024 + 5)
}

/// A retransmission that brings bytes again in front of new ones delivers the new ones only, redirected or passed.
pub(super) async fn overlap(bench: &Bench<'_>) -> io::Result<bool> {
    Ok(cuts_overlap(bench, true).await? && cuts_overlap(bench, false).await?)
}

async fn cuts_overlap(bench: &Bench<'_>, redirected: bool) -> io::Result<bool> {
    let flow = Flow::new(bench).await?;
    let Pair { up, .. } = bench.enter(&flow)?;
    // The others stay open.
    let Flow {
        mut app,
        mut downstream,
        upstream: _upstream,
        mut server,
    } = flow;
    let credit = if redirected { u64::MAX } else { 0 };
    up.grant(credit, u64::MAX);
    up.resume(0);
    let end = if redirected {
        &mut server
    } else {
        &mut downstream
    };

    // More than one cut takes away.
    let (first, second) = (message(3000), b"new bytes");
    let arrived = crosses(&first, &mut app, end).await?;
    while socket::unacknowledged(&app)? > 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let old = first.get(1000..).unwrap_or_default();
    let app = repair::resend(app.into_std()?, old, second, |socket, to| {
        bench.exempt(socket, to)
    })?;
    app.set_nonblocking(true)?;
    let mut app = TcpStream::from_std(app)?;
    // What was delivered twice would stand in front of this.
    app.write_all(b", last bytes").await?;
    let mut rest = [0; 21];
    end.read_exact(&mut rest).await?;
    let repaired = up.repairs() == 1 && !up.is_faulty();
    let moved = if redirected {
        up.redirected()
    } else {
        up.passed()
    };
    Ok(arrived && &rest == b"new bytes, last bytes" && repaired && moved == 6021)
}

/// Messages small and large arrive as they were sent, and it is the kernel that moves them.
pub(super) async fn messages(bench: &Bench<'_>) -> io::Result<bool> {
    let (same, progress) = Flow::new(bench)
        .await?
        .relayed(bench, async |mut app, mut server| {
            let mut same = true;
            for length in [1, 1, 1, 64 * 1024, 100, 64 * 1024, 1] {
                let mut message = message(32 * 1024);
                message.truncate(length);
                same &= crosses(&message, &mut app, &mut server).await?
                    && crosses(&message, &mut server, &mut app).await?;
            }
            Ok(same)
        })
        .await?;
    Ok(same && progress.in_kernel() > 0)
}
