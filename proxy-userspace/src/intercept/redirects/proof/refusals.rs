//! Sockets that the kernel does not take stay as they were.

#[cfg(test)]
use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdStream};
use std::{fs, io, sync::Arc};

use nix::sys::socket::{setsockopt, sockopt::TcpUlp};
#[cfg(test)]
use socket2::{Domain, Protocol, Socket, Type};
#[cfg(test)]
use tokio::net::TcpStream;

use super::{
    super::Redirects,
    flow::{Bench, Flow, crosses},
};
use crate::relay::Accelerator as _;

/// Upper layer protocols that a socket can be given now; others would be loaded into the kernel.
const UPPER_LAYERS: &str = "/proc/sys/net/ipv4/tcp_available_ulp";

/// A socket that somebody else has in a sockmap is refused. If it is the second one, the first only has its bytes passed.
pub(super) async fn foreign_sockmap(
    bench: &Bench<'_>,
    somebody_else: &Arc<Redirects>,
) -> io::Result<bool> {
    let (mut both, mut one) = (Flow::new(bench).await?, Flow::new(bench).await?);
    let theirs = somebody_else.admit(&both.downstream, &both.upstream);
    let refused = theirs.is_ok() && bench.refuses(&both.downstream, &both.upstream);
    let unharmed = crosses(b"up", &mut both.app, &mut both.downstream).await?
        && crosses(b"down", &mut both.server, &mut both.upstream).await?;

    let stranger = Flow::new(bench).await?;
    let theirs = somebody_else.admit(&one.upstream, &stranger.upstream);
    let half = bench.enter(&one)?;
    half.up.grant(u64::MAX, u64::MAX);
    half.up.resume(0);
    let passed = crosses(b"up", &mut one.app, &mut one.downstream).await?
        && crosses(b"down", &mut one.server, &mut one.upstream).await?
        && (half.up.passed(), half.down.passed()) == (2, 0);
    Ok(refused && unharmed && theirs.is_ok() && !half.whole && passed)
}

/// A socket with a layer above TCP is refused, as kTLS is, where the kernel has it.
pub(super) async fn upper_layer(bench: &Bench<'_>) -> io::Result<bool> {
    let mut flow = Flow::new(bench).await?;
    let available = fs::read_to_string(UPPER_LAYERS).unwrap_or_default();
    if !available.split_ascii_whitespace().any(|name| name == "tls") {
        return Ok(true);
    }
    setsockopt(&flow.downstream, TcpUlp::default(), b"tls")?;
    // Without keys it still is transparent.
    Ok(bench.refuses(&flow.downstream, &flow.upstream)
        && crosses(b"up", &mut flow.app, &mut flow.downstream).await?
        && crosses(b"down", &mut flow.server, &mut flow.upstream).await?)
}

/// MPTCP is refused, where the kernel has it. The relay has no such socket, it only makes and accepts plain TCP; and this cannot
/// be tried behind our own hooks, which see the sockets below it, that nobody can exempt.
#[cfg(test)]
pub(super) async fn multipath(bench: &Bench<'_>) -> io::Result<bool> {
    let mut flow = Flow::new(bench).await?;
    let Ok((mut far, mut near)) = multipath_pair() else {
        return Ok(true);
    };
    Ok(bench.refuses(&near, &flow.upstream)
        && crosses(b"up", &mut far, &mut near).await?
        && crosses(b"down", &mut flow.server, &mut flow.upstream).await?)
}

#[cfg(test)]
fn multipath_pair() -> io::Result<(TcpStream, TcpStream)> {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    let (listener, far) = (socket()?, socket()?);
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(1)?;
    far.connect(&listener.local_addr()?)?;
    let (near, _) = listener.accept()?;
    let stream = |socket: Socket| {
        socket.set_nonblocking(true)?;
        TcpStream::from_std(StdStream::from(socket))
    };
    Ok((stream(far)?, stream(near)?))
}
