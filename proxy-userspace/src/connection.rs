//! One connection, from accept to its close record, whichever role it is in. Read it top to bottom.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::SystemTime,
};

use tokio::net::TcpStream;

use crate::{
    clock,
    close::CloseReason,
    origin::{self, App, Origin, Rejected},
    peek::{self, Flight, Seen},
    proxy_protocol,
    record::{ByPath, CloseRecord, comm_text},
    relay::{
        Ended, Path, Progress, Reason, Relay, Side, Turn,
        shortcut::{Lane, Obstacle, of_app},
    },
    routes::ByName,
    rule::{Name, PathChoice},
    shared::Worker,
    socket,
    upstream::{Connected, Timings, UpstreamStream},
};

/// Takes an accepted connection to its end.
pub(crate) async fn serve(
    worker: &Worker,
    mut downstream: TcpStream,
    client: SocketAddr,
    listener: SocketAddr,
) {
    let mut stop = worker.stop.clone();
    let found = tokio::select! {
        found = origin::find(worker, &mut downstream, client, listener) => found,
        _ = stop.wait_for(|stop| *stop) => Err(Rejected { reason: CloseReason::Shutdown, orig_dst: None }),
    };
    let origin = match found {
        Ok(origin) => origin,
        Err(why) => return reject(worker, downstream, client, &why),
    };
    worker.shared.stats.live.fetch_add(1, Relaxed);
    let mut flow = Flow {
        worker,
        origin,
        progress: Arc::new(Progress::default()),
        peer: None,
        asked: Asked::default(),
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
    origin: Origin,
    progress: Arc<Progress>,
    peer: Option<SocketAddr>,
    /// What the client asked for by name.
    asked: Asked,
    /// Why it is not on a better path.
    reason: Option<Reason>,
    timings: Timings,
}

/// What a client asked for by name.
#[derive(Default)]
struct Asked {
    name: Option<Name>,
    /// The protocols that it offers.
    alpn: Option<String>,
}

/// So many protocols are recorded: a client can offer thousands.
const PROTOCOLS_RECORDED: usize = 8;

impl Asked {
    fn of(flight: Flight) -> Self {
        let offered = flight.alpn().take(PROTOCOLS_RECORDED);
        let offered: Vec<_> = offered
            .map(|name| name.escape_ascii().to_string())
            .collect();
        Self {
            name: flight.name,
            alpn: (!offered.is_empty()).then(|| offered.join(",")),
        }
    }
}

impl Flow<'_> {
    /// Dials and relays. Whatever goes wrong, the app sees a reset and never an orderly end.
    async fn run(&mut self, mut downstream: TcpStream) -> (CloseReason, Option<String>) {
        if let Some(names) = self.origin.route.names.clone()
            && let Err((reason, error)) = self.choose(&names, &downstream).await
        {
            socket::reset(downstream);
            return (reason, error);
        }
        let mut upstream = match self.dial().await {
            Ok(upstream) => upstream,
            Err((reason, error)) => {
                socket::reset(downstream);
                return (reason, error);
            }
        };
        if let Err(error) = self.introduce(&mut upstream.stream).await {
            socket::reset(downstream);
            return (CloseReason::UpstreamReset, Some(error.to_string()));
        }
        let mut relay = Relay::new(Arc::clone(&self.progress), self.worker.shared.idle_timeout)
            .with_paths(Arc::clone(&self.worker.shared.paths));
        let mut obstacle = None;
        match self.lane(&upstream.stream) {
            Ok(Some(mut lane)) => {
                if self.origin.route.path == PathChoice::ShortcutBothWays {
                    obstacle = self.open_replies(&mut lane, &upstream.stream).err();
                }
                relay.take_shortcut(lane);
            }
            Ok(None) => {}
            Err(why) => obstacle = Some(why),
        }
        let mut stop = self.worker.stop.clone();
        let relayed = relay_to_end(
            &mut relay,
            self.origin.route.path,
            &mut downstream,
            upstream.stream,
        );
        let (ended, upstream) = tokio::select! {
            relayed = relayed => relayed,
            _ = stop.wait_for(|stop| *stop) => {
                (Ended { reason: CloseReason::Shutdown, first_error: None }, None)
            }
        };
        self.reason = match obstacle {
            Some(obstacle) => Some(Reason::Shortcut(obstacle)),
            None => relay.reason(),
        };
        if ended.must_reset() {
            socket::reset(downstream);
            if let Some(upstream) = upstream {
                socket::reset(upstream.into_tcp());
            }
        } else {
            tokio::select! {
                () = relay.until_read() => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            socket::end_orderly(&downstream);
            if let Some(upstream) = &upstream {
                socket::end_orderly(upstream.tcp());
            }
        }
        (
            ended.reason,
            ended.first_error.map(|error| error.to_string()),
        )
    }

    /// Looks for the name that the client asks for, and goes where that leads.
    async fn choose(
        &mut self,
        names: &ByName,
        downstream: &TcpStream,
    ) -> Result<(), (CloseReason, Option<String>)> {
        let mut stop = self.worker.stop.clone();
        let seen = tokio::select! {
            seen = peek::first_flight(downstream, names.limits) => seen,
            _ = stop.wait_for(|stop| *stop) => return Err((CloseReason::Shutdown, None)),
        };
        let seen = seen.map_err(|error| (CloseReason::DownstreamReset, Some(error.to_string())))?;
        self.worker.shared.stats.count_peeked(seen.counted());
        let target = names.target(&seen).cloned();
        let why = match seen {
            Seen::Malformed(why) => Some(format!("what the client says first is malformed: {why}")),
            Seen::Late => Some("no name came in time".to_owned()),
            Seen::Whole(flight) => {
                self.asked = Asked::of(flight);
                None
            }
        };
        let Some(target) = target else {
            return Err((CloseReason::NameRefused, why));
        };
        self.origin.route.upstream = target.upstream;
        self.origin.route.destination = target.destination;
        Ok(())
    }

    /// Tells the service who the client is, if the rule says so.
    async fn introduce(&self, upstream: &mut UpstreamStream) -> io::Result<()> {
        let Origin {
            route,
            client,
            orig_dst,
            ..
        } = &self.origin;
        match route.send_proxy {
            None => Ok(()),
            Some(version) => proxy_protocol::send(upstream, version, *client, *orig_dst).await,
        }
    }

    /// Opens the shortcut, if the rule asks for it.
    fn lane(&self, upstream: &UpstreamStream) -> Result<Option<Lane>, Obstacle> {
        let proofs = self.worker.shared.shortcut.get();
        let (Some(proofs), Some(kernel)) = (proofs, &self.worker.shortcuts) else {
            return Ok(None);
        };
        let Some(App { record, .. }) = &self.origin.app else {
            return Ok(None);
        };
        if !proofs.requests.allows(self.origin.route.path)? {
            return Ok(None);
        }
        of_app(record.shortcut)?;
        let upstream = upstream.plain().ok_or(Obstacle::Encrypted)?;
        let progress = Arc::clone(&self.progress);
        Lane::open(Arc::clone(kernel), record.lane(), upstream, progress)
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

    async fn dial(&mut self) -> Result<Connected, (CloseReason, Option<String>)> {
        let Origin {
            route, orig_dst, ..
        } = &self.origin;
        let destination = route.destination.unwrap_or(*orig_dst);
        let mut stop = self.worker.stop.clone();
        let dialled = tokio::select! {
            dialled = self.worker.dialer.dial(&route.upstream, destination) => dialled,
            _ = stop.wait_for(|stop| *stop) => return Err((CloseReason::Shutdown, None)),
        };
        match dialled {
            Ok(connected) => {
                self.peer = Some(connected.peer);
                self.timings = connected.timings;
                Ok(connected)
            }
            Err(error) => {
                let reason = error.close_reason();
                let text = error.with_causes();
                if self.worker.may_warn(reason.label()) {
                    tracing::warn!(
                        rule = &*route.rule,
                        upstream = &*route.upstream.name,
                        %destination,
                        "{text}"
                    );
                }
                Err((reason, Some(text)))
            }
        }
    }

    /// Counts and records the end.
    fn finish(&self, reason: CloseReason, error: Option<&str>) {
        let progress = &self.progress;
        self.worker.shared.stats.count_close(reason);
        self.worker.shared.stats.count_moved(progress);
        let Some(log) = &self.worker.shared.access_log else {
            return;
        };
        let origin = &self.origin;
        let app = origin.app.as_ref();
        let record = app.map(|app| &app.record);
        let process = app.and_then(|app| app.process.as_ref());
        let comm = record.map(|record| comm_text(&record.comm));
        log.write(&CloseRecord {
            closed_at: SystemTime::now(),
            role: origin.role,
            rule: Some(&origin.route.rule),
            pid: record.map(|record| record.pid),
            uid: record.map(|record| record.uid),
            gid: record.map(|record| record.gid),
            comm: comm.as_deref(),
            exe: process.and_then(|process| process.exe.as_deref()),
            cgroup: process.and_then(|process| process.cgroup.as_deref()),
            client: origin.client,
            sender: origin.sender,
            orig_dst: Some(origin.orig_dst),
            name: self.asked.name.as_ref().map(Name::as_str),
            alpn: self.asked.alpn.as_deref(),
            upstream: Some(&origin.route.upstream.name),
            peer: self.peer,
            path: self.peer.map(|_| progress.path().label()),
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
            intercept: origin.intercept,
            connect: self.timings.connect,
            handshake: self.timings.handshake,
            total: clock::monotonic().saturating_sub(origin.begun),
            reason,
            error,
        });
    }
}

/// Relays, and rests where the kernel does the work, until the end. Returns the upstream stream, unless that was lost; and
/// so it is, by reset, when this is dropped.
async fn relay_to_end(
    relay: &mut Relay,
    path: PathChoice,
    downstream: &mut TcpStream,
    mut upstream: UpstreamStream,
) -> (Ended, Option<UpstreamStream>) {
    loop {
        match relay.run(downstream, &mut upstream, path).await {
            Turn::Ended(ended) => return (ended, Some(upstream)),
            Turn::Quiet => {}
        }
        upstream = match upstream {
            UpstreamStream::Tcp(tcp) => match relay.rest(downstream, tcp).await {
                Ok(tcp) => UpstreamStream::Tcp(tcp),
                Err(ended) => return (ended, None),
            },
            tls @ UpstreamStream::Tls(_) => tls,
        };
    }
}

/// Resets a connection that has no route.
fn reject(worker: &Worker, downstream: TcpStream, client: SocketAddr, why: &Rejected) {
    let Rejected { reason, orig_dst } = why;
    // Counted first: whoever sees the reset also sees the count.
    worker.shared.stats.count_close(*reason);
    socket::reset(downstream);
    if worker.may_warn(reason.label()) {
        tracing::warn!(%client, ?orig_dst, %reason, "connection reset");
    }
}

impl Side for UpstreamStream {
    fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Tls(_) => None,
        }
    }
}
