//! The keys of a `[[reverse]]` or `[[gateway]]` section that choose by the name that a client asks for.

use std::{collections::HashMap, time::Duration};

use crate::rule::{Kind, Limits, MOST_PEEKED, Name, NameEntry, Names, Pattern, ReverseVia};

use super::{
    duration,
    mask::quoted,
    raw::{Table, Value},
    report::{Finding, Findings, Span},
    reverse::via,
    size,
};

/// How long to wait for a name, unless the file says it.
const TIME: Duration = Duration::from_secs(1);
/// Longer is for no client, and a server that speaks first is silent meanwhile.
const LONGEST_TIME: Duration = Duration::from_mins(1);
/// Enough for a `ClientHello` with keys of any kind, and for the heads that servers take.
const BYTES: usize = 16 * 1024;
const LEAST_BYTES: u64 = 512;
/// Longest name of a protocol (RFC 7301 section 3.1).
const LONGEST_ALPN: usize = 255;
const ENTRY: &str = "{ sni = \"www.example.com\", via = \"web\" }";

/// The keys that mean nothing without `names`.
const BESIDE: [&str; 4] = ["unnamed", "malformed", "peek_timeout", "peek_bytes"];

/// Reads `names` and what belongs to it. An error has its finding.
pub(super) fn read(
    table: &mut Table<'_>,
    upstreams: &[&str],
    rule_via: Option<&ReverseVia>,
    findings: &mut Findings,
) -> Result<Option<Names>, ()> {
    let names = table.get("names");
    let [unnamed, malformed, time, bytes] = BESIDE.map(|key| table.get(key));
    let Some(names) = names else {
        let mut beside = [unnamed, malformed, time, bytes]
            .into_iter()
            .flatten()
            .peekable();
        let is_right = beside.peek().is_none();
        for value in beside {
            findings.push(
                Finding::error(format!("`{}` means nothing without `names`", value.key()))
                    .at(&value.span())
                    .label("no name is looked for")
                    .help(format!("add `names = [{ENTRY}]`, or leave it out")),
            );
        }
        return if is_right { Ok(None) } else { Err(()) };
    };
    if rule_via == Some(&ReverseVia::Direct) {
        findings.push(
            Finding::error("`names` needs the relay, and `via = \"direct\"` does without")
                .at(&names.span())
                .label("the kernel decides this rule, and it sees no names")
                .help("with `via = \"original\"` the relay takes them to the service that listens there"),
        );
    }
    let entries = entries(names, upstreams, findings);
    let unnamed = match unnamed {
        None => Some(None),
        Some(value) => relayed(value, upstreams, findings).map(Some),
    };
    let malformed = match malformed {
        None => Some(ReverseVia::Refuse),
        Some(value) => relayed(value, upstreams, findings),
    };
    let time = match time {
        None => Some(TIME),
        Some(value) => duration::read(value, *duration::ANY.start()..=LONGEST_TIME, findings),
    };
    let bytes = match bytes {
        None => Some(BYTES),
        Some(value) => size::read(value, LEAST_BYTES..=MOST_PEEKED as u64, findings)
            .and_then(|bytes| usize::try_from(bytes).ok()),
    };
    let names = || {
        Some(Names {
            entries: entries?,
            unnamed: unnamed?,
            malformed: malformed?,
            limits: Limits {
                time: time?,
                bytes: bytes?,
            },
        })
    };
    names().map(Some).ok_or(())
}

/// Where to, as far as one can go once a connection is accepted.
fn relayed(value: Value<'_>, upstreams: &[&str], findings: &mut Findings) -> Option<ReverseVia> {
    let via = via(value, upstreams, findings)?;
    if via != ReverseVia::Direct {
        return Some(via);
    }
    findings.push(
        Finding::error("a connection whose name is known cannot go direct any more")
            .at(&value.span())
            .label("expected `original`, an address with a port, an upstream or `refuse`"),
    );
    None
}

fn entries(
    value: Value<'_>,
    upstreams: &[&str],
    findings: &mut Findings,
) -> Option<Vec<NameEntry<ReverseVia>>> {
    let mut entries = Vec::new();
    let mut first = HashMap::new();
    let tables = value.one_or_many(findings);
    let mut is_right = !tables.is_empty();
    for value in tables {
        match entry(value, upstreams, &mut first, findings) {
            Some(read) => entries.extend(read),
            None => is_right = false,
        }
    }
    is_right.then_some(entries)
}

/// Where each pattern stands, with the protocols that its entry wants.
type First = HashMap<(Kind, Pattern), Vec<(Vec<Box<str>>, Span)>>;

fn entry(
    value: Value<'_>,
    upstreams: &[&str],
    first: &mut First,
    findings: &mut Findings,
) -> Option<Vec<NameEntry<ReverseVia>>> {
    let mut table = value.table(
        "an entry of `names`",
        &format!("one such as `{ENTRY}`"),
        findings,
    )?;
    let sni = table.get("sni");
    let host = table.get("host");
    let alpn = table.get("alpn");
    let to = table
        .require("via", "via = \"web\"", findings)
        .and_then(|value| relayed(value, upstreams, findings));
    let place = table.span.clone();
    table.finish(findings);
    let (kind, names) = match (sni, host) {
        (Some(sni), None) => (Kind::Sni, sni),
        (None, Some(host)) => (Kind::Host, host),
        _ => {
            findings.push(
                Finding::error("an entry of `names` has either `sni` or `host`")
                    .at(&place)
                    .label("`sni` is the name in TLS, `host` the one in HTTP without TLS")
                    .help("an entry for each; `sni = \"*\"` is every name"),
            );
            return None;
        }
    };
    let alpn = match (kind, alpn) {
        (_, None) => Some(Vec::new()),
        (Kind::Sni, Some(alpn)) => list(alpn, "h2", findings, protocol),
        (Kind::Host, Some(alpn)) => {
            findings.push(
                Finding::error("`alpn` is for `sni`")
                    .at(&alpn.span())
                    .label("protocols are offered in TLS, and `host` is without"),
            );
            None
        }
    };
    let patterns = list(names, "www.example.com", findings, |text| {
        pattern(text, kind)
    });
    let (to, alpn) = (to?, alpn?);
    let mut entries = Vec::new();
    for (pattern, span) in patterns? {
        let alpn: Vec<Box<str>> = alpn.iter().map(|(protocol, _)| protocol.clone()).collect();
        let earlier = first.entry((kind, pattern.clone())).or_default();
        let taken = earlier.iter().find(|(wanted, _)| takes_all(wanted, &alpn));
        if let Some((_, place)) = taken {
            findings.push(
                Finding::error(format!("`{pattern}` stands twice"))
                    .at(&span)
                    .also(place, "this entry takes it")
                    .label("never reached"),
            );
        }
        earlier.push((alpn.clone(), span));
        entries.push(NameEntry {
            kind,
            pattern,
            alpn,
            to: to.clone(),
        });
    }
    Some(entries)
}

/// Whether an entry leaves nothing to a later one with the same pattern. One without a protocol comes after all that want one.
fn takes_all(wanted: &[Box<str>], later: &[Box<str>]) -> bool {
    wanted.is_empty() == later.is_empty() && later.iter().all(|protocol| wanted.contains(protocol))
}

/// One value or a list of them, each with its place.
fn list<T>(
    value: Value<'_>,
    example: &str,
    findings: &mut Findings,
    parse: impl Fn(&str) -> Result<T, Finding>,
) -> Option<Vec<(T, Span)>> {
    let items = value.one_or_many(findings);
    let count = items.len();
    let mut list = Vec::new();
    for item in items {
        let text = item.text(example, findings);
        let read = text.and_then(|text| findings.keep(parse(text), &item.span()));
        list.extend(read.map(|read| (read, item.span())));
    }
    (count > 0 && list.len() == count).then_some(list)
}

/// A name, or `*.` and a name, or `*`.
fn pattern(text: &str, kind: Kind) -> Result<Pattern, Finding> {
    if text == "*" {
        return Ok(Pattern::Any);
    }
    let (below, plain) = match text.strip_prefix("*.") {
        Some(plain) => (true, plain),
        None => (false, text),
    };
    let no_name = || {
        Finding::error(format!("{} is not a name", quoted(text))).label(
            "expected one such as `www.example.com`, `*.example.com` for all below it, or `*`",
        )
    };
    if plain.contains('*') {
        return Err(no_name().help("`*` stands for whole labels at the beginning only"));
    }
    let name = Name::written(plain).ok_or_else(|| {
        if plain
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        {
            return no_name().help("leave the port out: it is `listen` that chooses it");
        }
        no_name()
    })?;
    if name.is_address() && (kind == Kind::Sni || below) {
        let finding = Finding::error(format!("{} is an address", quoted(text)));
        return Err(match kind {
            Kind::Sni => finding.label("expected a name").help(
                "clients that connect to an address send no name in TLS: `unnamed` is for them",
            ),
            Kind::Host => finding.label("no name is below it: leave `*.` out"),
        });
    }
    Ok(if below {
        Pattern::Below(name)
    } else {
        Pattern::Exact(name)
    })
}

/// The name of a protocol, as it is on the wire.
fn protocol(text: &str) -> Result<Box<str>, Finding> {
    if (1..=LONGEST_ALPN).contains(&text.len()) {
        return Ok(text.into());
    }
    Err(Finding::error(format!("{} is no protocol", quoted(text)))
        .label("expected one such as `h2`, `http/1.1` or `acme-tls/1`"))
}
