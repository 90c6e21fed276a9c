//! What the tests work on.

use std::{
    future::pending,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use socket2::{SockRef, Socket};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::super::Redirects;
use crate::{
    relay::{Accelerator, Pair, Progress, Promotion, Relay},
    rule::PathChoice,
    socket,
    upstream::Exempt,
};

/// The path under test.
pub(super) struct Bench<'a> {
    redirects: Arc<Redirects>,
    /// Hands a connection over before it has moved a byte.
    promotion: Promotion,
    exempt: &'a dyn Exempt,
}

impl<'a> Bench<'a> {
    pub(super) fn new(redirects: &Arc<Redirects>, exempt: &'a dyn Exempt) -> Self {
        let accelerator: Arc<dyn Accelerator> = Arc::<Redirects>::clone(redirects);
        Self {
            redirects: Arc::clone(redirects),
            promotion: Promotion {
                bytes: 0,
                reads: 0,
                ..Promotion::new(accelerator)
            },
            exempt,
        }
    }

    /// Keeps a socket out of our own interception. To be called before it connects.
    pub(super) fn exempt(&self, socket: &Socket, to: SocketAddr) -> io::Result<()> {
        self.exempt.exempt(socket, to)
    }

    /// Enters both sockets of the relay, and has what waits on them handled.
    pub(super) fn enter(&self, flow: &Flow) -> io::Result<Pair> {
        let Flow {
            downstream,
            upstream,
            ..
        } = flow;
        let pair = self
            .redirects
            .admit(downstream, upstream)
            .map_err(io::Error::other)?;
        socket::handle_waiting(downstream)?;
        socket::handle_waiting(upstream)?;
        Ok(pair)
    }

    /// Whether sockets are refused, and nothing is kept of them.
    pub(super) fn refuses(&self, downstream: &TcpStream, upstream: &TcpStream) -> bool {
        let held = || (self.redirects.free(), self.redirects.taken.load(Relaxed));
        let before = held();
        self.redirects.admit(downstream, upstream).is_err() && held() == before
    }
}

/// Both connections of one flow.
pub(super) struct Flow {
    pub(super) app: TcpStream,
    pub(super) downstream: TcpStream,
    pub(super) upstream: TcpStream,
    pub(super) server: TcpStream,
}

impl Flow {
    pub(super) async fn new(bench: &Bench<'_>) -> io::Result<Self> {
        let (app, downstream) = pair(bench).await?;
        let (upstream, server) = pair(bench).await?;
        Ok(Self {
            app,
            downstream,
            upstream,
            server,
        })
    }

    /// Does something at both ends while the relay works between them.
    pub(super) async fn relayed(
        self,
        bench: &Bench<'_>,
        test: impl AsyncFnOnce(TcpStream, TcpStream) -> io::Result<bool>,
    ) -> io::Result<(bool, Arc<Progress>)> {
        let Self {
            app,
            downstream,
            upstream,
            server,
        } = self;
        let progress = Arc::<Progress>::default();
        let promotion = Some(bench.promotion.clone());
        let mut relay = Relay::new(Arc::clone(&progress), None).with_promotion(promotion);
        // The sockets are kept.
        relay.tell_each_end();
        let relaying = async {
            let relayed = relay.run_or_rest(downstream, upstream, PathChoice::Sockmap);
            let (ended, mut sockets) = relayed.await;
            if ended.must_reset()
                && let Some((downstream, upstream)) = sockets.take()
            {
                reset(downstream)?;
                reset(upstream)?;
            }
            // Both ends know by now; what they have not read waits for them.
            let open = pending::<io::Result<bool>>().await;
            drop(sockets);
            open
        };
        let passed = tokio::select! {
            passed = test(app, server) => passed?,
            failed = relaying => failed?,
        };
        relay.count();
        Ok((passed, progress))
    }
}

/// A connection over loopback.
async fn pair(bench: &Bench<'_>) -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let connecting = TcpSocket::new_v4()?;
    bench.exempt(&SockRef::from(&connecting), address)?;
    let connecting = connecting.connect(address);
    let (connecting, accepted) = tokio::try_join!(connecting, listener.accept())?;
    for end in [&connecting, &accepted.0] {
        end.set_nodelay(true)?;
    }
    Ok((connecting, accepted.0))
}

/// Closes with RST.
pub(super) fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Bytes of which neighbours differ.
pub(super) fn message(length: u16) -> Vec<u8> {
    (0..length).flat_map(u16::to_le_bytes).collect()
}

/// Whether a message arrives as it is.
pub(super) async fn crosses(
    message: &[u8],
    from: &mut TcpStream,
    to: &mut TcpStream,
) -> io::Result<bool> {
    let mut arrived = vec![0; message.len()];
    tokio::try_join!(from.write_all(message), to.read_exact(&mut arrived))?;
    Ok(arrived == message)
}
