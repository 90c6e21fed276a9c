//! Bytes of the stream go past the program, so that the next ones it sees are not those that come next. It must count that and
//! have the connection reset: passed on, the stream would lack them and look whole.

use std::{
    io,
    net::TcpStream as StdStream,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, OnceLock},
};

use nix::{
    fcntl::{SpliceFFlags, splice},
    unistd::pipe,
};
use proxy_userspace::{
    close::CloseReason,
    relay::{Promotion, Redirect as _},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    payload::expect_text,
    ration::Rationed,
    rig::{Rig, acknowledged, await_that, connected, expect_reset, in_time, promotion},
};

fn set(socket: &impl AsFd, option: libc::c_int, value: libc::c_int) {
    // SAFETY: the value outlives the call, and is as long as stated.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            4,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Has a socket receive bytes of which nobody is told (`tcp_send_rcvq()` in `net/ipv4/tcp.c`), and takes them out by a call that a
/// sockmap knows nothing of. What the peer sends in their place is old then.
fn receive_unseen(socket: &StdStream, bytes: &[u8]) {
    /// `TCP_RECV_QUEUE`
    const RECEIVE_QUEUE: libc::c_int = 1;
    /// `TCP_REPAIR_OFF_NO_WP`
    const OFF: libc::c_int = -1;
    set(socket, libc::TCP_REPAIR, 1);
    set(socket, libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE);
    let sent = socket2::SockRef::from(socket).send(bytes).unwrap();
    set(socket, libc::TCP_REPAIR, OFF);
    assert_eq!(sent, bytes.len());
    let (out, into) = pipe().unwrap();
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
    let taken = splice(socket, None, &into, None, bytes.len(), flags).unwrap();
    assert_eq!(taken, bytes.len());
    drop(out);
}

/// A connection of which `spans` say what the kernel may redirect.
async fn a_gap_resets(promotion: Promotion, is_down: bool, spans: Vec<u64>) {
    let (app, downstream) = connected(None).await;
    let (upstream, server) = connected(None).await;
    let source = if is_down { &upstream } else { &downstream };
    let source: OwnedFd = source.as_fd().try_clone_to_owned().unwrap();
    let source = StdStream::from(source);
    let rationed = Arc::new(Rationed {
        inner: promotion.accelerator,
        is_down,
        spans,
        queued: Mutex::new(None),
        entered: OnceLock::new(),
    });
    let promotion = Promotion {
        accelerator: Arc::<Rationed>::clone(&rationed),
        bytes: 0,
        reads: 0,
    };
    let (progress, ended) = Rig::relayed(promotion, downstream, upstream);
    let (mut from, mut to) = if is_down {
        (server, app)
    } else {
        (app, server)
    };
    await_that("a promotion", || rationed.entered.get().is_some()).await;
    from.write_all(b"before").await.unwrap();
    expect_text(&mut to, b"before").await;
    let direction = Arc::clone(&rationed.entered.get().unwrap().ration);
    assert!(!direction.is_faulty());
    let moved = direction.moved();

    receive_unseen(&source, b"gap");
    // Or the relay could not close it.
    drop(source);
    from.write_all(b"gap").await.unwrap();
    acknowledged(&from).await;
    assert!(!direction.is_faulty(), "before anything is missing");
    from.write_all(b"behind").await.unwrap();
    let mut byte = [0];
    let read = to.read(&mut byte).await;
    assert!(read.is_err(), "{read:?}: {byte:?} came behind a gap");
    expect_reset(&mut from).await;
    let ended = ended.await.unwrap();
    let reason = if is_down {
        CloseReason::UpstreamReset
    } else {
        CloseReason::DownstreamReset
    };
    assert_eq!(ended.reason, reason);
    let error = ended.first_error.unwrap().to_string();
    assert!(error.contains("out of sequence"), "{error}");
    assert!(direction.is_faulty());
    assert_eq!(direction.moved(), moved);
    assert_eq!(progress.repairs(), 0);
}

#[tokio::test]
async fn it_resets_the_connection_and_nothing_comes_behind_it() {
    let Some(promotion) = promotion() else {
        return;
    };
    in_time(async {
        for is_down in [false, true] {
            // Redirected, and passed to the relay.
            for spans in [vec![u64::from(u32::MAX)], Vec::new()] {
                a_gap_resets(promotion.clone(), is_down, spans).await;
            }
        }
    })
    .await;
}
