//! Where an accepted connection comes from and where it was going: what differs between the roles, and nothing else.
//!
//! A connection that an app of this host opened was sent to the relay's listener, and the kernel has kept a record of it. One
//! that arrived was given to the listener as it was: its own addresses say where it was going and who opened it. Both come
//! out of the same accept queue, and what they were sent to tells them apart.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use proxy_common::{Addr, Arrival, BePort, Record, Transit};
use tokio::net::TcpStream;

use crate::{
    clock,
    close::CloseReason,
    process::Process,
    proxy_protocol,
    record::Role,
    routes::Route,
    shared::{Door, DoorKind, Worker},
    socket,
};

/// What is known of a connection before anything is done with it.
pub(crate) struct Origin {
    /// What we are to it.
    pub(crate) role: Role,
    /// Who opened it.
    pub(crate) client: SocketAddr,
    /// Through whom, when that was told by a trusted sender.
    pub(crate) sender: Option<SocketAddr>,
    /// Whether it must not say such a thing: its rule trusts others.
    pub(crate) is_untrusted: bool,
    /// Where it was going.
    pub(crate) orig_dst: SocketAddr,
    /// Where it goes now.
    pub(crate) route: Route,
    /// When it began, as far as is known, on the monotonic clock.
    pub(crate) begun: Duration,
    /// From then until it was accepted.
    pub(crate) intercept: Duration,
    /// The app of this host that opened it.
    pub(crate) app: Option<App>,
}

/// An app of this host.
pub(crate) struct App {
    pub(crate) record: Record,
    /// Its network namespace, by its cookie, where that is not the daemon's.
    pub(crate) space: Option<u64>,
    pub(crate) process: Option<Arc<Process>>,
}

/// Why a connection is reset before it has a route, and where it was going, if that is known.
pub(crate) struct Rejected {
    pub(crate) reason: CloseReason,
    pub(crate) orig_dst: Option<SocketAddr>,
}

/// Finds out about an accepted connection.
///
/// # Errors
/// When it was not intercepted, or nobody knows any more what for, or its sender does not say what it must.
pub(crate) async fn find(
    worker: &Worker,
    downstream: &mut TcpStream,
    client: SocketAddr,
    door: Door,
) -> Result<Origin, Rejected> {
    let listener = door.address;
    match door.kind {
        DoorKind::Gate => return passing(worker, downstream, client, listener),
        DoorKind::Space(_) => return opened(worker, client, door),
        DoorKind::Own => {}
    }
    // Without rules for what arrives nothing can, and the question is spared.
    if worker.shared.routes.take_arrivals()
        && let Ok(local) = downstream.local_addr()
        && local != listener
    {
        return arrived(worker, downstream, client, local).await;
    }
    opened(worker, client, door)
}

/// An app of this host opened it.
fn opened(worker: &Worker, client: SocketAddr, door: Door) -> Result<Origin, Rejected> {
    let accepted_at = clock::monotonic();
    let reject = |reason, orig_dst| Err(Rejected { reason, orig_dst });
    let space = door.space();
    let taken = worker
        .original_dst
        .borrow_mut()
        .take(client, door.address, space);
    let record = match taken {
        Ok(Some(record)) => record,
        Ok(None) => return reject(CloseReason::NotIntercepted, None),
        Err(error) => {
            tracing::error!(%error, "cannot ask the kernel where a connection was going");
            return reject(CloseReason::OutOfResources, None);
        }
    };
    let orig_dst = record.orig_addr.with_port(record.orig_port);
    let Some(route) = worker.shared.routes.find(record.rule) else {
        return reject(CloseReason::RuleGone, Some(orig_dst));
    };
    let process = who(worker, &route, &record);
    let begun = Duration::from_nanos(record.connect_ns);
    Ok(Origin {
        role: Role::Forward,
        client,
        sender: None,
        is_untrusted: false,
        orig_dst,
        route: past_itself(worker, route, process.as_deref()),
        begun,
        intercept: accepted_at.saturating_sub(begun),
        app: Some(App {
            record,
            space,
            process,
        }),
    })
}

/// It arrived at this host.
async fn arrived(
    worker: &Worker,
    downstream: &mut TcpStream,
    client: SocketAddr,
    orig_dst: SocketAddr,
) -> Result<Origin, Rejected> {
    let begun = clock::monotonic();
    let reject = |reason| Rejected {
        reason,
        orig_dst: Some(orig_dst),
    };
    let arrival = Arrived {
        stream: downstream,
        client,
        orig_dst,
    };
    let Some(route) = worker.shared.routes.of_arrival(&arrival) else {
        return Err(reject(CloseReason::RuleGone));
    };
    let trusted = |ip| route.accept_proxy.iter().any(|net| net.contains(&ip));
    let (client, sender) = if trusted(client.ip()) {
        // Boxed: few rules have trusted senders.
        let mut stop = worker.stop.clone();
        let said = tokio::select! {
            said = Box::pin(proxy_protocol::receive(downstream)) => said,
            _ = stop.wait_for(|stop| *stop) => return Err(reject(CloseReason::Shutdown)),
        };
        match said {
            Ok(said) => (said.unwrap_or(client), Some(client)),
            Err(error) => {
                if worker.may_warn("sender_protocol") {
                    tracing::warn!(sender = %client, %orig_dst, "PROXY header: {error}");
                }
                return Err(reject(CloseReason::SenderProtocol));
            }
        }
    } else {
        (client, None)
    };
    Ok(Origin {
        role: Role::Reverse,
        client,
        sender,
        is_untrusted: sender.is_none() && !route.accept_proxy.is_empty(),
        orig_dst,
        route,
        begun,
        intercept: Duration::ZERO,
        app: None,
    })
}

/// It was to pass through this host.
fn passing(
    worker: &Worker,
    downstream: &TcpStream,
    client: SocketAddr,
    listener: SocketAddr,
) -> Result<Origin, Rejected> {
    let reject = |reason, orig_dst| Err(Rejected { reason, orig_dst });
    let Ok(orig_dst) = downstream.local_addr() else {
        return reject(CloseReason::DownstreamReset, None);
    };
    if orig_dst == listener {
        return reject(CloseReason::NotIntercepted, None);
    }
    let passing = Arrived {
        stream: downstream,
        client,
        orig_dst,
    };
    let Some(route) = worker.shared.routes.of_transit(&passing) else {
        return reject(CloseReason::RuleGone, Some(orig_dst));
    };
    Ok(Origin {
        role: Role::Gateway,
        client,
        sender: None,
        is_untrusted: false,
        orig_dst,
        route,
        begun: clock::monotonic(),
        intercept: Duration::ZERO,
        app: None,
    })
}

/// A connection that arrived, or was to pass through, as the kernel saw its SYN.
struct Arrived<'a> {
    stream: &'a TcpStream,
    client: SocketAddr,
    orig_dst: SocketAddr,
}

impl Arrival for Arrived<'_> {
    fn local(&self) -> Addr {
        Addr::from(self.orig_dst.ip())
    }

    fn port(&self) -> BePort {
        BePort::new(self.orig_dst.port())
    }

    fn source(&self) -> Addr {
        Addr::from(self.client.ip())
    }

    fn interface(&self) -> u32 {
        socket::ingress_interface(self.stream, self.orig_dst).unwrap_or(0)
    }
}

impl Transit for Arrived<'_> {
    fn dest(&self) -> Addr {
        self.local()
    }

    fn port(&self) -> BePort {
        Arrival::port(self)
    }

    fn source(&self) -> Addr {
        Arrival::source(self)
    }

    fn interface(&self) -> u32 {
        Arrival::interface(self)
    }
}

/// Who opened the connection. Asked now, while the app surely waits for us (when the connection ends its process may be
/// gone), and only where somebody wants to know: for a short connection it is a tenth of all the work.
fn who(worker: &Worker, route: &Route, record: &Record) -> Option<Arc<Process>> {
    let wanted = worker.shared.access_log.is_some() || route.upstream.entrance().is_some();
    let mut processes = worker.processes.borrow_mut();
    wanted
        .then(|| processes.get(record.pid, record.connect_ns))
        .flatten()
}

/// The way of a connection that is not a circle: when the process that opened it is the proxy it would be sent to, which
/// runs on this host and is selected by a rule like any other, it goes to its destination.
fn past_itself(worker: &Worker, route: Route, process: Option<&Process>) -> Route {
    let (Some(process), Some(entrance)) = (process, route.upstream.entrance()) else {
        return route;
    };
    if !worker.processes.borrow_mut().serves(process, entrance) {
        return route;
    }
    worker.shared.stats.own_proxy.fetch_add(1, Relaxed);
    if worker.may_warn("own_proxy") {
        tracing::warn!(
            rule = &*route.rule,
            upstream = &*route.upstream.name,
            pid = process.pid,
            exe = ?process.exe,
            "a rule selects the connections of its own proxy; they are relayed to their destinations, and would better \
             be excluded from the rule"
        );
    }
    Route {
        upstream: Arc::new(route.upstream.without_proxies()),
        ..route
    }
}
