//! One look at one endpoint: a connection as an app's would be made, and what is asked on it.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::{io::AsyncWriteExt, time::timeout};

use super::settings::{Address, Settings, Source};
use crate::{
    proxy_protocol,
    upstream::{Dialer, Host, Probe},
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

/// Checks an endpoint.
///
/// # Errors
/// What speaks against it, in words.
pub(super) async fn run(
    dialer: &Dialer,
    settings: &Settings,
    check: &Check,
    source: &Source,
    address: &Address,
) -> Result<(), Arc<str>> {
    let looked = timeout(
        check.timeout,
        look(dialer, settings, check, source, address),
    );
    match looked.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("check failed: {error}").into()),
        Err(_) => Err(format!("check failed: no answer within {:?}", check.timeout).into()),
    }
}

async fn look(
    dialer: &Dialer,
    settings: &Settings,
    check: &Check,
    source: &Source,
    address: &Address,
) -> Result<(), String> {
    let connected = match address {
        Address::Tcp(address) => dialer.connect(*address, check.timeout).await,
        Address::Unix(path) => dialer.connect_unix(path, check.timeout).await,
        // It is somewhere else each time.
        Address::Original => return Ok(()),
    };
    let mut stream = connected.map_err(|error| error.with_causes())?.stream;
    if let Some(version) = settings.send_proxy {
        let header = proxy_protocol::own_header(version);
        let sent = stream.write_all(&header).await;
        sent.map_err(|error| format!("cannot send the PROXY protocol header: {error}"))?;
    }
    let own = own_name(source, address);
    let probed = dialer.probe(stream, &own, &check.probe).await;
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
