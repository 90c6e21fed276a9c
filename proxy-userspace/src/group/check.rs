//! One look at one endpoint: a connection as an app's would be made, and what is asked on it.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::{io::AsyncWriteExt, time::timeout};

use super::settings::{Address, Settings, Source};
use crate::{
    close::CloseReason,
    proxy_protocol,
    upstream::{Dialer, Host, Probe, UpstreamStream},
};

/// How endpoints are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Time between two.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// What is asked.
    pub probe: Probe,
}

/// Checks an endpoint: what speaks against it, in words, if anything does. `None` where we lack what it takes to look, such as
/// files, which says nothing of the endpoint.
pub(super) async fn run(
    dialer: &Dialer,
    settings: &Settings,
    check: &Check,
    source: &Source,
    address: &Address,
) -> Option<Result<(), Arc<str>>> {
    let looked = timeout(
        check.timeout,
        look(dialer, settings, check, source, address),
    );
    let outcome = match looked.await {
        Ok(outcome) => outcome?,
        Err(_) => Err(format!("no answer within {:?}", check.timeout)),
    };
    Some(outcome.map_err(|error| format!("check failed: {error}").into()))
}

async fn look(
    dialer: &Dialer,
    settings: &Settings,
    check: &Check,
    source: &Source,
    address: &Address,
) -> Option<Result<(), String>> {
    let connected = match address {
        Address::Tcp(address) => dialer.connect(*address, check.timeout).await,
        Address::Unix(path) => dialer.connect_unix(path, check.timeout).await,
        // It is somewhere else each time.
        Address::Original => return Some(Ok(())),
    };
    match connected {
        Ok(connected) => {
            let own = own_name(source, address);
            Some(ask(dialer, settings, check, &own, connected.stream).await)
        }
        Err(error) if error.close_reason() == CloseReason::OutOfResources => {
            tracing::debug!(%source, error = error.with_causes(), "cannot check an endpoint");
            None
        }
        Err(error) => Some(Err(error.with_causes())),
    }
}

async fn ask(
    dialer: &Dialer,
    settings: &Settings,
    check: &Check,
    own: &Host,
    mut stream: UpstreamStream,
) -> Result<(), String> {
    if let Some(version) = settings.send_proxy {
        let header = proxy_protocol::own_header(version);
        let sent = stream.write_all(&header).await;
        sent.map_err(|error| format!("cannot send the PROXY protocol header: {error}"))?;
    }
    let probed = dialer.probe(stream, own, &check.probe).await;
    probed.map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}

/// What an endpoint is called by those who connect to it.
fn own_name(source: &Source, address: &Address) -> Host {
    match (source, address) {
        (Source::Name { name, .. }, _) => Host::Name(name.to_string()),
        (_, Address::Tcp(address)) => Host::Ip(address.ip()),
        (_, Address::Unix(_) | Address::Original) => Host::Ip(Ipv4Addr::LOCALHOST.into()),
    }
}
