//! From a group to a connection: an endpoint, and the next one where that fails.
//!
//! That is safe as long as no byte of the app's was sent, which here is never the case.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt, time::timeout};

use super::{
    Group,
    permit::{Permit, Refusal},
    settings::{Address, Settings, source_of},
};
use crate::{
    balance::{
        Method,
        hash::{hash, mix},
    },
    close::CloseReason,
    proxy_protocol::{self, UniqueId},
    rule::ProxyHeader,
    upstream::{Connected, DialError, Dialer, Goal, Source, Target, Timings, UpstreamStream},
};

/// Shorter attempts are none.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(10);

/// A connection that wants an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The address it comes from.
    pub client: SocketAddr,
    /// Where it was going.
    pub orig_dst: SocketAddr,
    /// The name that its client asked for in TLS, as far as it is known.
    pub authority: Option<&'a str>,
    /// Whether endpoints are to see where it comes from even if the group does not say so.
    pub keep_source: bool,
    /// Whether it has something to say already.
    pub speaks_first: bool,
}

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Reached {
    /// The connection; the next byte is the app's and the server's.
    pub stream: UpstreamStream,
    /// To be kept as long as it is.
    pub permit: Permit,
    /// What was connected to; none at a Unix socket.
    pub peer: Option<SocketAddr>,
    /// What took how long.
    pub timings: Timings,
    /// Endpoints that were tried, this one included.
    pub attempts: u32,
    /// Whether it was told who connects.
    pub is_announced: bool,
    /// What the endpoint was told that the connection is called.
    pub unique_id: Option<UniqueId>,
}

/// Why there is no connection to any endpoint.
#[derive(Debug)]
pub struct Failure {
    /// The reason in the close record.
    pub reason: CloseReason,
    /// What happened last.
    pub text: String,
    /// Endpoints that were tried.
    pub attempts: u32,
    /// The last of them.
    pub endpoint: Option<Address>,
}

impl Group {
    /// Brings a connection to an endpoint.
    ///
    /// An attempt gets half the time that is left as long as there are other endpoints, so that one which swallows packets does
    /// not use up all of it. Time in the queue does not count. Dropping the future closes whatever it opened.
    ///
    /// # Errors
    /// When no endpoint could be reached in time, or none is free for it.
    pub async fn connect(
        self: &Arc<Self>,
        dialer: &Dialer,
        asked: &Asked<'_>,
    ) -> Result<Reached, Failure> {
        let settings = Arc::clone(self.lock().settings());
        let (client, key) = (source_of(asked.client), key(settings.method, asked));
        let mut left = settings.connect_timeout;
        let mut tried = Vec::new();
        let mut permit = match self.admit(client, key).await {
            Ok(permit) => permit,
            Err(refusal) => return Err(refused(&refusal, 0)),
        };
        loop {
            let attempts = u32::try_from(tried.len()).unwrap_or(u32::MAX);
            let limit = if permit.has_others() { left / 2 } else { left };
            if attempts > 0 {
                self.tally.retries.fetch_add(1, Relaxed);
            }
            let begun = Instant::now();
            let attempt = attempt(dialer, &settings, asked, permit.address(), limit);
            let (error, reason, fits) = match attempt.await {
                Ok((connected, unique_id)) => {
                    permit.reached(connected.timings.connect);
                    return Ok(Reached {
                        stream: connected.stream,
                        permit,
                        peer: connected.peer,
                        timings: connected.timings,
                        attempts: attempts + 1,
                        is_announced: settings.send_proxy.is_some(),
                        unique_id,
                    });
                }
                Err(error) => (
                    error.with_causes(),
                    error.close_reason(),
                    !error.is_of_source(),
                ),
            };
            let took = begun.elapsed();
            left = left.saturating_sub(took);
            let failure = Failure {
                reason,
                text: error,
                attempts: attempts + 1,
                endpoint: Some(permit.address().clone()),
            };
            // That says nothing of the endpoint, and the next attempt would fare no better.
            if [CloseReason::OutOfResources, CloseReason::NamespaceGone].contains(&reason) {
                return Err(failure);
            }
            // What cannot be shown one client says nothing of the endpoint either; another may be of the client's family.
            if fits {
                permit.failed(&failure.text, took);
            }
            tried.push(permit.id());
            if left < SHORTEST_ATTEMPT {
                return Err(failure);
            }
            // What went wrong says more than why there is no other one.
            permit = permit.exchange(key, &tried).await.map_err(|_| failure)?;
        }
    }
}

/// Connects to one endpoint and says what it wants to hear first.
async fn attempt(
    dialer: &Dialer,
    settings: &Settings,
    asked: &Asked<'_>,
    address: &Address,
    limit: Duration,
) -> Result<(Connected, Option<UniqueId>), DialError> {
    let begun = Instant::now();
    let source = (settings.keep_source || asked.keep_source).then_some(Source {
        client: asked.client,
        met: asked.orig_dst,
    });
    let goal = |address| Goal {
        address,
        speaks_first: asked.speaks_first || settings.send_proxy.is_some(),
    };
    let mut connected = match address {
        Address::Tcp(address) => reach(dialer, goal(*address), limit, source).await?,
        Address::Original => reach(dialer, goal(asked.orig_dst), limit, source).await?,
        Address::Unix(path) => dialer.connect_unix(path, limit).await?,
    };
    let Some(version) = settings.send_proxy else {
        return Ok((connected, None));
    };
    // The text of version 1 has no room for one.
    let unique_id = (version == ProxyHeader::V2).then(UniqueId::new);
    let id = unique_id.as_ref();
    let (client, orig_dst, name) = (asked.client, asked.orig_dst, asked.authority);
    let header = proxy_protocol::header(version, client, orig_dst, id, name);
    let rest = limit.saturating_sub(begun.elapsed());
    match timeout(rest, connected.stream.write_all(&header)).await {
        Ok(Ok(())) => Ok((connected, unique_id)),
        Ok(Err(source)) => Err(DialError::Announce {
            target: Target::Endpoint(address.to_string()),
            source,
        }),
        Err(_) => Err(DialError::ConnectTimeout {
            target: Target::Endpoint(address.to_string()),
            limit,
        }),
    }
}

/// Connects to an address, from that of the client where it is to be seen.
async fn reach(
    dialer: &Dialer,
    goal: Goal,
    limit: Duration,
    source: Option<Source>,
) -> Result<Connected, DialError> {
    match source {
        None => dialer.connect(goal, limit).await,
        Some(source) => dialer.connect_from(source, goal, limit).await,
    }
}

/// What a choice by hash depends on.
fn key(method: Method, asked: &Asked<'_>) -> u64 {
    let of = |address: SocketAddr| {
        let ip = match address.ip().to_canonical() {
            std::net::IpAddr::V4(ip) => hash(&ip.octets()),
            std::net::IpAddr::V6(ip) => hash(&ip.octets()),
        };
        (ip, u64::from(address.port()))
    };
    let ((client, port), (orig_dst, orig_port)) = (of(asked.client), of(asked.orig_dst));
    match method {
        Method::SourceHash => client,
        _ => mix(client ^ mix(orig_dst ^ (port << 16 | orig_port))),
    }
}

fn refused(refusal: &Refusal, attempts: u32) -> Failure {
    Failure {
        reason: match refusal {
            Refusal::SourceLimit(_) => CloseReason::SourceLimit,
            Refusal::QueueFull(_) => CloseReason::QueueFull,
            Refusal::QueueTimeout(_) => CloseReason::QueueTimeout,
            Refusal::Exhausted => CloseReason::NoEndpoint,
        },
        text: refusal.to_string(),
        attempts,
        endpoint: None,
    }
}
