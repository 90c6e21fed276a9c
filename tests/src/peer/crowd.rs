//! A server for very many clients.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::watch,
};

use super::{Sharing, listen};

/// Sends back what it receives, on one thread for all clients.
#[derive(Debug)]
pub struct Crowd {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Serves connections to `address` until dropped; port 0 is a free one.
    pub fn start(address: impl Into<SocketAddr>) -> Self {
        let listener = listen(address.into(), Sharing::No);
        let address = listener.local_addr().expect("the address of a listener");
        listener
            .set_nonblocking(true)
            .expect("a listener that does not block");
        let accepted = Arc::new(AtomicUsize::new(0));
        let (stop, mut stopped) = watch::channel(false);
        let count = Arc::clone(&accepted);
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_io().build();
            runtime.expect("a runtime").block_on(async {
                tokio::select! {
                    () = accept(listener, &count) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            });
        });
        Self {
            address,
            accepted,
            stop,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, count: &AtomicUsize) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    while let Ok((stream, _)) = listener.accept().await {
        count.fetch_add(1, SeqCst);
        tokio::spawn(echo(stream));
    }
}

/// An error ends the connection only. The end of the client is answered by that of the server.
async fn echo(mut stream: TcpStream) {
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
}
