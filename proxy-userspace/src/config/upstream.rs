//! The `[upstream.NAME]` sections: chains of proxies, and the part that groups have in common with them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{
    group::Settings as Group,
    upstream::{Hop, Scheme, Upstream},
};

use super::{
    credentials::{self, CredentialKeys, Sources},
    daemon::{Daemon, TIMEOUT},
    duration, group,
    mask::{clean, quoted},
    proxy_url::{self, Address, ProxyUrl},
    raw::{LONGEST_NAME, Table, Value},
    report::{Finding, Findings, Span},
    selector,
};

/// Names with a meaning of their own in `via`.
pub(super) const RESERVED: [&str; 3] = ["direct", "refuse", "original"];
/// Longest chain: every hop costs a round trip before the first byte, so more is a slip.
const MOST_HOPS: usize = 8;
const EXAMPLE: &str = "socks5://10.0.0.5:1080";

/// Reads one section; nothing where there is a finding about it.
pub(super) fn read(
    name: &str,
    name_span: &Span,
    value: Value<'_>,
    daemon: &Daemon,
    sources: &mut Sources<'_>,
    findings: &mut Findings,
) -> Option<(Upstream, Option<Group>)> {
    let named = findings.keep(valid_name(name, "an upstream"), name_span);
    if RESERVED.contains(&name) {
        findings.push(
            Finding::error(format!("no upstream can be named `{name}`"))
                .at(name_span)
                .label(format!("`via = \"{name}\"` needs no upstream")),
        );
    }
    let place = format!("`[upstream.{}]`", clean(name));
    let wanted = format!("the section {place} with its `url` or `endpoints`");
    let mut table = value.table(place, &wanted, findings)?;
    let connect_timeout = timeout(
        &mut table,
        "connect_timeout",
        daemon.connect_timeout,
        findings,
    );
    if let Some(endpoints) = table.get("endpoints") {
        let group = group::read(endpoints, &mut table, connect_timeout, sources, findings);
        exclude_url(&mut table, &endpoints, findings);
        table.finish(findings);
        let upstream = Upstream {
            name: named.map(Arc::from)?,
            hops: Vec::new(),
            connect_timeout: connect_timeout?,
            handshake_timeout: daemon.handshake_timeout,
        };
        return Some((upstream, Some(group?)));
    }
    let missing = format!("url = \"{EXAMPLE}\"` or `endpoints = [\"10.0.0.5:8080\"]");
    let url = table.require("url", &missing, findings);
    let beside = HopKeys::take(&mut table);
    let hops = url.and_then(|url| hops(url, &beside, sources, findings));
    let handshake_timeout = timeout(
        &mut table,
        "handshake_timeout",
        daemon.handshake_timeout,
        findings,
    );
    table.finish(findings);
    let upstream = Upstream {
        name: named.map(Arc::from)?,
        hops: hops?,
        connect_timeout: connect_timeout?,
        handshake_timeout: handshake_timeout?,
    };
    Some((upstream, None))
}

fn timeout(
    table: &mut Table<'_>,
    key: &'static str,
    default: Duration,
    findings: &mut Findings,
) -> Option<Duration> {
    match table.get(key) {
        None => Some(default),
        Some(value) => duration::read(value, duration::ANY, findings),
    }
}

/// An upstream is either a chain or a group.
fn exclude_url(table: &mut Table<'_>, endpoints: &Value<'_>, findings: &mut Findings) {
    if let Some(url) = table.get("url") {
        findings.push(
            Finding::error("an upstream has either `url` or `endpoints`")
                .at(&url.span())
                .also(&endpoints.span(), "this makes it a group")
                .label("leave it out: endpoints are connected to directly"),
        );
    }
}

/// A name that is safe in logs, labels and tables. `bearer` is what it names, such as "a rule".
pub(super) fn valid_name<'n>(name: &'n str, bearer: &str) -> Result<&'n str, Finding> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(name);
    }
    Err(
        Finding::error(format!("{} is no name for {bearer}", quoted(name))).label(format!(
            "expected 1 to {LONGEST_NAME} letters, digits, `-`, `_` or `.`"
        )),
    )
}

/// The keys that belong to one hop, beside its `url`.
#[derive(Default)]
struct HopKeys<'a> {
    credentials: CredentialKeys<'a>,
    ca_file: Option<Value<'a>>,
}

impl<'a> HopKeys<'a> {
    fn take(table: &mut Table<'a>) -> Self {
        Self {
            credentials: CredentialKeys::take(table),
            ca_file: table.get("ca_file"),
        }
    }

    fn given(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        self.credentials.given().chain(self.ca_file)
    }
}

fn hops(
    url: Value<'_>,
    beside: &HopKeys<'_>,
    sources: &mut Sources<'_>,
    findings: &mut Findings,
) -> Option<Vec<Hop>> {
    let elements = url.one_or_many(findings);
    match elements.as_slice() {
        [] => None,
        [only] => hop(*only, beside, true, sources, findings),
        chain if chain.len() > MOST_HOPS => {
            findings.push(
                Finding::error(format!("the chain has {} proxies", chain.len()))
                    .at(&url.span())
                    .label(format!("at most {MOST_HOPS}")),
            );
            None
        }
        chain => {
            for value in beside.given() {
                let key = value.key();
                findings.push(
                    Finding::error(format!(
                        "it is not clear which proxy of the chain `{key}` is for"
                    ))
                    .at(&value.span())
                    .label("not beside a chain")
                    .help(format!(
                        "put it into the chain: `{{ url = \"{EXAMPLE}\", {key} = ... }}`"
                    )),
                );
            }
            let hops: Vec<Option<Vec<Hop>>> = chain
                .iter()
                .map(|element| hop(*element, &HopKeys::default(), false, sources, findings))
                .collect();
            Some(hops.into_iter().collect::<Option<Vec<_>>>()?.concat())
        }
    }
}

/// Reads an element of a chain: a URL, or a table with a URL and its keys. No hop for `direct://`.
fn hop(
    element: Value<'_>,
    beside: &HopKeys<'_>,
    alone: bool,
    sources: &mut Sources<'_>,
    findings: &mut Findings,
) -> Option<Vec<Hop>> {
    if element.as_str().is_some() {
        return proxy(element, beside, alone, sources, findings);
    }
    let wanted = format!("a URL such as `\"{EXAMPLE}\"`, or a table with `url`");
    let mut table = element.table("this proxy", &wanted, findings)?;
    let url = table.require("url", &format!("url = \"{EXAMPLE}\""), findings);
    let mut keys = HopKeys::take(&mut table);
    table.finish(findings);
    // With a single element, its keys may be on either side, but not on both.
    for value in beside.given() {
        let key = value.key();
        findings.push(
            Finding::error(format!("`{key}` stands outside the table of its proxy"))
                .at(&value.span())
                .also(&element.span(), "the table of the proxy")
                .label("move it into the table"),
        );
        keys = HopKeys::default();
    }
    proxy(url?, &keys, alone, sources, findings)
}

fn proxy(
    url: Value<'_>,
    keys: &HopKeys<'_>,
    alone: bool,
    sources: &mut Sources<'_>,
    findings: &mut Findings,
) -> Option<Vec<Hop>> {
    let text = url.text(EXAMPLE, findings)?;
    match findings.keep(proxy_url::parse(text), &url.span())? {
        ProxyUrl::Direct if !alone => {
            findings.push(
                Finding::error("`direct://` cannot be part of a chain")
                    .at(&url.span())
                    .label("leave it out"),
            );
            None
        }
        ProxyUrl::Direct => {
            for value in keys.given() {
                let key = value.key();
                findings.push(
                    Finding::error(format!("`direct://` has no use for `{key}`"))
                        .at(&value.span())
                        .label("leave it out"),
                );
            }
            Some(Vec::new())
        }
        ProxyUrl::Proxy(address) => {
            let credentials =
                sources.credentials(&address, &url.span(), &keys.credentials, findings);
            let Address {
                scheme, host, port, ..
            } = address;
            let ca_file = match keys.ca_file {
                None => None,
                Some(value) => Some(ca_file(value, scheme, sources, findings)?),
            };
            Some(vec![Hop {
                scheme,
                host,
                port,
                credentials,
                ca_file,
            }])
        }
    }
}

fn ca_file(
    value: Value<'_>,
    scheme: Scheme,
    sources: &Sources<'_>,
    findings: &mut Findings,
) -> Option<PathBuf> {
    if scheme != Scheme::Https {
        findings.push(
            Finding::error("`ca_file` is for `https://` only")
                .at(&value.span())
                .label("this proxy is not spoken to over TLS"),
        );
        return None;
    }
    trusted(value, sources, findings)
}

/// A file of certificates.
pub(super) fn trusted(
    value: Value<'_>,
    sources: &Sources<'_>,
    findings: &mut Findings,
) -> Option<PathBuf> {
    let text = value.text("/etc/culvert/ca.pem", findings)?;
    let path = findings.keep(selector::absolute_path(text), &value.span())?;
    let readable = certificates(&path, sources);
    findings.keep(readable, &value.span())?;
    Some(path)
}

/// Whether a file holds certificates: found out now rather than at the first connection.
fn certificates(path: &Path, sources: &Sources<'_>) -> Result<(), Finding> {
    let shown = quoted(&path.to_string_lossy());
    let content = sources.environment.read(path).map_err(|source| {
        Finding::error(format!("cannot read {shown}: {source}"))
            .label("expected a file of certificates in PEM")
    })?;
    let mut found = CertificateDer::pem_slice_iter(&content.bytes);
    match found.next() {
        Some(Ok(_)) => Ok(()),
        _ => Err(Finding::error(format!("{shown} holds no certificate"))
            .label("expected PEM: `-----BEGIN CERTIFICATE-----`")),
    }
}

/// Builds an upstream from URLs, nearest proxy first, with the daemon's default timeouts.
pub(super) fn from_urls(name: &str, urls: &[String]) -> Result<Upstream, (usize, Finding)> {
    let mut hops = Vec::new();
    for (at, url) in urls.iter().enumerate() {
        let hop = proxy_url::parse(url).and_then(|parsed| bare_hop(parsed, urls.len() == 1));
        hops.extend(hop.map_err(|finding| (at, finding))?);
    }
    if urls.len() > MOST_HOPS {
        let finding = Finding::error(format!("the chain has more than {MOST_HOPS} proxies"));
        return Err((MOST_HOPS, finding));
    }
    let timeout = TIMEOUT;
    Ok(Upstream {
        name: Arc::from(name),
        hops,
        connect_timeout: timeout,
        handshake_timeout: timeout,
    })
}

fn bare_hop(parsed: ProxyUrl, alone: bool) -> Result<Option<Hop>, Finding> {
    match parsed {
        ProxyUrl::Direct if alone => Ok(None),
        ProxyUrl::Direct => Err(Finding::error("`direct://` cannot be part of a chain")),
        ProxyUrl::Proxy(address) => Ok(Some(Hop {
            credentials: credentials::of_url(&address)?,
            scheme: address.scheme,
            host: address.host,
            port: address.port,
            ca_file: None,
        })),
    }
}
