//! The accept loop: permits, back-off, one task per connection.

use std::{
    io,
    net::TcpListener as StdListener,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{net::TcpListener, time::sleep};

use crate::{connection, shared::Worker, socket};

/// Pause after the first failure for lack of resources, doubled up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Accepts until the worker stops.
pub(crate) async fn serve(worker: Rc<Worker>, listener: StdListener) {
    let address = listener.local_addr();
    let (listener, address) = match TcpListener::from_std(listener).and_then(|l| Ok((l, address?)))
    {
        Ok(listener) => listener,
        Err(error) => {
            // The daemon notices: this worker's listener is closed and connects to it are refused.
            tracing::error!(%error, "a listener was lost at start");
            return;
        }
    };
    let mut stop = worker.stop.clone();
    tokio::select! {
        () = accept_all(&worker, &listener, address) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn accept_all(worker: &Rc<Worker>, listener: &TcpListener, address: std::net::SocketAddr) {
    let stats = &worker.shared.stats;
    let mut pause = FIRST_PAUSE;
    loop {
        // A permit before accept: at the limit connections wait in the kernel's queue, and the app in connect().
        let permit = if let Ok(permit) = Arc::clone(&worker.permits).try_acquire_owned() {
            permit
        } else {
            stats.at_limit.fetch_add(1, Relaxed);
            match Arc::clone(&worker.permits).acquire_owned().await {
                Ok(permit) => permit,
                Err(_) => return,
            }
        };
        match listener.accept().await {
            Ok((stream, client)) => {
                pause = FIRST_PAUSE;
                stats.accepted.fetch_add(1, Relaxed);
                let worker = Rc::clone(worker);
                tokio::task::spawn_local(async move {
                    connection::serve(&worker, stream, client, address).await;
                    drop(permit);
                });
            }
            Err(error) if socket::is_resource_exhaustion(&error) => {
                stats.accept_failures.fetch_add(1, Relaxed);
                tracing::warn!(%error, ?pause, "cannot accept connections; raise the limit on open files");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            // The connection was gone before we took it.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "accept failed");
                sleep(LONGEST_PAUSE).await;
            }
        }
    }
}

/// Errors of accept(2) that belong to the connection and not to the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
    )
}
