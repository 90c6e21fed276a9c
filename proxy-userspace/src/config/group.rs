//! The `[upstream.NAME]` sections with `endpoints`: groups.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    balance::Method,
    group::{Address, Limits, Member, Settings, Source},
    rule::ProxyHeader,
};

use super::{
    credentials::Sources,
    duration, health,
    mask::quoted,
    proxy_url,
    raw::{Table, Value, closest},
    report::{Finding, Findings},
    selector,
};

/// Most entries of one group.
const MOST_ENDPOINTS: usize = 4096;
/// Largest weight.
const MOST_WEIGHT: u32 = 1000;
/// Largest limit.
const MOST_CONNECTIONS: u32 = 1 << 20;
const EXAMPLE: &str = "10.0.0.5:8080";
const FORMS: &str = "an endpoint is `ADDRESS:PORT`, `dns:NAME:PORT`, `srv:NAME`, `unix:/PATH` or `original`, and may have a weight \
                     behind it: `\"10.0.0.5:8080 weight=2\"`";

/// Reads the keys of a group; nothing where there is a finding about one.
pub(super) fn read(
    endpoints: Value<'_>,
    table: &mut Table<'_>,
    connect_timeout: Option<Duration>,
    sources: &Sources<'_>,
    findings: &mut Findings,
) -> Option<Settings> {
    let members = members(endpoints, findings);
    let method = match table.get("balance") {
        None => Some(Method::default()),
        Some(value) => value.choice(&Method::ALL, findings),
    };
    let slow_start = table.get("slow_start");
    let health = health::read(table, slow_start, sources, findings);
    let limits = limits(table, findings);
    let send_proxy = match table.get("send_proxy") {
        None => Some(None),
        Some(value) => value.choice(&ProxyHeader::ALL, findings).map(Some),
    };
    let keep_source = keep_source(table, members.as_deref(), findings);
    if let (Some(method), Some(value)) = (method, slow_start)
        && method.hashes()
    {
        findings.push(
            Finding::warning("`slow_start` has no effect here")
                .at(&value.span())
                .label("a hash cannot lead to a part of an endpoint's share"),
        );
    }
    Some(Settings {
        members: members?,
        method: method?,
        check: health.as_ref()?.1.clone(),
        health: health?.0,
        limits: limits?,
        send_proxy: send_proxy?,
        keep_source: keep_source?,
        connect_timeout: connect_timeout?,
    })
}

/// Whether endpoints are to see the addresses of clients, which all of them have to be able to.
fn keep_source(
    table: &mut Table<'_>,
    members: Option<&[Member]>,
    findings: &mut Findings,
) -> Option<bool> {
    let Some(value) = table.get("keep_source") else {
        return Some(false);
    };
    let keeps = value.boolean(findings)?;
    let unix = members
        .into_iter()
        .flatten()
        .find(|member| matches!(member.source, Source::Address(Address::Unix(_))));
    if let (true, Some(unix)) = (keeps, unix) {
        findings.push(
            Finding::error("`keep_source` cannot be had here")
                .at(&value.span())
                .label(format!("{}: a Unix socket knows no addresses", unix.source))
                .help("`send_proxy` tells endpoints of all kinds who connects"),
        );
        return None;
    }
    Some(keeps)
}

/// How many connections there may be.
fn limits(table: &mut Table<'_>, findings: &mut Findings) -> Option<Limits> {
    let mut limits = Limits::default();
    let Some(value) = table.get("limits") else {
        return Some(limits);
    };
    let mut table = value.table("`limits`", "a table such as `{ endpoint = 100 }`", findings)?;
    let mut good = true;
    for (key, limit) in [
        ("total", &mut limits.total),
        ("endpoint", &mut limits.endpoint),
        ("source", &mut limits.source),
    ] {
        if let Some(value) = table.get(key) {
            *limit = value.number(1..=MOST_CONNECTIONS, findings);
            good &= limit.is_some();
        }
    }
    if let Some(value) = table.get("queue") {
        match value.number(0..=MOST_CONNECTIONS, findings) {
            Some(queue) => limits.queue = queue,
            None => good = false,
        }
    }
    if let Some(value) = table.get("queue_timeout") {
        match duration::read(value, duration::ANY, findings) {
            Some(timeout) => limits.queue_timeout = timeout,
            None => good = false,
        }
    }
    table.finish(findings);
    good.then_some(limits)
}

fn members(list: Value<'_>, findings: &mut Findings) -> Option<Vec<Member>> {
    let values = list.one_or_many(findings);
    if let Some(first_beyond) = values.get(MOST_ENDPOINTS) {
        findings.push(
            Finding::error(format!("the group has {} endpoints", values.len()))
                .at(&first_beyond.span())
                .label(format!("at most {MOST_ENDPOINTS}: this one is too many")),
        );
        return None;
    }
    let mut members: Vec<(Member, Value<'_>)> = Vec::new();
    let mut all_are_good = !values.is_empty();
    for value in values {
        let member = value
            .text(EXAMPLE, findings)
            .and_then(|text| findings.keep(parse(text), &value.span()));
        let Some(member) = member else {
            all_are_good = false;
            continue;
        };
        let twin = members
            .iter()
            .find(|(other, _)| other.source == member.source);
        if let Some((_, first)) = twin {
            findings.push(
                Finding::error(format!("the endpoint {} is listed twice", member.source))
                    .at(&value.span())
                    .also(&first.span(), "first listed here")
                    .label("give it a weight instead: `weight=2`"),
            );
            all_are_good = false;
        }
        members.push((member, value));
    }
    all_are_good.then(|| members.into_iter().map(|(member, _)| member).collect())
}

/// What an endpoint is called that is written as in the file; `None` for what is none.
#[must_use]
pub fn endpoint(text: &str) -> Option<String> {
    source(text).ok().map(|source| source.to_string())
}

/// An endpoint and its weight.
fn parse(text: &str) -> Result<Member, Finding> {
    let mut words = text.split_whitespace();
    let source = source(words.next().unwrap_or_default())?;
    let mut weight = 1;
    for word in words {
        let Some(number) = word.strip_prefix("weight=") else {
            let finding = Finding::error(format!("{} means nothing here", quoted(word)));
            let finding = match closest(word.split('=').next().unwrap_or(word), ["weight"]) {
                Some(_) => finding.label("did you mean `weight=2`?"),
                None => finding.label("expected `weight=2` behind the endpoint, or nothing"),
            };
            return Err(finding.help(FORMS));
        };
        weight = number
            .parse()
            .ok()
            .filter(|weight| (0..=MOST_WEIGHT).contains(weight))
            .ok_or_else(|| {
                Finding::error(format!("{} is no weight", quoted(number)))
                    .label(format!("a weight is from 0 to {MOST_WEIGHT}"))
            })?;
    }
    Ok(Member { source, weight })
}

fn source(text: &str) -> Result<Source, Finding> {
    if text == "original" {
        return Ok(Source::Address(Address::Original));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        let path: PathBuf = selector::absolute_path(path)?;
        return Ok(Source::Address(Address::Unix(path)));
    }
    if let Some(name) = text.strip_prefix("srv:") {
        return Ok(Source::Service(host_name(name)?));
    }
    if let Some(rest) = text.strip_prefix("dns:") {
        let Some((name, port)) = rest.rsplit_once(':') else {
            return Err(no_port(text));
        };
        return Ok(Source::Name {
            name: host_name(name)?,
            port: self::port(port)?,
        });
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => Err(port_error("0")),
        Ok(address) => {
            let ip = address.ip().to_canonical();
            let address = SocketAddr::new(ip, address.port());
            Ok(Source::Address(Address::Tcp(address)))
        }
        Err(_) => Err(unknown(text)),
    }
}

fn unknown(text: &str) -> Finding {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return no_port(text);
    }
    let finding = Finding::error(format!("{} is no endpoint", quoted(text)));
    let finding = match text.rsplit_once(':') {
        _ if text.contains("://") => finding.label("expected an address, not a URL"),
        Some((name, port)) if proxy_url::host_name(name).is_ok() && port.parse::<u16>().is_ok() => {
            finding.label(format!("a name needs `dns:` before it: `dns:{text}`"))
        }
        _ => finding.label(format!("expected an address such as `{EXAMPLE}`")),
    };
    finding.help(FORMS)
}

fn no_port(text: &str) -> Finding {
    Finding::error(format!("the endpoint {} has no port", quoted(text)))
        .label(format!("expected `{}`", with_port(text)))
}

fn with_port(text: &str) -> String {
    if text.contains(':') && !text.starts_with("dns:") && !text.starts_with('[') {
        format!("[{text}]:8080")
    } else {
        format!("{text}:8080")
    }
}

fn port(text: &str) -> Result<u16, Finding> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| port_error(text))
}

fn port_error(text: &str) -> Finding {
    Finding::error(format!("{} is no port", quoted(text))).label("a port is from 1 to 65535")
}

fn host_name(text: &str) -> Result<Arc<str>, Finding> {
    proxy_url::host_name(text).map(Arc::from).map_err(|why| {
        Finding::error(format!("{} is no host name: {why}", quoted(text)))
            .label("expected a name such as `web.internal`")
    })
}
