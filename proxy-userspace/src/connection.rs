//! One connection, from accept to its close record. Read it top to bottom.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use proxy_common::Record;
use tokio::net::TcpStream;

use crate::{
    clock,
    close::CloseReason,
    group::{Asked, Group, Permit},
    process::Process,
    proxy_protocol::UniqueId,
    record::{ByPath, CloseRecord, comm_text},
    relay::{
        Ended, Path, Progress, Reason, Relay, Side,
        shortcut::{Lane, Obstacle, of_app},
    },
    routes::Route,
    rule::PathChoice,
    shared::Worker,
    socket,
    upstream::{Timings, UpstreamStream},
};

/// Takes an accepted connection to its end.
pub(crate) async fn serve(
    worker: &Worker,
    downstream: TcpStream,
    client: SocketAddr,
    listener: SocketAddr,
) {
    let accepted_at = clock::monotonic();
    let record = match worker.original_dst.borrow_mut().take(client, listener) {
        Ok(Some(record)) => record,
        Ok(None) => {
            return reject(
                worker,
                downstream,
                client,
                CloseReason::NotIntercepted,
                None,
            );
        }
        Err(error) => {
            tracing::error!(%error, "cannot ask the kernel where a connection was going");
            return reject(
                worker,
                downstream,
                client,
                CloseReason::OutOfResources,
                None,
            );
        }
    };
    let Some(route) = worker.shared.routes.find(record.rule) else {
        return reject(
            worker,
            downstream,
            client,
            CloseReason::RuleGone,
            Some(record),
        );
    };
    let process = who(worker, &route, &record);
    worker.shared.stats.live.fetch_add(1, Relaxed);
    let mut flow = Flow {
        worker,
        client,
        intercept: accepted_at.saturating_sub(Duration::from_nanos(record.connect_ns)),
        route: past_itself(worker, route, process.as_deref()),
        process,
        record,
        progress: Arc::new(Progress::default()),
        reached: Destination::default(),
        reason: None,
        timings: Timings::default(),
    };
    let (reason, error) = flow.run(downstream).await;
    worker.shared.stats.live.fetch_sub(1, Relaxed);
    flow.finish(reason, error.as_deref());
}

/// A connection that has a route.
struct Flow<'a> {
    worker: &'a Worker,
    client: SocketAddr,
    record: Record,
    route: Route,
    process: Option<Arc<Process>>,
    progress: Arc<Progress>,
    reached: Destination,
    /// Why it is not on a better path.
    reason: Option<Reason>,
    intercept: Duration,
    timings: Timings,
}

/// Where a connection was brought to.
#[derive(Default)]
struct Destination {
    is_reached: bool,
    peer: Option<SocketAddr>,
    endpoint: Option<String>,
    attempts: u32,
    unique_id: Option<UniqueId>,
    /// Counts it as long as it lives.
    permit: Option<Permit>,
}

impl Flow<'_> {
    /// Dials and relays. Whatever goes wrong, the app sees a reset and never an orderly end.
    async fn run(&mut self, mut downstream: TcpStream) -> (CloseReason, Option<String>) {
        let mut upstream = match self.dial().await {
            Ok(upstream) => upstream,
            Err((reason, error)) => {
                socket::reset(downstream);
                return (reason, error);
            }
        };
        let mut relay = Relay::new(Arc::clone(&self.progress), self.worker.shared.idle_timeout)
            .with_paths(Arc::clone(&self.worker.shared.paths));
        let mut obstacle = None;
        match self.lane(&upstream) {
            Ok(Some(mut lane)) => {
                if self.route.path == PathChoice::ShortcutBothWays {
                    obstacle = self.open_replies(&mut lane, &upstream).err();
                }
                relay.take_shortcut(lane);
            }
            Ok(None) => {}
            Err(why) => obstacle = Some(why),
        }
        let mut stop = self.worker.stop.clone();
        let ended = tokio::select! {
            ended = relay.run(&mut downstream, &mut upstream, self.route.path) => ended,
            _ = stop.wait_for(|stop| *stop) => Ended { reason: CloseReason::Shutdown, first_error: None },
        };
        self.reason = match obstacle {
            Some(obstacle) => Some(Reason::Shortcut(obstacle)),
            None => relay.reason(),
        };
        if ended.must_reset() {
            socket::reset(downstream);
            upstream.reset();
        } else {
            tokio::select! {
                () = relay.until_read() => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            socket::end_orderly(&downstream);
            upstream.end_orderly();
        }
        (
            ended.reason,
            ended.first_error.map(|error| error.to_string()),
        )
    }

    /// Opens the shortcut, if the rule asks for it.
    fn lane(&self, upstream: &UpstreamStream) -> Result<Option<Lane>, Obstacle> {
        let proofs = self.worker.shared.shortcut.get();
        let (Some(proofs), Some(kernel)) = (proofs, &self.worker.shortcuts) else {
            return Ok(None);
        };
        if !proofs.requests.allows(self.route.path)? {
            return Ok(None);
        }
        of_app(self.record.shortcut)?;
        let upstream = upstream.plain().ok_or(Obstacle::Encrypted)?;
        let progress = Arc::clone(&self.progress);
        Lane::open(Arc::clone(kernel), self.record.lane(), upstream, progress)
            .map(Some)
            .map_err(|error| {
                tracing::debug!(%error, "a connection cannot take the shortcut");
                Obstacle::Upstream
            })
    }

    /// Lets replies take the shortcut, too.
    fn open_replies(&self, lane: &mut Lane, upstream: &UpstreamStream) -> Result<(), Obstacle> {
        let proven = self
            .worker
            .shared
            .shortcut
            .get()
            .is_some_and(|proofs| proofs.replies.is_ok());
        let upstream = upstream.plain().filter(|_| proven);
        lane.open_replies(upstream.ok_or(Obstacle::Replies)?)
            .map_err(|error| {
                tracing::debug!(%error, "replies of a connection are copied");
                Obstacle::Replies
            })
    }

    async fn dial(&mut self) -> Result<UpstreamStream, (CloseReason, Option<String>)> {
        let mut stop = self.worker.stop.clone();
        let dialled = tokio::select! {
            dialled = self.dial_upstream() => dialled,
            _ = stop.wait_for(|stop| *stop) => return Err((CloseReason::Shutdown, None)),
        };
        dialled.map_err(|(reason, text)| {
            if self.worker.may_warn(reason.label()) {
                tracing::warn!(
                    rule = &*self.route.rule,
                    upstream = &*self.route.upstream.name,
                    destination = %orig_dst(&self.record),
                    "{text}"
                );
            }
            (reason, Some(text))
        })
    }

    async fn dial_upstream(&mut self) -> Result<UpstreamStream, (CloseReason, String)> {
        let (dialer, destination) = (&self.worker.dialer, orig_dst(&self.record));
        if let Some(group) = self.route.group.clone() {
            // Boxed: it holds more than the direct path, which most connections take.
            return Box::pin(self.dial_group(&group)).await;
        }
        let connected = dialer
            .dial(&self.route.upstream, destination)
            .await
            .map_err(|error| (error.close_reason(), error.with_causes()))?;
        self.timings = connected.timings;
        self.reached = Destination {
            is_reached: true,
            peer: connected.peer,
            ..Destination::default()
        };
        Ok(connected.stream)
    }

    async fn dial_group(
        &mut self,
        group: &Arc<Group>,
    ) -> Result<UpstreamStream, (CloseReason, String)> {
        let asked = Asked {
            client: self.client,
            orig_dst: orig_dst(&self.record),
        };
        match group.connect(&self.worker.dialer, &asked).await {
            Ok(reached) => {
                self.timings = reached.timings;
                self.reached = Destination {
                    is_reached: true,
                    peer: reached.peer,
                    endpoint: Some(reached.permit.address().to_string()),
                    attempts: reached.attempts,
                    unique_id: reached.unique_id,
                    permit: Some(reached.permit),
                };
                Ok(reached.stream)
            }
            Err(failure) => {
                self.reached = Destination {
                    endpoint: failure.endpoint.map(|endpoint| endpoint.to_string()),
                    attempts: failure.attempts,
                    ..Destination::default()
                };
                Err((failure.reason, failure.text))
            }
        }
    }

    /// Counts and records the end.
    fn finish(&mut self, reason: CloseReason, error: Option<&str>) {
        // Whoever sees the end of it may take its place.
        self.reached.permit = None;
        let progress = &self.progress;
        self.worker.shared.stats.count_close(reason);
        self.worker.shared.stats.count_moved(progress);
        let Some(log) = &self.worker.shared.access_log else {
            return;
        };
        let opened = Duration::from_nanos(self.record.connect_ns);
        log.write(&CloseRecord {
            closed_at: SystemTime::now(),
            rule: Some(&self.route.rule),
            pid: self.record.pid,
            uid: self.record.uid,
            gid: self.record.gid,
            comm: &comm_text(&self.record.comm),
            exe: self
                .process
                .as_ref()
                .and_then(|process| process.exe.as_deref()),
            cgroup: self
                .process
                .as_ref()
                .and_then(|process| process.cgroup.as_deref()),
            client: self.client,
            orig_dst: Some(orig_dst(&self.record)),
            upstream: Some(&self.route.upstream.name),
            peer: self.reached.peer,
            endpoint: self.reached.endpoint.as_deref(),
            attempts: self.reached.attempts,
            unique_id: self.reached.unique_id.as_ref().map(UniqueId::as_str),
            path: self.reached.is_reached.then(|| progress.path().label()),
            path_reason: self.reason.map(Reason::label),
            up: progress.up(),
            down: progress.down(),
            bytes: ByPath {
                copy: progress.by(Path::Copy),
                splice: progress.by(Path::Splice),
                sockmap: progress.by(Path::Sockmap),
                shortcut: progress.by(Path::Shortcut),
                replies: progress.by(Path::BothWays),
            },
            promotions: progress.promotions(),
            demotions: progress.demotions(),
            repairs: progress.repairs(),
            intercept: self.intercept,
            connect: self.timings.connect,
            handshake: self.timings.handshake,
            total: clock::monotonic().saturating_sub(opened),
            reason,
            error,
        });
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
        group: None,
        ..route
    }
}

/// Resets a connection that has no route.
fn reject(
    worker: &Worker,
    downstream: TcpStream,
    client: SocketAddr,
    reason: CloseReason,
    record: Option<Record>,
) {
    // Counted first: whoever sees the reset also sees the count.
    worker.shared.stats.count_close(reason);
    socket::reset(downstream);
    if worker.may_warn(reason.label()) {
        let orig_dst = record.map(|record| orig_dst(&record));
        tracing::warn!(%client, ?orig_dst, %reason, "connection reset");
    }
}

fn orig_dst(record: &Record) -> SocketAddr {
    record.orig_addr.with_port(record.orig_port)
}

impl Side for UpstreamStream {
    fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Tls(_) | Self::Unix(_) => None,
        }
    }
}
