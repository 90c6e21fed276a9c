//! One connection, from accept to its close record, whichever role it is in. Read it top to bottom.

mod by_name;
mod claim;

use std::{io, net::SocketAddr, sync::Arc, time::SystemTime};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    clock,
    close::CloseReason,
    group::{Asked, Group, Permit},
    live::{Begun, Caller, Entry, Reached},
    origin::{self, App, Origin, Rejected},
    proxy_protocol::{self, UniqueId},
    record::{ByPath, CloseRecord, comm_text},
    relay::{
        Ended, Path, Reason, Relay, Side,
        shortcut::{Lane, Obstacle, of_app},
    },
    rule::{Departure, Name, PathChoice},
    shared::{Counted, Door, Worker},
    socket::{self, Handle},
    upstream::{Dialer, Goal, Source, Space, Timings, UpstreamStream},
};

use self::by_name::Named;

/// Takes an accepted connection to its end.
pub(crate) async fn serve(
    worker: &Worker,
    counted: Counted,
    mut downstream: TcpStream,
    client: SocketAddr,
    door: Door,
) {
    let origin = match origin::find(worker, &mut downstream, client, door).await {
        Ok(origin) => origin,
        Err(why) => return reject(worker, downstream, client, &why),
    };
    let entry = worker.shared.live.enter(begun(&origin));
    let mut flow = Flow {
        worker,
        entry,
        origin,
        reached: Destination::default(),
        named: Named::default(),
        reason: None,
        timings: Timings::default(),
    };
    let (reason, error) = flow.run(downstream).await;
    // Whoever sees the record also sees the count.
    drop(counted);
    flow.finish(reason, error.as_deref());
}

/// A connection that has a route.
struct Flow<'a> {
    worker: &'a Worker,
    entry: Entry,
    origin: Origin,
    reached: Destination,
    named: Named,
    /// Why it is not on a better path.
    reason: Option<Reason>,
    timings: Timings,
}

/// Where a connection was brought to.
#[derive(Default)]
struct Destination {
    is_reached: bool,
    peer: Option<SocketAddr>,
    endpoint: Option<Arc<str>>,
    attempts: u32,
    is_announced: bool,
    unique_id: Option<UniqueId>,
    /// Counts it as long as it lives.
    permit: Option<Permit>,
}

impl Flow<'_> {
    /// Dials and relays. Whatever goes wrong, the app sees a reset and never an orderly end.
    async fn run(&mut self, downstream: TcpStream) -> (CloseReason, Option<String>) {
        let (route, end) = (&mut self.origin.route, self.entry.ended());
        if let Err(why) = self
            .named
            .choose(self.worker, route, &downstream, end)
            .await
        {
            socket::reset(downstream);
            return why;
        }
        if let Some(name) = &self.named.name {
            _ = self.entry.name.set(name.as_str().into());
        }
        let mut upstream = match self.dial(&downstream).await {
            Ok(upstream) => upstream,
            Err((reason, error)) => {
                socket::reset(downstream);
                return (reason, error);
            }
        };
        if let Err(error) = self.introduce(&mut upstream).await {
            socket::reset(downstream);
            return (CloseReason::UpstreamReset, Some(error.to_string()));
        }
        _ = self.entry.reached.set(Reached {
            upstream: Arc::clone(&self.origin.route.upstream.name),
            peer: self.reached.peer,
            endpoint: self.reached.endpoint.clone(),
            sockets: [
                Some(Handle::of(&downstream)),
                upstream.tcp().map(Handle::of),
            ],
        });
        if self.origin.is_untrusted
            // Boxed: few rules have trusted senders.
            && let Err(why) = Box::pin(self.refuse_claim(&downstream, &mut upstream)).await
        {
            socket::reset(downstream);
            upstream.reset();
            return why;
        }
        let mut relay = self.relay(&upstream);
        let path = self.origin.route.path;
        let (ended, sockets) = tokio::select! {
            // Which of them is asked first makes no difference, but drawing lots for it does, with every message.
            biased;
            relayed = relay_to_end(&mut relay, path, downstream, upstream) => relayed,
            reason = self.entry.ended() => (Ended { reason, first_error: None }, None),
        };
        relay.count();
        self.reason = self.entry.progress.reason();
        if let Some((downstream, upstream)) = sockets {
            if ended.must_reset() {
                socket::reset(downstream);
                upstream.reset();
            } else {
                tokio::select! {
                    () = relay.until_read() => {}
                    _ = self.entry.ended() => {}
                }
                socket::end_orderly(&downstream);
                upstream.end_orderly();
            }
        }
        (
            ended.reason,
            ended.first_error.map(|error| error.to_string()),
        )
    }

    /// Tells the service who the client is, if the rule says so and the group has not done it.
    async fn introduce(&self, upstream: &mut UpstreamStream) -> io::Result<()> {
        let Origin {
            route,
            client,
            orig_dst,
            ..
        } = &self.origin;
        match route.send_proxy.filter(|_| !self.reached.is_announced) {
            None => Ok(()),
            Some(version) => {
                let header = proxy_protocol::header(
                    version,
                    *client,
                    *orig_dst,
                    None,
                    self.named.authority(),
                );
                upstream.write_all(&header).await?;
                upstream.flush().await
            }
        }
    }

    /// What moves the bytes, with the shortcut open if the rule asks for it and may have it.
    fn relay(&self, upstream: &UpstreamStream) -> Relay {
        let mut relay = Relay::new(
            Arc::clone(&self.entry.progress),
            self.worker.shared.idle_timeout,
        )
        .with_paths(Arc::clone(&self.worker.shared.paths));
        let mut obstacle = None;
        match self.lane(upstream) {
            Ok(Some(mut lane)) => {
                if self.origin.route.path == PathChoice::ShortcutBothWays {
                    obstacle = self.open_replies(&mut lane, upstream).err();
                }
                relay.take_shortcut(lane);
            }
            Ok(None) => {}
            Err(why) => obstacle = Some(why),
        }
        if let Some(obstacle) = obstacle {
            self.entry.progress.hold_back(Reason::Shortcut(obstacle));
        }
        relay
    }

    /// Opens the shortcut, if the rule asks for it.
    fn lane(&self, upstream: &UpstreamStream) -> Result<Option<Lane>, Obstacle> {
        let proofs = self.worker.shared.proofs();
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
        let progress = Arc::clone(&self.entry.progress);
        Lane::open(Arc::clone(kernel), record.lane(), upstream, progress)
            .map(Some)
            .map_err(|error| {
                tracing::debug!(%error, "a connection cannot take the shortcut");
                Obstacle::Upstream
            })
    }

    /// Lets replies take the shortcut, too.
    fn open_replies(&self, lane: &mut Lane, upstream: &UpstreamStream) -> Result<(), Obstacle> {
        let proofs = self.worker.shared.proofs();
        let proven = proofs.is_some_and(|proofs| proofs.replies.is_ok());
        let upstream = upstream.plain().filter(|_| proven);
        lane.open_replies(upstream.ok_or(Obstacle::Replies)?)
            .map_err(|error| {
                tracing::debug!(%error, "replies of a connection are copied");
                Obstacle::Replies
            })
    }

    async fn dial(
        &mut self,
        downstream: &TcpStream,
    ) -> Result<UpstreamStream, (CloseReason, Option<String>)> {
        let open = self.entry.open();
        let dialled = tokio::select! {
            dialled = self.dial_upstream(downstream) => dialled,
            reason = open.ended() => return Err((reason, None)),
        };
        dialled.map_err(|(reason, text)| {
            // Who has opened it is gone.
            let is_usual = reason == CloseReason::NamespaceGone;
            if !is_usual && self.worker.may_warn(reason.label()) {
                tracing::warn!(
                    rule = &*self.origin.route.rule,
                    upstream = &*self.origin.route.upstream.name,
                    destination = %self.destination(),
                    "{text}"
                );
            }
            (reason, Some(text))
        })
    }

    async fn dial_upstream(
        &mut self,
        downstream: &TcpStream,
    ) -> Result<UpstreamStream, (CloseReason, String)> {
        // What an untrusted sender begins with may be held back.
        let speaks_first = self.origin.route.send_proxy.is_some()
            || !self.origin.is_untrusted && socket::unread(downstream).is_ok_and(|bytes| bytes > 0);
        if let Some(group) = self.origin.route.group.clone() {
            // Boxed: it holds more than the direct path, which most connections take.
            return Box::pin(self.dial_group(&group, speaks_first)).await;
        }
        let upstream = &self.origin.route.upstream;
        let dialer = &self.worker.dialer;
        let goal = Goal {
            address: self.destination(),
            speaks_first,
        };
        let dialled = if let Some(inside) = self.inside() {
            // Boxed: as below.
            Box::pin(async move { inside.dial(upstream, goal).await }).await
        } else if self.origin.route.keep_source {
            let source = Source {
                client: self.origin.client,
                met: self.origin.orig_dst,
            };
            // Boxed: it holds more than the other, which most connections take.
            Box::pin(dialer.dial_from(source, goal, upstream.connect_timeout)).await
        } else {
            dialer.dial(upstream, goal).await
        };
        let connected = dialled.map_err(|error| (error.close_reason(), error.with_causes()))?;
        self.timings = connected.timings;
        self.reached = Destination {
            is_reached: true,
            peer: connected.peer,
            ..Destination::default()
        };
        Ok(connected.stream)
    }

    /// A dialer in the network namespace of the app, where it is to be connected from there: the rule says so, or it leads to the app's
    /// own loopback addresses, which are others here.
    fn inside(&self) -> Option<Box<Dialer>> {
        let Origin { route, app, .. } = &self.origin;
        let cookie = app.as_ref()?.space?;
        let is_own = route.group.is_none()
            && route.upstream.entrance().is_none()
            && self.destination().ip().to_canonical().is_loopback();
        if route.from == Departure::Host && !is_own {
            return None;
        }
        let abroad = Arc::clone(self.worker.shared.abroad.get()?);
        let space = Space { cookie, abroad };
        Some(Box::new(self.worker.dialer.within(space)))
    }

    async fn dial_group(
        &mut self,
        group: &Arc<Group>,
        speaks_first: bool,
    ) -> Result<UpstreamStream, (CloseReason, String)> {
        let asked = Asked {
            client: self.origin.client,
            orig_dst: self.origin.orig_dst,
            authority: self.named.authority(),
            keep_source: self.origin.route.keep_source,
            speaks_first,
        };
        let inside = self.inside();
        let dialer = inside.as_deref().unwrap_or(&self.worker.dialer);
        match group.connect(dialer, &asked).await {
            Ok(reached) => {
                let endpoint = (Arc::clone(group.name()), reached.permit.id());
                // Only set here, and once.
                _ = self.entry.endpoint.set(endpoint);
                self.timings = reached.timings;
                self.reached = Destination {
                    is_reached: true,
                    peer: reached.peer,
                    endpoint: Some(reached.permit.address().to_string().into()),
                    attempts: reached.attempts,
                    is_announced: reached.is_announced,
                    unique_id: reached.unique_id,
                    permit: Some(reached.permit),
                };
                Ok(reached.stream)
            }
            Err(failure) => {
                self.reached = Destination {
                    endpoint: failure.endpoint.map(|endpoint| endpoint.to_string().into()),
                    attempts: failure.attempts,
                    ..Destination::default()
                };
                Err((failure.reason, failure.text))
            }
        }
    }

    fn destination(&self) -> SocketAddr {
        let origin = &self.origin;
        origin.route.destination.unwrap_or(origin.orig_dst)
    }

    /// Counts and records the end.
    fn finish(&mut self, reason: CloseReason, error: Option<&str>) {
        let closed_at = SystemTime::now();
        // Whoever sees the end of it may take its place.
        self.reached.permit = None;
        let progress = &self.entry.progress;
        self.worker.shared.stats.count_close(reason);
        self.worker.shared.stats.count_moved(progress);
        let Some(log) = &self.worker.shared.access_log else {
            return;
        };
        if !log.wants(reason) {
            return;
        }
        let origin = &self.origin;
        let app = origin.app.as_ref();
        let record = app.map(|app| &app.record);
        let process = app.and_then(|app| app.process.as_ref());
        let comm = record.map(|record| comm_text(&record.comm));
        log.write(&CloseRecord {
            closed_at,
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
            name: self.named.name.as_ref().map(Name::as_str),
            alpn: self.named.alpn.as_deref(),
            upstream: Some(&origin.route.upstream.name),
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
            intercept: origin.intercept,
            connect: self.timings.connect,
            handshake: self.timings.handshake,
            total: clock::monotonic().saturating_sub(origin.begun),
            reason,
            error,
        });
    }
}

/// What is known of a connection before anything is done with it.
fn begun(origin: &Origin) -> Begun {
    let caller = |app: &App| Caller {
        pid: app.record.pid,
        uid: app.record.uid,
        comm: app.record.comm,
        space: app.space,
    };
    Begun {
        role: origin.role,
        rule: Arc::clone(&origin.route.rule),
        client: origin.client,
        orig_dst: origin.orig_dst,
        at: origin.begun,
        process: origin.app.as_ref().map(caller),
    }
}

/// Relays until the end. Returns both sides unless they were lost; and so they are, by reset, when this is dropped.
async fn relay_to_end(
    relay: &mut Relay,
    path: PathChoice,
    mut downstream: TcpStream,
    mut upstream: UpstreamStream,
) -> (Ended, Option<(TcpStream, UpstreamStream)>) {
    match upstream {
        UpstreamStream::Tcp(upstream) => {
            let (ended, sockets) = relay.run_or_rest(downstream, upstream, path).await;
            let sides = |(downstream, upstream)| (downstream, UpstreamStream::Tcp(upstream));
            (ended, sockets.map(sides))
        }
        // The kernel cannot do its work.
        UpstreamStream::Tls(_) | UpstreamStream::Unix(_) => {
            let ended = relay.run(&mut downstream, &mut upstream, path).await;
            (ended, Some((downstream, upstream)))
        }
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
            Self::Tls(_) | Self::Unix(_) => None,
        }
    }
}
