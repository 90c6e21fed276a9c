//! What apps connect to: servers and proxies of a few lines, on threads of the test itself.
//!
//! They are started inside [`Sandbox::within`](crate::Sandbox::within) and so listen in the test's network namespace. The
//! test process is in no cgroup of the test's, so nothing that they do is intercepted.

mod crowd;
mod haproxy;
mod http_proxy;
mod name_server;
mod nginx;
pub mod postgres;
mod redis;
mod socks5;
mod ssh;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use socket2::{Domain, SockRef, Socket, Type};

pub use crowd::Crowd;
pub use haproxy::haproxy;
pub use http_proxy::HttpProxy;
pub use name_server::NameServer;
pub use nginx::{nginx, nginx_with};
pub use postgres::Postgres;
pub use redis::redis;
pub use socks5::Socks5;
pub use ssh::{ssh_options, sshd};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// A listener that gives each connection to a thread.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    clients: Arc<Mutex<Vec<SocketAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves connections to `address` until dropped; port 0 is a free one. An error of `serve` ends its connection
    /// only: peers that go away are part of many tests.
    pub fn start(
        address: impl Into<SocketAddr>,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::on(listen(address.into(), Sharing::No), serve)
    }

    fn on(
        listener: TcpListener,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("the address of a listener");
        let clients = Arc::default();
        let accepting = Accepting {
            listener: listener.try_clone().expect("a second descriptor"),
            clients: Arc::clone(&clients),
            serve: Arc::new(serve),
        };
        let thread = thread::spawn(move || accepting.run());
        Self {
            listener,
            address,
            clients,
            thread: Some(thread),
        }
    }

    /// Sends back what it receives, and ends when the client has ended.
    pub fn echo(address: impl Into<SocketAddr>) -> Self {
        Self::start(address, |mut stream| {
            let mut reading = stream.try_clone()?;
            io::copy(&mut reading, &mut stream)?;
            stream.shutdown(Shutdown::Write)
        })
    }

    /// Says `greeting` at once, and then ends.
    pub fn greeter(address: impl Into<SocketAddr>, greeting: &'static [u8]) -> Self {
        Self::start(address, move |mut stream| {
            stream.write_all(greeting)?;
            stream.shutdown(Shutdown::Write)?;
            io::copy(&mut stream, &mut io::sink()).map(drop)
        })
    }

    /// Tells each client the address it sees of it, and ends.
    pub fn mirror(address: impl Into<SocketAddr>) -> Self {
        Self::start(address, reflect)
    }

    /// A [mirror](Server::mirror) that shares its port with others like it (`SO_REUSEPORT`).
    pub fn sharing_mirror(address: impl Into<SocketAddr>) -> Self {
        Self::on(listen(address.into(), Sharing::Port), reflect)
    }

    /// Answers every HTTP request with a page of one line.
    pub fn web(address: impl Into<SocketAddr>) -> Self {
        Self::start(address, |mut stream| {
            let mut request = BufReader::new(stream.try_clone()?);
            let mut line = String::new();
            while request.read_line(&mut line)? > "\r\n".len() {
                line.clear();
            }
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\npage\n",
            )
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Addresses of the clients it has accepted so far, in order.
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.clients.lock().expect("clients").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the thread that accepts; its connections end with their clients.
        let _ =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells the client the address that is seen of it.
fn reflect(mut stream: TcpStream) -> io::Result<()> {
    let client = stream.peer_addr()?;
    stream.write_all(client.to_string().as_bytes())
}

struct Accepting<F> {
    listener: TcpListener,
    clients: Arc<Mutex<Vec<SocketAddr>>>,
    serve: Arc<F>,
}

impl<F: Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static> Accepting<F> {
    fn run(self) {
        while let Ok((stream, client)) = self.listener.accept() {
            self.clients.lock().expect("clients").push(client);
            let serve = Arc::clone(&self.serve);
            // Thousands of them: what they do needs little stack.
            let thread = thread::Builder::new().stack_size(256 * 1024);
            let spawned = thread.spawn(move || {
                let _ = serve(stream);
            });
            spawned.expect("a thread for a connection");
        }
    }
}

/// Accepts connections and does nothing with them.
#[derive(Debug)]
pub struct Holder {
    listener: TcpListener,
    address: SocketAddr,
    held: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Holder {
    /// Accepts on `address` until dropped; port 0 is a free one.
    pub fn start(address: impl Into<SocketAddr>) -> Self {
        let listener = listen(address.into(), Sharing::No);
        let address = listener.local_addr().expect("the address of a listener");
        let held = Arc::new(AtomicUsize::new(0));
        let (accepting, count) = (
            listener.try_clone().expect("a second descriptor"),
            Arc::clone(&held),
        );
        let thread = thread::spawn(move || {
            let mut streams = Vec::new();
            while let Ok((stream, _)) = accepting.accept() {
                streams.push(stream);
                count.store(streams.len(), SeqCst);
            }
        });
        Self {
            listener,
            address,
            held,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub fn held(&self) -> usize {
        self.held.load(SeqCst)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes closing the stream a reset instead of an end.
pub fn reset_on_close(stream: &TcpStream) {
    SockRef::from(stream)
        .set_linger(Some(std::time::Duration::ZERO))
        .expect("SO_LINGER");
}

/// Reads to the end of a stream.
///
/// # Errors
/// That of reading, such as a reset.
pub fn read_all(mut stream: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

/// Whether others may listen on the same port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    No,
    Port,
}

fn listen(address: SocketAddr, sharing: Sharing) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    let bound = socket
        .set_reuse_address(true)
        .and_then(|()| socket.set_reuse_port(sharing == Sharing::Port))
        .and_then(|()| socket.bind(&address.into()))
        .and_then(|()| socket.listen(BACKLOG));
    bound.unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
    socket.into()
}
