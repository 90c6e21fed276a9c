//! The self-test of the sockmap path, on connections of its own over loopback, with the real program and the real relay.
//! Takes some tens of milliseconds.
//!
//! Kernel versions are never consulted. The cutting of bytes that come twice is not tried here: it takes lost packets,
//! which cannot be had without rules in the host's firewall.

use std::{future::pending, io, net::Ipv4Addr, sync::Arc, thread, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Builder,
    time::timeout,
};

use super::RedirectEvents;
use crate::{
    relay::{MOST_WINDOW, Progress, Promotion, Relay},
    socket,
    upstream::Exempt,
};

/// How long one test may take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(5);
/// Silence after which a sender counts as stopped.
const STOPPED: Duration = Duration::from_millis(30);
/// Asked for each socket of the test of the bound; the kernel doubles it.
const BUFFER: usize = 64 * 1024;

/// Tries everything. `exempt` keeps its connections from being intercepted by ourselves.
///
/// # Errors
/// The name of the test that fails here.
pub fn prove(
    promotion: &Promotion,
    events: &mut RedirectEvents,
    exempt: &dyn Exempt,
) -> Result<(), &'static str> {
    let at_once = Promotion {
        bytes: 0,
        reads: 0,
        ..promotion.clone()
    };
    // A runtime of its own: the caller may be within one.
    thread::scope(|scope| {
        let tests = scope.spawn(|| {
            let runtime = Builder::new_current_thread().enable_all().build();
            let outcome = runtime.map_err(|_| "runtime")?.block_on(async {
                tokio::select! {
                    _ = events.serve() => Err("events"),
                    outcome = all(&at_once, exempt) => outcome,
                }
            });
            events.leave_runtime();
            outcome
        });
        tests.join().unwrap_or(Err("panic"))
    })
}

async fn all(promotion: &Promotion, exempt: &dyn Exempt) -> Result<(), &'static str> {
    passes("waiting bytes", waiting_bytes(promotion, exempt)).await?;
    passes("messages", messages(promotion, exempt)).await?;
    passes("ends", ends(promotion, exempt)).await?;
    passes("bound", bound(promotion, exempt)).await
}

async fn passes(
    name: &'static str,
    test: impl Future<Output = io::Result<bool>>,
) -> Result<(), &'static str> {
    match timeout(PATIENCE, test).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) | Err(_) => Err(name),
        Ok(Err(error)) => {
            tracing::warn!(%error, test = name, "cannot test the sockmap path");
            Err(name)
        }
    }
}

/// What waited on a socket when it was entered is handled like what comes after it.
async fn waiting_bytes(promotion: &Promotion, exempt: &dyn Exempt) -> io::Result<bool> {
    let mut flow = Flow::new(exempt).await?;
    flow.app.write_all(b"before").await?;
    flow.downstream.readable().await?;
    let entered = promotion
        .accelerator
        .admit(&flow.downstream, &flow.upstream);
    let Ok(redirects) = entered else {
        return Ok(false);
    };
    socket::handle_waiting(&flow.downstream)?;
    flow.app.write_all(b"after").await?;
    let mut arrived = [0; 11];
    flow.downstream.read_exact(&mut arrived).await?;
    Ok(&arrived == b"beforeafter" && redirects.up.passed() == 11)
}

/// Messages small and large arrive as they were sent, and it is the kernel that moves them.
async fn messages(promotion: &Promotion, exempt: &dyn Exempt) -> io::Result<bool> {
    let (same, progress) = Flow::new(exempt)
        .await?
        .relayed(promotion, async |app, server| {
            let mut same = true;
            for length in [1, 1, 1, 64 * 1024, 100, 64 * 1024, 1] {
                let message: Vec<u8> = (0..length).map(|at: u32| at.to_le_bytes()[1]).collect();
                same &=
                    crosses(&message, app, server).await? && crosses(&message, server, app).await?;
            }
            Ok(same)
        })
        .await?;
    Ok(same && progress.in_kernel() > 0)
}

/// Whether a message arrives as it is.
async fn crosses(message: &[u8], from: &mut TcpStream, to: &mut TcpStream) -> io::Result<bool> {
    let mut arrived = vec![0; message.len()];
    tokio::try_join!(from.write_all(message), to.read_exact(&mut arrived))?;
    Ok(arrived == message)
}

/// The end of a stream comes behind its last byte, and the other direction goes on.
async fn ends(promotion: &Promotion, exempt: &dyn Exempt) -> io::Result<bool> {
    let (orderly, _) = Flow::new(exempt)
        .await?
        .relayed(promotion, async |app, server| {
            app.write_all(b"one").await?;
            server.read_exact(&mut [0; 3]).await?;
            app.write_all(b"question").await?;
            app.shutdown().await?;
            let mut question = Vec::new();
            server.read_to_end(&mut question).await?;
            server.write_all(b"answer").await?;
            server.shutdown().await?;
            let mut answer = Vec::new();
            app.read_to_end(&mut answer).await?;
            Ok(question == b"question" && answer == b"answer")
        })
        .await?;
    Ok(orderly)
}

/// A server that does not read stops the app, and everything arrives when it does.
async fn bound(promotion: &Promotion, exempt: &dyn Exempt) -> io::Result<bool> {
    let flow = Flow::new(exempt).await?;
    for end in [&flow.app, &flow.downstream, &flow.upstream, &flow.server] {
        SockRef::from(end).set_send_buffer_size(BUFFER)?;
        SockRef::from(end).set_recv_buffer_size(BUFFER)?;
    }
    // Twice what was asked for, of four sockets, and what the relay reads at once.
    let most = MOST_WINDOW + 4 * 2 * BUFFER as u64 + 1024 * 1024;
    let (bounded, _) = flow
        .relayed(promotion, async |app, server| {
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

/// Both connections of one flow.
struct Flow {
    app: TcpStream,
    downstream: TcpStream,
    upstream: TcpStream,
    server: TcpStream,
}

impl Flow {
    async fn new(exempt: &dyn Exempt) -> io::Result<Self> {
        let (app, downstream) = pair(exempt).await?;
        let (upstream, server) = pair(exempt).await?;
        Ok(Self {
            app,
            downstream,
            upstream,
            server,
        })
    }

    /// Does something at both ends while the relay works between them.
    async fn relayed(
        self,
        promotion: &Promotion,
        test: impl AsyncFnOnce(&mut TcpStream, &mut TcpStream) -> io::Result<bool>,
    ) -> io::Result<(bool, Arc<Progress>)> {
        let Self {
            mut app,
            mut downstream,
            mut upstream,
            mut server,
        } = self;
        let progress = Arc::<Progress>::default();
        let mut relay =
            Relay::new(Arc::clone(&progress), None).with_promotion(Some(promotion.clone()));
        let relaying = async {
            relay.sockmap(&mut downstream, &mut upstream).await;
            // Both ends know by now; what they have not read waits for them.
            pending::<bool>().await
        };
        let passed = tokio::select! {
            passed = test(&mut app, &mut server) => passed?,
            never = relaying => never,
        };
        relay.count();
        Ok((passed, progress))
    }
}

/// A connection over loopback.
async fn pair(exempt: &dyn Exempt) -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let socket = socket::for_upstream(address)?;
    exempt.exempt(&socket)?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(address);
    let (connecting, accepted) = tokio::try_join!(connecting, listener.accept())?;
    for end in [&connecting, &accepted.0] {
        end.set_nodelay(true)?;
    }
    Ok((connecting, accepted.0))
}
