//! Memory has a bound.

use std::{io, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::flow::{Bench, Flow};
use crate::relay::MOST_WINDOW;

/// Silence after which a sender counts as stopped.
const STOPPED: Duration = Duration::from_millis(30);
/// Asked for each socket; the kernel doubles it.
const BUFFER: usize = 64 * 1024;

/// A server that does not read stops the app, and everything arrives when it does.
pub(super) async fn slow_reader(bench: &Bench<'_>) -> io::Result<bool> {
    let flow = Flow::new(bench).await?;
    for end in [&flow.app, &flow.downstream, &flow.upstream, &flow.server] {
        SockRef::from(end).set_send_buffer_size(BUFFER)?;
        SockRef::from(end).set_recv_buffer_size(BUFFER)?;
    }
    // Twice what was asked for, of four sockets, and what the relay reads at once.
    let most = MOST_WINDOW + 4 * 2 * BUFFER as u64 + 1024 * 1024;
    let (bounded, _) = flow
        .relayed(bench, async |mut app, mut server| {
            let chunk = vec![7; BUFFER];
            let mut taken = 0;
            while let Ok(written) = timeout(STOPPED, app.write(&chunk)).await {
                taken += written? as u64;
                if taken > most {
                    return Ok(false);
                }
            }
            app.shutdown().await?;
            let mut arrived = Vec::new();
            server.read_to_end(&mut arrived).await?;
            Ok(arrived.len() as u64 == taken && arrived.iter().all(|byte| *byte == 7))
        })
        .await?;
    Ok(bounded)
}
