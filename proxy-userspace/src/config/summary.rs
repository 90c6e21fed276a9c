//! A configuration as text for people: what `culvert check` prints. Holds no secrets.

use std::{
    borrow::Cow,
    fmt::{self, Display, Write},
    net::SocketAddr,
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    group::Settings,
    rule::{
        Calibrate, Departure, FailMode, Gateway, IngressHook, Listen, Match, Names, PathChoice,
        ProxyHeader, Reverse, ReverseVia, Router, Rule, Selector, Via, container_in,
    },
    upstream::{Hop, Host, Scheme, Upstream},
};

use super::{Config, Daemon, LogFormat, LogTarget, size};

/// So many values of a selector are shown, the rest is counted.
const SHOWN: usize = 8;

/// What `original` is for what arrives, and for what passes through.
const SERVICE: &str = "the service on the same address and port";
const THERE: &str = "where they go";

/// The resolved configuration: limits, upstreams without their credentials, rules in their order.
#[must_use]
pub fn summary(config: &Config) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, config);
    text
}

/// What a rule selects, in one line.
#[must_use]
pub fn selects(rule: &Rule) -> String {
    in_one_line(&selected(&rule.matches))
}

/// What a key of a rule selects.
#[must_use]
pub fn wanted(rule: &Rule, key: &str) -> String {
    of_key(&selectors(&rule.matches), key)
}

/// What a key of a rule for what arrives selects.
#[must_use]
pub fn wanted_of_arrivals(rule: &Reverse, key: &str) -> String {
    of_key(&taken(rule), key)
}

/// What a key of a rule for what passes through wants, as [`passes`] has it.
#[must_use]
pub fn wanted_of_transits(rule: &Gateway, key: &str) -> String {
    of_key(&passing(rule), key)
}

fn of_key(selectors: &[String], key: &str) -> String {
    let mut selectors = selectors.iter();
    let of_it = selectors.find_map(|selector| selector.strip_prefix(key)?.strip_prefix(' '));
    // Where nothing is said, a destination on loopback is what is not selected.
    of_it.unwrap_or("anything but loopback").to_owned()
}

/// What a rule for what arrives takes, in one line.
#[must_use]
pub fn takes(rule: &Reverse) -> String {
    in_one_line(&taken(rule).join("\n"))
}

/// What a rule for what passes through takes, in one line.
#[must_use]
pub fn passes(rule: &Gateway) -> String {
    in_one_line(&passing(rule).join("\n"))
}

/// Where a rule for what arrives or passes through sends it.
#[must_use]
pub fn goes_to(via: &ReverseVia) -> String {
    match via {
        ReverseVia::Direct | ReverseVia::Refuse => String::new(),
        other => gone_to(other, "original").into_owned(),
    }
}

/// What an upstream is, in one line.
#[must_use]
pub fn way(upstream: &Upstream, settings: Option<&Settings>) -> String {
    settings.map_or_else(|| chain(upstream), |settings| first_line(&group(settings)))
}

fn fast_path(router: &Router) -> String {
    let names: Vec<_> = router.fast_path.iter().map(String::as_str).collect();
    let netfilter = if router.force {
        ", past whatever netfilter has for what passes through"
    } else {
        ", where netfilter has nothing for what passes through"
    };
    names.join(" ") + netfilter
}

fn in_one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join("; ")
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn write(text: &mut String, config: &Config) -> fmt::Result {
    writeln!(text, "daemon")?;
    columns(text, &daemon(&config.daemon))?;
    writeln!(text, "\nupstreams")?;
    let upstreams: Vec<(String, String)> = config
        .upstreams
        .iter()
        .map(|(name, upstream)| {
            let text = config
                .groups
                .get(name)
                .map_or_else(|| chain(upstream), |one| group(one));
            (name.to_string(), text)
        })
        .collect();
    columns(text, &upstreams)?;
    writeln!(
        text,
        "\nrules (the first that matches decides; no match is direct)"
    )?;
    let rules: Vec<(String, String)> = config
        .forward
        .iter()
        .enumerate()
        .map(|(at, rule)| {
            (
                format!("{} {}", at + 1, rule.name),
                selected(&rule.matches) + "\n" + &action(rule),
            )
        })
        .collect();
    columns(text, &rules)?;
    if !config.reverse.is_empty() {
        writeln!(
            text,
            "\nrules for what arrives (the most specific decides, then the first; no match is direct)"
        )?;
        let rules = config.reverse.iter();
        columns(
            text,
            &numbered(rules.map(|rule| (&*rule.name, arrivals(rule)))),
        )?;
    }
    if !config.gateway.is_empty() {
        writeln!(
            text,
            "\nrules for what passes through (the first that matches decides; no match is routed)"
        )?;
        let rules = config.gateway.iter();
        columns(
            text,
            &numbered(rules.map(|rule| (&*rule.name, transits(rule)))),
        )?;
    }
    if config.router.is_on() {
        writeln!(text, "\nrouter")?;
        columns(text, &[("fast path".to_owned(), fast_path(&config.router))])?;
    }
    Ok(())
}

fn numbered<'a>(rules: impl Iterator<Item = (&'a str, String)>) -> Vec<(String, String)> {
    let number = |(at, (name, text)): (usize, (&str, String))| (format!("{} {name}", at + 1), text);
    rules.enumerate().map(number).collect()
}

/// Two columns; the lines of a value stand below each other.
fn columns(text: &mut String, rows: &[(String, String)]) -> fmt::Result {
    if rows.is_empty() {
        writeln!(text, "  none")?;
    }
    let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
    for (left, right) in rows {
        let mut left = left.as_str();
        for line in right.lines() {
            writeln!(text, "  {left:width$}  {line}")?;
            left = "";
        }
    }
    Ok(())
}

fn daemon(daemon: &Daemon) -> Vec<(String, String)> {
    let log = match &daemon.access_log {
        None => "none".to_owned(),
        Some(log) => {
            let format = match log.format {
                LogFormat::Json => "json",
                LogFormat::Text => "text",
            };
            let target = match &log.target {
                LogTarget::Stdout => "standard output".to_owned(),
                LogTarget::Stderr => "standard error".to_owned(),
                LogTarget::File(path) => path.display().to_string(),
            };
            let sample = match log.sample.get() {
                1 => String::new(),
                sample => format!(", one of {sample} that are done"),
            };
            let rate = log.rate.map(|rate| format!(", at most {rate} a second"));
            format!("{target}, {format}{sample}{}", rate.unwrap_or_default())
        }
    };
    let (bytes, reads) = (size::write(daemon.promote.bytes), daemon.promote.reads);
    let calibrate = match daemon.calibrate {
        Calibrate::AtStart => "at the start",
        Calibrate::OnDemand => "on demand",
    };
    let ingress = match daemon.ingress {
        IngressHook::Auto => "links (tcx), or filters (clsact)",
        IngressHook::Clsact => "filters (clsact)",
    };
    let admin = daemon
        .admin
        .as_ref()
        .map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    let served_at = |address: Option<SocketAddr>| {
        address.map_or_else(|| "none".to_owned(), |address| address.to_string())
    };
    let idle = daemon.idle_timeout.map_or_else(|| "off".to_owned(), time);
    [
        ("cgroup", format!("/{}", daemon.cgroup)),
        ("workers", daemon.workers.to_string()),
        ("max connections", daemon.max_connections.to_string()),
        ("max pending", daemon.max_pending.to_string()),
        ("idle timeout", idle),
        ("drain timeout", time(daemon.drain_timeout)),
        ("heartbeat timeout", time(daemon.heartbeat_timeout)),
        ("ingress", ingress.to_owned()),
        ("promote", format!("after {bytes} or {reads} reads")),
        ("calibrate", calibrate.to_owned()),
        ("access log", log),
        ("admin socket", admin),
        ("metrics", served_at(daemon.metrics)),
        ("dashboard", served_at(daemon.dashboard)),
        ("health", served_at(daemon.health)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn chain(upstream: &Upstream) -> String {
    let connect = time(upstream.connect_timeout);
    if upstream.hops.is_empty() {
        return format!("direct, connect {connect}");
    }
    let hops: Vec<String> = upstream.hops.iter().map(hop).collect();
    let handshake = time(upstream.handshake_timeout);
    format!(
        "{}, connect {connect}, handshake {handshake}",
        hops.join(" then ")
    )
}

fn group(group: &Settings) -> String {
    let mut lines = vec![format!(
        "{} over {} endpoints, connect {}",
        group.method.name(),
        group.members.len(),
        time(group.connect_timeout)
    )];
    let shown = group.members.iter().take(SHOWN);
    lines.extend(shown.map(|member| format!("{} weight {}", member.source, member.weight)));
    if let Some(more @ 1..) = group.members.len().checked_sub(SHOWN) {
        lines.push(format!("and {more} more"));
    }
    lines.push(health(group));
    if !group.health.slow_start.is_zero() {
        lines.push(format!("slow start {}", time(group.health.slow_start)));
    }
    let limits = &group.limits;
    for (limit, of) in [
        (limits.total, "the group"),
        (limits.endpoint, "each endpoint"),
        (limits.source, "each source"),
    ] {
        lines.extend(limit.map(|limit| format!("at most {limit} connections of {of}")));
    }
    if limits.total.or(limits.endpoint).is_some() {
        let (queue, timeout) = (limits.queue, time(limits.queue_timeout));
        lines.push(format!("queue of {queue}, {timeout}"));
    }
    if let Some(version) = group.send_proxy {
        let name = ProxyHeader::ALL
            .into_iter()
            .find(|(_, known)| *known == version);
        lines.extend(name.map(|(name, _)| format!("PROXY protocol {name}")));
    }
    if group.keep_source {
        lines.push("from the client's address".to_owned());
    }
    lines.join("\n")
}

fn health(group: &Settings) -> String {
    let rules = &group.health;
    let checks = match &group.check {
        None => "no checks".to_owned(),
        Some(check) => {
            let kind = match (&check.probe.tls, &check.probe.http) {
                (None, None) => "tcp".to_owned(),
                (Some(_), None) => "tls".to_owned(),
                (None, Some(http)) => format!("http {}", http.path),
                (Some(_), Some(http)) => format!("https {}", http.path),
            };
            format!(
                "checks by {kind} every {}, limit {}, rise {}, fall {}",
                time(check.interval),
                time(check.timeout),
                rules.rise,
                rules.fall
            )
        }
    };
    match &rules.passive {
        None => format!("{checks}; never ejected"),
        Some(passive) => format!(
            "{checks}; ejected for {} after {} failures, {} % stay",
            time(passive.eject),
            passive.failures,
            rules.panic
        ),
    }
}

fn hop(hop: &Hop) -> String {
    let scheme = match hop.scheme {
        Scheme::Socks5 => "socks5",
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    let host = match &hop.host {
        Host::Ip(std::net::IpAddr::V6(address)) => format!("[{address}]"),
        Host::Ip(address) => address.to_string(),
        Host::Name(name) => name.clone(),
    };
    let credentials = if hop.credentials.is_some() {
        " with credentials"
    } else {
        ""
    };
    format!("{scheme}://{host}:{}{credentials}", hop.port)
}

fn action(rule: &Rule) -> String {
    let upstream = match &rule.via {
        Via::Direct => return "-> direct".to_owned(),
        Via::Refuse => return "-> refuse".to_owned(),
        Via::Upstream(upstream) => upstream,
    };
    let relayed = relayed(upstream, rule.path, rule.on_relay_failure);
    if rule.rewrite {
        return format!("{relayed}, rewritten where there is an endpoint for the socket");
    }
    match rule.from {
        Departure::Host => relayed,
        Departure::Container => format!("{relayed}, from the container's network"),
    }
}

fn relayed(upstream: &str, path: PathChoice, on_relay_failure: FailMode) -> String {
    let failing = match on_relay_failure {
        FailMode::Direct => "direct",
        FailMode::Refuse => "refused",
    };
    let path = called(path);
    format!("-> {upstream}, path {path}, {failing} while the relay fails")
}

/// A path in words.
#[must_use]
pub const fn called(path: PathChoice) -> &'static str {
    match path {
        PathChoice::Auto => "auto",
        PathChoice::AutoOrShortcut => "auto or shortcut",
        PathChoice::Copy => "copy",
        PathChoice::Splice => "splice",
        PathChoice::Sockmap => "sockmap",
        PathChoice::Shortcut => "shortcut",
        PathChoice::ShortcutWithoutFionread => "shortcut-without-fionread",
        PathChoice::ShortcutBothWays => "shortcut-both-ways",
    }
}

fn arrivals(rule: &Reverse) -> String {
    let mut parts = taken(rule);
    parts.extend(rule.names.iter().flat_map(|names| by_name(names, SERVICE)));
    let to = gone_to(&rule.via, SERVICE);
    let mut last = if rule.is_relayed() {
        relayed(&to, rule.path, rule.on_relay_failure)
    } else {
        format!("-> {to}")
    };
    if rule.steered_to().is_some() {
        last.push_str(", steered where its listener is known");
    }
    if rule.keep_source {
        last.push_str(", from the client's address");
    }
    last.push_str(match rule.send_proxy {
        None => "",
        Some(ProxyHeader::V1) => ", with a PROXY header of version 1",
        Some(ProxyHeader::V2) => ", with a PROXY header of version 2",
    });
    parts.push(last);
    parts.join("\n")
}

/// What it selects.
fn taken(rule: &Reverse) -> Vec<String> {
    let listen = rule.listen.iter();
    let listen = Selector {
        include: listen.collect(),
        exclude: Vec::new(),
    };
    let senders = Selector {
        include: rule.accept_proxy.clone(),
        exclude: Vec::new(),
    };
    let parts = [
        values("listen", &listen, |listen| listened(listen)),
        values("source", &rule.source, destination),
        values("interface", &rule.interface, String::clone),
        values("PROXY header from", &senders, destination),
    ];
    parts.into_iter().flatten().collect()
}

fn transits(rule: &Gateway) -> String {
    let mut parts = passing(rule);
    parts.extend(rule.names.iter().flat_map(|names| by_name(names, THERE)));
    let to = match &rule.via {
        ReverseVia::Direct => "routed".into(),
        via => gone_to(via, THERE),
    };
    let mut last = if rule.is_relayed() {
        relayed(&to, rule.path, rule.on_relay_failure)
    } else {
        format!("-> {to}")
    };
    if rule.keep_source {
        last.push_str(", from the client's address");
    }
    parts.push(last);
    parts.join("\n")
}

/// What it selects.
fn passing(rule: &Gateway) -> Vec<String> {
    let interfaces = Selector {
        include: rule.interface.iter().cloned().collect(),
        exclude: Vec::new(),
    };
    let parts = [
        values("interface", &interfaces, String::clone),
        values("source", &rule.source, destination),
        values("dest", &rule.dest, destination),
        values("port", &rule.port, range),
    ];
    parts.into_iter().flatten().collect()
}

/// Where those go that ask for names.
fn by_name(names: &Names, original: &'static str) -> Vec<String> {
    let limits = &names.limits;
    let (bytes, patience) = (size::write(limits.bytes as u64), time(limits.time));
    let mut lines = vec![format!("names within {bytes} and {patience}")];
    lines.extend(names.entries.iter().take(SHOWN).map(|entry| {
        let (kind, pattern, to) = (
            entry.kind.label(),
            &entry.pattern,
            gone_to(&entry.to, original),
        );
        let alpn = match entry.alpn.as_slice() {
            [] => String::new(),
            alpn => format!(" alpn {}", alpn.join(" ")),
        };
        format!("  {kind} {pattern}{alpn} -> {to}")
    }));
    if let Some(more @ 1..) = names.entries.len().checked_sub(SHOWN) {
        lines.push(format!("  and {more} more"));
    }
    if let Some(via) = &names.unnamed {
        lines.push(format!("  unnamed -> {}", gone_to(via, original)));
    }
    lines.push(format!(
        "  malformed -> {}",
        gone_to(&names.malformed, original)
    ));
    lines
}

fn gone_to<'a>(via: &'a ReverseVia, original: &'static str) -> Cow<'a, str> {
    match via {
        ReverseVia::Direct => "direct".into(),
        ReverseVia::Refuse => "refuse".into(),
        ReverseVia::Original => original.into(),
        ReverseVia::Address(to) => to.to_string().into(),
        ReverseVia::Upstream(name) => (&**name).into(),
    }
}

/// As it may be written in the file.
fn listened(listen: &Listen) -> String {
    let ports = range(&listen.ports);
    let net = destination(&listen.net);
    match listen.net {
        IpNet::V4(net) if net.prefix_len() == 0 => format!("0.0.0.0:{ports}"),
        IpNet::V4(_) => format!("{net}:{ports}"),
        IpNet::V6(net) if net.prefix_len() == 0 => format!("[::]:{ports}"),
        IpNet::V6(_) => format!("[{net}]:{ports}"),
    }
}

fn selected(matches: &Match) -> String {
    let parts = selectors(matches);
    if parts.is_empty() {
        return "everything but loopback".to_owned();
    }
    parts.join("\n")
}

fn selectors(matches: &Match) -> Vec<String> {
    let cgroup = if matches.names_containers() {
        "container"
    } else {
        "cgroup"
    };
    let parts = [
        values(cgroup, &matches.cgroup, |it| {
            container_in(it).unwrap_or(it).to_owned()
        }),
        values("exe", &matches.exe, |path| path.display().to_string()),
        values("uid", &matches.uid, range),
        values("gid", &matches.gid, range),
        values("pid", &matches.pid, u32::to_string),
        values("dest", &matches.dest, destination),
        values("port", &matches.port, range),
    ];
    parts.into_iter().flatten().collect()
}

fn destination(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

fn range<N: PartialEq + Display>(range: &RangeInclusive<N>) -> String {
    let (first, last) = (range.start(), range.end());
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}

fn values<T>(key: &str, selector: &Selector<T>, show: impl Fn(&T) -> String) -> Option<String> {
    if selector.is_any() {
        return None;
    }
    let included = selector.include.iter().map(&show);
    let excluded = selector
        .exclude
        .iter()
        .map(|value| format!("!{}", show(value)));
    let mut shown: Vec<String> = included.chain(excluded).take(SHOWN).collect();
    if let Some(more @ 1..) = selector.count().checked_sub(SHOWN) {
        shown.push(format!("and {more} more"));
    }
    Some(format!("{key} {}", shown.join(" ")))
}
