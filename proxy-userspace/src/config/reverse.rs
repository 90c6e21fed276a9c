//! The `[[reverse]]` sections: one rule each.

use std::{net::SocketAddr, sync::Arc};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    policy::{self, Names},
    rule::{FailMode, Listen, PathChoice, ProxyHeader, Reverse, ReverseVia, Roles, Selector},
};

use super::{
    daemon::Daemon,
    duration,
    mask::quoted,
    names,
    raw::{Table, Value, closest},
    report::{Finding, Findings, Span},
    rule::{
        allowance, check_names, fail_mode, is_affordable, name, of_relay, sections,
        warn_unless_relayed, warn_unusable,
    },
    selector,
    upstream::RESERVED,
};

/// What they are called together.
const RULES: &str = "reverse rules";
/// Most values of `listen` of all rules together: what the kernel's tables are made for.
const MOST_LISTENS: usize = 100_000;
/// Most sources of all rules together.
const MOST_SOURCES: usize = 100_000;
/// Most names of all rules together.
const MOST_NAMES: usize = 100_000;
/// The kernel's own bound of the name of an interface, in bytes (`IFNAMSIZ`, less the zero at its end).
const LONGEST_INTERFACE: usize = 15;
const EXAMPLE: &str = "192.0.2.10:443";

/// A rule and where its parts stand.
pub(super) struct PlacedReverse {
    pub(super) rule: Reverse,
    /// The value of `name`.
    pub(super) name: Span,
    /// The value of `keep_source`, or the name where there is none.
    pub(super) keep_source: Span,
}

/// Reads all rules. Those with errors are left out.
pub(super) fn read(
    value: Value<'_>,
    upstreams: &[&str],
    daemon: &Daemon,
    findings: &mut Findings,
) -> Vec<PlacedReverse> {
    let sections = sections(value, RULES, "`listen`", findings);
    let rules: Vec<_> = sections
        .filter_map(|value| rule(value, upstreams, daemon, findings))
        .collect();
    check_names(
        rules
            .iter()
            .map(|placed| (&*placed.rule.name, &placed.name)),
        findings,
    );
    let mut may_have = |most, what: &str, count: fn(&Reverse) -> usize| {
        let counts = rules
            .iter()
            .map(|placed| (count(&placed.rule), &placed.name));
        is_affordable(RULES, counts, most, what, findings)
    };
    let affordable = may_have(MOST_LISTENS, "values in `listen`", |rule| rule.listen.len())
        & may_have(MOST_SOURCES, "values in `source`", |rule| {
            rule.source.count()
        })
        & may_have(MOST_NAMES, "names", names_of);
    if affordable {
        check_tables(&rules, findings);
    }
    rules
}

fn rule(
    value: Value<'_>,
    upstreams: &[&str],
    daemon: &Daemon,
    findings: &mut Findings,
) -> Option<PlacedReverse> {
    let mut table = value.table("`[[reverse]]`", "the section `[[reverse]]`", findings)?;
    let name = name(&mut table, "site", findings);
    let listen = table
        .require("listen", &format!("listen = \"{EXAMPLE}\""), findings)
        .and_then(|value| listens(value, findings));
    let matches = match table.get("match") {
        None => Some((Selector::default(), Selector::default())),
        Some(value) => matches(value, findings),
    };
    let via = table
        .require("via", "via = \"original\"", findings)
        .and_then(|value| via(value, upstreams, findings));
    let names = names::read(&mut table, upstreams, via.as_ref(), findings);
    let has_names = !matches!(names, Ok(None));
    let relayed = has_names || via.as_ref().is_none_or(ReverseVia::is_relayed);
    let on_relay_failure = fail_mode(&mut table, relayed, findings);
    let paths = [
        ("auto", (PathChoice::Auto, false)),
        ("steer", (PathChoice::Auto, true)),
        ("copy", (PathChoice::Copy, false)),
        ("splice", (PathChoice::Splice, false)),
        ("sockmap", (PathChoice::Sockmap, false)),
    ];
    let path = of_relay(&mut table, "path", &paths, relayed, findings);
    let accept_proxy = match table.get("accept_proxy") {
        None => Some(Vec::new()),
        Some(value) => senders(value, findings),
    };
    let headers = ProxyHeader::ALL.map(|(name, header)| (name, Some(header)));
    let send_proxy = of_relay(&mut table, "send_proxy", &headers, relayed, findings);
    let kept = table.get("keep_source");
    let keep_source = keep_source(kept, relayed, findings);
    let headers = accept_proxy.as_ref().is_some_and(|who| !who.is_empty())
        || send_proxy.is_some_and(|sent| sent.is_some());
    let of_relay = if has_names {
        Some("look for names")
    } else if keep_source == Some(true) {
        Some("connect from the client's address, which a steered service sees anyway")
    } else {
        headers.then_some("read or write a PROXY header")
    };
    let can = can_steer(via.as_ref(), of_relay);
    let path = path_or_steer(&mut table, path, relayed, can, findings);
    let connect_timeout = match table.get("connect_timeout") {
        None => Some(daemon.connect_timeout),
        Some(value) => duration::read(value, duration::ANY, findings),
    };
    let place = table.span.clone();
    table.finish(findings);
    let (source, interface) = matches?;
    let (name, name_span) = name?;
    let placed = PlacedReverse {
        rule: Reverse {
            name,
            listen: listen?,
            source,
            interface,
            via: via?,
            names: names.ok()?,
            connect_timeout: connect_timeout?,
            accept_proxy: accept_proxy?,
            send_proxy: send_proxy?,
            keep_source: keep_source?,
            on_relay_failure: on_relay_failure?,
            path: path?.0,
            steer: path?.1,
        },
        keep_source: kept.map_or_else(|| name_span.clone(), |value| value.span()),
        name: name_span,
    };
    check_sent(&placed.rule, &place, findings);
    Some(placed)
}

/// Whether servers are to see the addresses of clients.
pub(super) fn keep_source(
    value: Option<Value<'_>>,
    relayed: bool,
    findings: &mut Findings,
) -> Option<bool> {
    value.map_or(Some(false), |value| {
        warn_unless_relayed(value, relayed, findings);
        value.boolean(findings)
    })
}

/// Whether the kernel alone can do what a rule wants. `of_relay` is what it wants of the relay.
fn can_steer(via: Option<&ReverseVia>, of_relay: Option<&str>) -> Result<(), String> {
    match (via, of_relay) {
        (Some(ReverseVia::Address(_)), None) => Ok(()),
        (Some(ReverseVia::Address(_)), Some(what)) => {
            Err(format!("the rule needs the relay: only that can {what}"))
        }
        _ => Err(
            "`via` is not the address of a service: only its own listener can be given connections"
                .to_owned(),
        ),
    }
}

/// The path, and whether connections are steered: because that is the path, or because `allow_steer` lets `auto` have it where it can
/// be had.
fn path_or_steer(
    table: &mut Table<'_>,
    path: Option<(PathChoice, bool)>,
    relayed: bool,
    can: Result<(), String>,
    findings: &mut Findings,
) -> Option<(PathChoice, bool)> {
    const KEY: &str = "allow_steer";
    let is_auto = path.map(|path| path == (PathChoice::Auto, false));
    let alone = "`path = \"steer\"` insists on what the other only allows";
    let allowed = allowance(table, (KEY, alone), is_auto, relayed, findings)?;
    let (path, steer) = path?;
    match (allowed, can) {
        (None, Err(why)) if steer => {
            let place = table.get("path").map(|value| value.span());
            let finding = Finding::error("`path = \"steer\"` cannot be had here").label(why);
            findings.keep(Err(finding), &place.unwrap_or_default())
        }
        (None, _) => Some((path, steer)),
        (Some(_), Ok(())) => Some((path, true)),
        (Some(place), Err(why)) => {
            if relayed {
                warn_unusable(KEY, &place, why, findings);
            }
            Some((path, false))
        }
    }
}

/// Warns of a service that believes what clients say while the relay fails.
fn check_sent(rule: &Reverse, place: &Span, findings: &mut Findings) {
    if rule.send_proxy.is_some()
        && rule.vias().any(|via| *via == ReverseVia::Original)
        && rule.on_relay_failure == FailMode::Direct
    {
        findings.push(
            Finding::warning("a service that waits for PROXY headers gets connections without")
                .at(place)
                .label("while the relay fails, clients reach it directly")
                .help("add `on_relay_failure = \"refuse\"`: a client could otherwise begin with a header of its own making"),
        );
    }
}

fn matches(
    value: Value<'_>,
    findings: &mut Findings,
) -> Option<(Selector<IpNet>, Selector<String>)> {
    let mut table = value.table(
        "`match`",
        "a table such as `{ source = \"10.0.0.0/8\" }`",
        findings,
    )?;
    let source = selector::optional(table.get("source"), |value| {
        selector::read(value, "10.0.0.0/8", findings, selector::prefix)
    });
    let interface = selector::optional(table.get("interface"), |value| {
        selector::read(value, "eth0", findings, interface)
    });
    table.finish(findings);
    Some((source?, interface?))
}

/// The name of an interface, which may appear later.
pub(super) fn interface(text: &str) -> Result<String, Finding> {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    let named = (1..=LONGEST_INTERFACE).contains(&text.len()) && text.bytes().all(plain);
    if named && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err(
        Finding::error(format!("{} is not the name of an interface", quoted(text)))
            .label("expected one that `ip link` shows, such as `eth0`"),
    )
}

/// Senders of PROXY headers: prefixes, and no exclusions.
fn senders(value: Value<'_>, findings: &mut Findings) -> Option<Vec<IpNet>> {
    let read = selector::read(value, "10.0.0.0/8", findings, selector::prefix)?;
    if read.exclude.is_empty() {
        return Some(read.include);
    }
    findings.push(
        Finding::error("`accept_proxy` lists whom to believe, and nobody else is")
            .at(&value.span())
            .label("leave out what begins with `!`"),
    );
    None
}

fn listens(value: Value<'_>, findings: &mut Findings) -> Option<Vec<Listen>> {
    let items = value.one_or_many(findings);
    let count = items.len();
    let mut listens = Vec::new();
    let mut read = 0;
    for item in items {
        if let Some(text) = item.text(EXAMPLE, findings)
            && let Some(listen) = findings.keep(listen(text), &item.span())
        {
            listens.extend(listen);
            read += 1;
        }
    }
    (count > 0 && read == count).then_some(listens)
}

/// What a rule listens on, written as in the file; `None` for what is nothing to listen on.
#[must_use]
pub fn listens_of(text: &str) -> Option<Vec<Listen>> {
    listen(text).ok()
}

/// Addresses and ports: `192.0.2.10:443`, `[2001:db8::/64]:8000-8999`, `*:80`; the unspecified address of a family is all of
/// it, as it is for a socket.
fn listen(text: &str) -> Result<Vec<Listen>, Finding> {
    let malformed = || {
        Finding::error(format!("{} is not an address with a port", quoted(text))).label(
            "expected one such as `192.0.2.10:443`, `[2001:db8::1]:80`, `198.51.100.0/24:8000-8999` or `*:80`",
        )
    };
    let (address, ports) = text.rsplit_once(':').ok_or_else(malformed)?;
    let ports = selector::ports(ports)?;
    let all_v4 = IpNet::from(Ipv4Net::default());
    let all_v6 = IpNet::from(Ipv6Net::default());
    let nets = if address == "*" {
        vec![all_v4, all_v6]
    } else {
        let bracketed = address.starts_with('[');
        // The length of a prefix may stand before the bracket or behind it.
        let plain = match address.strip_prefix('[') {
            None => address.to_owned(),
            Some(rest) => {
                let (inside, behind) = rest.split_once(']').ok_or_else(malformed)?;
                format!("{inside}{behind}")
            }
        };
        let net = selector::prefix(&plain)?;
        if matches!(net, IpNet::V6(_)) != bracketed {
            return Err(malformed().help("IPv6 addresses stand in brackets here, others do not"));
        }
        let is_one = net.prefix_len() == net.max_prefix_len();
        if is_one && net.addr().is_unspecified() {
            vec![if bracketed { all_v6 } else { all_v4 }]
        } else {
            vec![net]
        }
    };
    let of = |net| Listen {
        net,
        ports: ports.clone(),
    };
    Ok(nets.into_iter().map(of).collect())
}

pub(super) fn via(
    value: Value<'_>,
    upstreams: &[&str],
    findings: &mut Findings,
) -> Option<ReverseVia> {
    let text = value.text("original", findings)?;
    match text {
        "direct" => return Some(ReverseVia::Direct),
        "refuse" => return Some(ReverseVia::Refuse),
        "original" => return Some(ReverseVia::Original),
        name if upstreams.contains(&name) => return Some(ReverseVia::Upstream(Arc::from(name))),
        _ => {}
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() != 0 && !address.ip().is_unspecified() {
            return Some(ReverseVia::Address(address));
        }
        findings.push(
            Finding::error(format!("{} is nothing to connect to", quoted(text)))
                .at(&value.span())
                .label("expected the address and port of a service"),
        );
        return None;
    }
    let finding = Finding::error(format!("no upstream is named {}", quoted(text)));
    let known = upstreams.iter().copied().chain(RESERVED);
    let finding = match closest(text, known) {
        Some(known) => finding.label(format!("did you mean `{known}`?")),
        None => finding.label(
            "expected `original`, an address with a port, an upstream, `direct` or `refuse`",
        ),
    };
    findings.push(finding.at(&value.span()));
    None
}

fn names_of(rule: &Reverse) -> usize {
    rule.names.as_ref().map_or(0, |names| names.entries.len())
}

/// Whether the kernel's tables can hold them together.
fn check_tables(rules: &[PlacedReverse], findings: &mut Findings) {
    let all: Vec<Reverse> = rules.iter().map(|placed| placed.rule.clone()).collect();
    let compiled = policy::compile(Roles::from(all.as_slice()), &Names::default());
    if let (Err(error), Some(first)) = (compiled, rules.first()) {
        findings.push(Finding::error(error.to_string()).at(&first.name));
    }
}
