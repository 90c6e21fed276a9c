//! Clients whose rule trusts others to say who they are, and not them.

use std::future::pending;

use tokio::{net::TcpStream, time::sleep};

use super::Flow;
use crate::{close::CloseReason, proxy_protocol, upstream::UpstreamStream};

impl Flow<'_> {
    /// Waits until either side has said something, and makes sure that it was no PROXY header. A service that believes headers
    /// waits for one, so one that speaks first does not: nobody waits for the client then.
    ///
    /// # Errors
    /// Why the connection is to be reset.
    pub(super) async fn refuse_claim(
        &self,
        downstream: &TcpStream,
        upstream: &mut UpstreamStream,
    ) -> Result<(), (CloseReason, Option<String>)> {
        let idle = async {
            match self.worker.shared.idle_timeout {
                Some(timeout) => sleep(timeout).await,
                None => pending().await,
            }
        };
        let claimed = tokio::select! {
            // The server may answer what the client has said.
            biased;
            claimed = proxy_protocol::is_claimed(downstream) => claimed,
            () = upstream.answered() => Ok(false),
            reason = self.entry.ended() => return Err((reason, None)),
            () = idle => return Err((CloseReason::IdleTimeout, None)),
        };
        match claimed {
            Ok(false) => Ok(()),
            Ok(true) => {
                let reason = CloseReason::UntrustedHeader;
                if self.worker.may_warn(reason.label()) {
                    let (rule, client) = (&*self.origin.route.rule, self.origin.client);
                    tracing::warn!(
                        rule,
                        %client,
                        "it begins with a PROXY header and is not among those that may (`accept_proxy`): reset"
                    );
                }
                Err((reason, None))
            }
            Err(error) => Err((CloseReason::DownstreamReset, Some(error.to_string()))),
        }
    }
}
