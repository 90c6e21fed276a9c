//! Where a connection goes by the name that its client asks for, if its rule has names.

use tokio::net::TcpStream;

use crate::{
    close::CloseReason,
    peek::{self, Flight, Seen},
    routes::Route,
    rule::{Kind, Name},
    shared::Worker,
};

/// What a client asked for by name.
#[derive(Default)]
pub(super) struct Named {
    kind: Option<Kind>,
    pub(super) name: Option<Name>,
    /// The protocols that it offers.
    pub(super) alpn: Option<String>,
}

/// So many protocols are recorded: a client can offer thousands.
const PROTOCOLS_RECORDED: usize = 8;

impl Named {
    fn of(flight: Flight) -> Self {
        let offered = flight.alpn().take(PROTOCOLS_RECORDED);
        let offered: Vec<_> = offered
            .map(|name| name.escape_ascii().to_string())
            .collect();
        Self {
            kind: flight.kind,
            name: flight.name,
            alpn: (!offered.is_empty()).then(|| offered.join(",")),
        }
    }

    /// What a PROXY header calls by this name.
    pub(super) fn authority(&self) -> Option<&str> {
        let name = self.name.as_ref().filter(|_| self.kind == Some(Kind::Sni));
        name.map(Name::as_str)
    }

    /// Looks for the name, if the rule asks for any, and has the route lead where that leads; unless it is to end before.
    ///
    /// # Errors
    /// Why the connection is to be reset.
    pub(super) async fn choose(
        &mut self,
        worker: &Worker,
        route: &mut Route,
        downstream: &TcpStream,
        end: impl Future<Output = CloseReason>,
    ) -> Result<(), (CloseReason, Option<String>)> {
        let Some(names) = &route.names else {
            return Ok(());
        };
        let seen = tokio::select! {
            seen = peek::first_flight(downstream, names.limits) => seen,
            why = end => return Err((why, None)),
        };
        let seen = seen.map_err(|error| (CloseReason::DownstreamReset, Some(error.to_string())))?;
        worker.shared.stats.count_peeked(seen.counted());
        let target = names.target(&seen).cloned();
        let why = match seen {
            Seen::Whole(flight) => {
                *self = Self::of(flight);
                None
            }
            Seen::Late => Some("no name came in time".to_owned()),
            Seen::Malformed(why) => Some(format!("what the client says first is malformed: {why}")),
        };
        let target = target.ok_or((CloseReason::NameRefused, why))?;
        route.upstream = target.upstream;
        route.group = target.group;
        route.destination = target.destination;
        Ok(())
    }
}
