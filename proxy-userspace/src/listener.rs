//! The accept loop: permits, back-off, one task per connection.

use std::{
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, mpsc::UnboundedReceiver},
    time::sleep,
};

use crate::{
    connection,
    shared::{Door, DoorKind, Worker},
    socket,
};

/// Pause after the first failure for lack of resources, doubled up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What becomes of the listeners of a worker while it runs.
#[derive(Debug)]
pub(crate) enum Change {
    /// One more.
    Open(StdListener, DoorKind),
    /// Those in another network namespace, by its cookie, are closed once nobody waits in them: who connected, sent and ended has bytes
    /// there.
    Close(u64),
}

/// The listeners of one worker, IPv4 and IPv6. One loop serves them all, so that one permit is enough to serve any.
pub(crate) struct Listeners {
    sockets: Vec<Listener>,
    /// Those that come and go later, for what passes through and for other network namespaces.
    changes: UnboundedReceiver<Change>,
    /// Which one is asked first; it moves on, so that a busy one cannot starve the other.
    first: usize,
}

struct Listener {
    socket: AsyncFd<StdListener>,
    door: Door,
    is_closing: bool,
}

type Accepted = io::Result<(TcpStream, SocketAddr, Door)>;

impl Listeners {
    /// Hands sockets to the runtime of this thread.
    ///
    /// # Errors
    /// When the runtime cannot take one.
    pub(crate) fn new(
        sockets: Vec<StdListener>,
        changes: UnboundedReceiver<Change>,
    ) -> io::Result<Self> {
        let register = |socket| Listener::new(socket, DoorKind::Own);
        Ok(Self {
            sockets: sockets
                .into_iter()
                .map(register)
                .collect::<io::Result<_>>()?,
            changes,
            first: 0,
        })
    }

    /// The next connection, with the address of its client and what it came in by.
    async fn accept(&mut self) -> Accepted {
        self.first = self.first.wrapping_add(1);
        poll_fn(|cx| {
            while let Poll::Ready(Some(change)) = self.changes.poll_recv(cx) {
                if let Err(error) = self.change(change) {
                    return Poll::Ready(Err(error));
                }
            }
            let (before, after) = self
                .sockets
                .split_at(self.first % self.sockets.len().max(1));
            for listener in after.iter().chain(before) {
                if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                    return Poll::Ready(accepted);
                }
            }
            self.last().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Whoever still waits in a listener that is closing; it goes when nobody does. The runtime may not have heard of them yet.
    fn last(&mut self) -> Option<Accepted> {
        let mut found = None;
        self.sockets.retain(|listener| {
            if !listener.is_closing || found.is_some() {
                return true;
            }
            match listener.accept_now() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                accepted => found = Some(accepted),
            }
            true
        });
        found
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        match change {
            Change::Open(socket, kind) => self.sockets.push(Listener::new(socket, kind)?),
            Change::Close(space) => {
                for listener in &mut self.sockets {
                    listener.is_closing |= listener.door.space() == Some(space);
                }
            }
        }
        Ok(())
    }
}

impl Listener {
    fn new(socket: StdListener, kind: DoorKind) -> io::Result<Self> {
        let address = socket.local_addr()?;
        // SAFETY: a listener keeps its one descriptor open until it is dropped, which the `AsyncFd` does.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self {
            socket,
            door: Door { address, kind },
            is_closing: false,
        })
    }

    /// The next connection that waits.
    ///
    /// Who asks accept(2) until nobody is left makes a socket and a file each time that come to nothing (`do_accept()` in
    /// `net/socket.c`): three microseconds on a kernel that accounts memory, where poll(2) takes a fifth of one. As a rule nobody
    /// else waits.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Accepted> {
        loop {
            let mut readiness = ready!(self.socket.poll_read_ready(cx))?;
            let accepted = self.accept_now();
            let is_empty = match &accepted {
                Ok(_) => socket::has_news(&self.socket).is_ok_and(|has_news| !has_news),
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            if is_empty {
                // Who comes after the kernel said so is told anew, and that is not cleared here.
                readiness.clear_ready();
            }
            if accepted.is_ok() || !is_empty {
                return Poll::Ready(accepted);
            }
        }
    }

    /// Asks the kernel, whatever the runtime knows.
    fn accept_now(&self) -> Accepted {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let (stream, client) = SockRef::from(&self.socket).accept4(flags)?;
        let client = client.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        Ok((TcpStream::from_std(stream.into())?, client, self.door))
    }
}

/// Accepts until the worker stops.
pub(crate) async fn serve(worker: Rc<Worker>, mut listeners: Listeners) {
    let mut stop = worker.stop.clone();
    tokio::select! {
        () = accept_all(&worker, &mut listeners) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn accept_all(worker: &Rc<Worker>, listeners: &mut Listeners) {
    let stats = &worker.shared.stats;
    let mut pause = FIRST_PAUSE;
    // A permit before accept: at the limit connections wait in the kernel's queue.
    while let Some(permit) = permit(worker).await {
        match listeners.accept().await {
            Ok((stream, client, door)) => {
                pause = FIRST_PAUSE;
                let counted = stats.count_accepted();
                let worker = Rc::clone(worker);
                // Boxed: a task is moved when it begins and whenever its stage changes, and a connection is some kilobytes.
                tokio::task::spawn_local(Box::pin(async move {
                    connection::serve(&worker, counted, stream, client, door).await;
                    drop(permit);
                }));
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

/// A permit for one more connection; `None` when the worker is gone.
async fn permit(worker: &Worker) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(&worker.permits).try_acquire_owned() {
        return Some(permit);
    }
    worker.shared.stats.at_limit.fetch_add(1, Relaxed);
    Arc::clone(&worker.permits).acquire_owned().await.ok()
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

#[cfg(test)]
mod tests {
    use std::{net::TcpStream as Client, pin::pin};

    use tokio::{runtime::Builder, sync::mpsc::unbounded_channel, time::timeout};

    use super::*;

    /// What is asked of the kernel in between must not have later ones wait for ever.
    #[test]
    fn who_comes_is_accepted_whoever_came_before() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_tell, changes) = unbounded_channel();
            let socket = StdListener::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            let address = socket.local_addr().unwrap();
            let mut listeners = Listeners::new(vec![socket], changes).unwrap();
            for count in [1, 3, 1, 2] {
                let mut expected: Vec<_> = (0..count)
                    .map(|_| Client::connect(address).unwrap().local_addr().unwrap())
                    .collect();
                while !expected.is_empty() {
                    let accepted = timeout(Duration::from_secs(10), listeners.accept()).await;
                    let (_, client, _) = accepted.expect("somebody waits").unwrap();
                    expected.retain(|address| *address != client);
                }
                let next = timeout(Duration::from_millis(20), listeners.accept()).await;
                assert!(next.is_err(), "nobody else: {next:?}");
            }
        });
        drop(runtime);
    }

    /// As when a container ends that has just connected, and the thread had no time yet to look who is there.
    #[test]
    fn nobody_is_left_in_a_listener_that_closes() {
        const SPACE: u64 = 7;
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (tell, changes) = unbounded_channel();
            let mut listeners = Listeners::new(Vec::new(), changes).unwrap();
            let socket = StdListener::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            let address = socket.local_addr().unwrap();
            tell.send(Change::Open(socket, DoorKind::Space(SPACE)))
                .unwrap();
            tell.send(Change::Close(SPACE)).unwrap();
            let clients = [(); 3].map(|()| Client::connect(address).unwrap());
            for client in &clients {
                let mut accepting = pin!(listeners.accept());
                let polled = poll_fn(|cx| Poll::Ready(accepting.as_mut().poll(cx))).await;
                let Poll::Ready(Ok((_, accepted, door))) = polled else {
                    panic!("{client:?} is left: {polled:?}");
                };
                assert_eq!(accepted, client.local_addr().unwrap());
                assert_eq!(door.space(), Some(SPACE));
            }
            let polled =
                poll_fn(|cx| Poll::Ready(pin!(listeners.accept()).as_mut().poll(cx).is_pending()))
                    .await;
            assert!(polled && listeners.sockets.is_empty());
        });
        drop(runtime);
    }
}
