//! The plainest proxy there is: `tokio::io::copy_bidirectional` between two sockets.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
};

use anyhow::{Context, Result};
use culvert_tests::Sandbox;
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpSocket, TcpStream},
    runtime,
};

use super::{Form, PROXY_PORT, Peer, Relay};

/// Bytes of each buffer: eight times the default.
const BUFFER: usize = 64 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// The arguments that make this program the proxy.
pub(super) fn arguments(form: Form, workers: usize) -> Vec<String> {
    vec![
        "relay".to_owned(),
        "--port".to_owned(),
        PROXY_PORT.to_string(),
        "--to".to_owned(),
        form.upstream().to_string(),
        "--threads".to_owned(),
        workers.to_string(),
    ]
}

pub(super) fn start(sandbox: &Sandbox, form: Form, workers: usize) -> Result<Relay<'_>> {
    let mut peer = Peer::new(sandbox);
    peer.redirect(form);
    let own = std::env::current_exe().context("the path of this program")?;
    let arguments = arguments(form, workers);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    peer.run(&own.to_string_lossy(), &arguments, PROXY_PORT)?;
    Ok(Relay::Peer(peer))
}

/// Relays forever; each thread has a listener and a runtime of its own.
pub(crate) fn relay(port: u16, to: SocketAddr, threads: usize) -> Result<()> {
    let threads: Vec<_> = (0..threads)
        .map(|_| thread::spawn(move || run((Ipv4Addr::UNSPECIFIED, port).into(), to)))
        .collect();
    for thread in threads {
        let ended = thread.join();
        ended.ok().context("a thread of the relay panicked")??;
    }
    Ok(())
}

fn run(address: SocketAddr, to: SocketAddr) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        loop {
            let (mut downstream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut upstream = TcpStream::connect(to).await?;
                downstream.set_nodelay(true)?;
                upstream.set_nodelay(true)?;
                copy_bidirectional_with_sizes(&mut downstream, &mut upstream, BUFFER, BUFFER).await
            });
        }
    })
}
