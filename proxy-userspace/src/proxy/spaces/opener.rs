//! The one thread that enters network namespaces of containers, and the only one that may.
//!
//! It goes there for some system calls, and comes back: a thread holds the namespace that it is in.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use nix::errno::Errno;
use socket2::Socket;
use thiserror::Error;
use tokio::sync::oneshot;

use super::super::{ProxyError, listeners};
use crate::{
    netlink::is_one_of,
    netns::{Id, Netns},
    privileges, socket,
    upstream::{Abroad, Made},
};

/// Why there are no listeners in a namespace.
#[derive(Debug, Error)]
pub(super) enum OpenError {
    /// Others rule there.
    #[error(
        "its network namespace belongs to a user namespace (rootless, or `userns-remap`), whose root may change there what it likes: \
         the rules' fail mode is applied to it; run it without one, or culvert as a sidecar beside it"
    )]
    Users,
    /// It is not set up yet, or never will be.
    #[error("loopback is down in its network namespace")]
    LoopbackDown,
    /// Nobody is there any more.
    #[error("it has ended")]
    Gone,
    /// Something else.
    #[error("cannot {step} its network namespace")]
    Failed {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Listeners in a namespace.
#[derive(Debug)]
pub(super) struct Opened {
    /// The namespace's, in the kernel's own numbers.
    pub(super) cookie: u64,
    /// As many as there are workers.
    pub(super) v4: Vec<TcpListener>,
    /// The same; none where the namespace has no IPv6.
    pub(super) v6: Vec<TcpListener>,
}

enum Request {
    Open {
        pid: u32,
        wanted: Id,
        answer: Sender<Result<Opened, OpenError>>,
    },
    Socket {
        space: u64,
        address: SocketAddr,
        answer: oneshot::Sender<io::Result<Socket>>,
    },
    Close(u64),
}

/// Asks the thread. It ends when nobody can any more.
#[derive(Debug)]
pub(super) struct Opener {
    requests: Sender<Request>,
}

impl Opener {
    /// Starts it.
    pub(super) fn start(workers: usize) -> io::Result<Self> {
        let home = Netns::own()?;
        let (requests, received) = channel();
        let thread = thread::Builder::new().name("namespaces".to_owned());
        thread.spawn(move || {
            if let Err(error) = privileges::keep_what_entering_needs() {
                tracing::warn!("{error:#}");
            }
            let mut traveller = Traveller {
                home,
                workers,
                entered: HashMap::new(),
            };
            traveller.serve(&received);
        })?;
        Ok(Self { requests })
    }

    /// Opens listeners in the namespace of a process, if that is the one that is wanted.
    pub(super) fn open(&self, pid: u32, wanted: Id) -> Result<Opened, OpenError> {
        let (answer, answered) = channel();
        // When the thread is gone there is no answer either.
        _ = self.requests.send(Request::Open {
            pid,
            wanted,
            answer,
        });
        answered.recv().unwrap_or_else(|_| Err(lost()))
    }

    /// No further socket is made there.
    pub(super) fn close(&self, space: u64) {
        _ = self.requests.send(Request::Close(space));
    }
}

fn lost() -> OpenError {
    OpenError::Failed {
        step: "leave",
        source: io::ErrorKind::BrokenPipe.into(),
    }
}

impl Abroad for Opener {
    fn socket(&self, space: u64, address: SocketAddr) -> Made<'_> {
        let (answer, answered) = oneshot::channel();
        _ = self.requests.send(Request::Socket {
            space,
            address,
            answer,
        });
        Box::pin(async {
            let ended = |_| Err(io::ErrorKind::BrokenPipe.into());
            answered.await.unwrap_or_else(ended)
        })
    }
}

/// The state of the thread.
struct Traveller {
    home: Netns,
    workers: usize,
    /// Namespaces by their cookies.
    entered: HashMap<u64, Netns>,
}

impl Traveller {
    fn serve(&mut self, requests: &Receiver<Request>) {
        while let Ok(request) = requests.recv() {
            // Nobody may wait for the answers any more.
            match request {
                Request::Open {
                    pid,
                    wanted,
                    answer,
                } => _ = answer.send(self.open(pid, wanted)),
                Request::Socket {
                    space,
                    address,
                    answer,
                } => _ = answer.send(self.socket(space, address)),
                Request::Close(space) => _ = self.entered.remove(&space),
            }
            // Whoever is not back must not make another socket.
            if let Err(error) = self.home.enter() {
                tracing::error!(%error, "cannot leave a network namespace; there are no further listeners in those of containers");
                return;
            }
        }
    }

    fn open(&mut self, pid: u32, wanted: Id) -> Result<Opened, OpenError> {
        let failed = |step| move |source| OpenError::Failed { step, source };
        let netns = Netns::of(pid).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => OpenError::Gone,
            _ => failed("open")(error),
        })?;
        if netns.id().map_err(failed("look at"))? != wanted {
            return Err(OpenError::Gone);
        }
        if !netns.is_of_own_users().map_err(failed("look at"))? {
            return Err(OpenError::Users);
        }
        netns.enter().map_err(failed("enter"))?;
        // Before that 127.0.0.1 can be listened at, since no address is known to be another's, and ::1 cannot (kernel 6.18).
        if !socket::is_loopback_up().map_err(failed("look at"))? {
            return Err(OpenError::LoopbackDown);
        }
        let listen = |ip: IpAddr| {
            listeners((ip, 0).into(), self.workers).map_err(|error| match error {
                ProxyError::Listen { source, .. } => source,
                other => io::Error::other(other),
            })
        };
        let v4 = listen(Ipv4Addr::LOCALHOST.into()).map_err(failed("listen in"))?;
        let v6 = match listen(Ipv6Addr::LOCALHOST.into()) {
            // The kernel, or the namespace, has no IPv6.
            Err(error) if is_one_of(&error, &[Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL]) => {
                Vec::new()
            }
            listening => listening.map_err(failed("listen in"))?,
        };
        let first = v4.first().ok_or(OpenError::Gone)?;
        let cookie = socket::netns_cookie(first);
        let cookie =
            cookie.map_err(failed("learn the cookie (SO_NETNS_COOKIE, kernel 5.14) of"))?;
        self.entered.insert(cookie, netns);
        Ok(Opened { cookie, v4, v6 })
    }

    fn socket(&self, space: u64, address: SocketAddr) -> io::Result<Socket> {
        let netns = self.entered.get(&space);
        netns.ok_or(io::ErrorKind::NotFound)?.enter()?;
        socket::for_upstream(address)
    }
}
