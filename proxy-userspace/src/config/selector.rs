//! The values of `match`: one text at a time into what a rule compares with.
//!
//! A selector is written as one value or a list; `!` in front excludes. Knows no sections and no other rule.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
};

use ipnet::{IpNet, Ipv4Net};

use crate::rule::{Selector, container_in};

use super::{
    accounts::Kind,
    mask::quoted,
    raw::Value,
    report::{Finding, Findings},
};

/// No name of a container is longer: it is a host name, too, or has one in it.
const LONGEST_NAME: usize = 255;
/// The names of a container, of its pod, and of the namespace of that.
const PARTS: usize = 3;
/// The kernel's own bound of a path, in bytes (`PATH_MAX`).
const LONGEST_PATH: usize = 4096;
/// How deep a cgroup may be for the kernel programs to tell its members.
const DEEPEST_CGROUP: usize = 31;
/// The kernel's own bound of process ids (`PID_MAX_LIMIT` on 64 bits).
const LARGEST_PID: u32 = 1 << 22;
/// The largest user or group id; the one above means "none" to the kernel.
const LARGEST_ID: u32 = u32::MAX - 1;

/// A key that is not there selects everything.
pub(super) fn optional<'a, T>(
    value: Option<Value<'a>>,
    read: impl FnOnce(Value<'a>) -> Option<Selector<T>>,
) -> Option<Selector<T>> {
    value.map_or_else(|| Some(Selector::default()), read)
}

/// Reads one selector. Every bad element gets its finding; then there is no selector.
pub(super) fn read<T>(
    value: Value<'_>,
    example: &str,
    findings: &mut Findings,
    parse: impl Fn(&str) -> Result<T, Finding>,
) -> Option<Selector<T>> {
    let mut selector = Selector::default();
    let items = value.one_or_many(findings);
    let count = items.len();
    for item in items {
        let Some(text) = item.text(example, findings) else {
            continue;
        };
        keep(item, text, &parse, &mut selector, findings);
    }
    complete(selector, count)
}

/// Like [`read`], for values that may be written as integers.
pub(super) fn read_numbers<T>(
    value: Value<'_>,
    example: &str,
    findings: &mut Findings,
    parse: impl Fn(&str) -> Result<T, Finding>,
) -> Option<Selector<T>> {
    let mut selector = Selector::default();
    let items = value.one_or_many(findings);
    let count = items.len();
    for item in items {
        if let Some(digits) = item.as_digits() {
            keep(item, &digits, &parse, &mut selector, findings);
        } else if let Some(text) = item.as_str() {
            keep(item, text, &parse, &mut selector, findings);
        } else {
            findings
                .push(item.wrong_type(&format!("a number, or a string such as `\"{example}\"`")));
        }
    }
    complete(selector, count)
}

fn keep<T>(
    item: Value<'_>,
    text: &str,
    parse: &impl Fn(&str) -> Result<T, Finding>,
    selector: &mut Selector<T>,
    findings: &mut Findings,
) {
    let (list, text) = match text.strip_prefix('!') {
        Some(text) => (&mut selector.exclude, text),
        None => (&mut selector.include, text),
    };
    list.extend(findings.keep(parse(text), &item.span()));
}

/// A selector from which elements are missing would select something else than its author wrote.
fn complete<T>(selector: Selector<T>, count: usize) -> Option<Selector<T>> {
    let read = selector.include.len() + selector.exclude.len();
    (count > 0 && read == count).then_some(selector)
}

/// A cgroup, by path below the root of the hierarchy or by systemd unit name.
pub(super) fn cgroup(text: &str) -> Result<String, Finding> {
    if let Some(name) = container_in(text) {
        return Err(Finding::error(format!("{} is not a cgroup", quoted(text)))
            .label(format!("write `container = \"{name}\"`")));
    }
    let path = cgroup_path(text)?;
    if path.is_empty() {
        return Err(Finding::error("the root cgroup holds every process")
            .label("leave `cgroup` out to select all of them"));
    }
    Ok(path)
}

/// A container, by name, with that of its pod and of the namespace of that before it or not, or by id.
pub(super) fn container(text: &str) -> Result<String, Finding> {
    let letters = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    let is_name = |part: &str| {
        let begins = part.starts_with(|letter: char| letter.is_ascii_alphanumeric());
        begins && part.len() <= LONGEST_NAME && part.chars().all(letters)
    };
    if text.split('/').count() <= PARTS && text.split('/').all(is_name) {
        return Ok(text.to_owned());
    }
    Err(
        Finding::error(format!("{} is not a container", quoted(text))).label(
            "expected a name such as `web`, `pod/web` or `namespace/pod/web`, or an id: its first 12 digits are enough",
        ),
    )
}

/// A path below the root of the hierarchy, without slashes around it; empty for the root itself.
pub(super) fn cgroup_path(text: &str) -> Result<String, Finding> {
    let path = text.trim_matches('/');
    if let Some(below) = below_mount(path) {
        return Err(
            Finding::error(format!("{} is not below the root", quoted(text)))
                .label(format!("leave the mount point out: `{below}`")),
        );
    }
    let named = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !path.is_empty() && !path.split('/').all(named) || !is_path(path) {
        return Err(Finding::error(format!("{} is not a cgroup", quoted(text)))
            .label("expected a path below the root such as `system.slice/nginx.service`, or a unit name"));
    }
    let depth = path.split('/').count();
    if depth > DEEPEST_CGROUP {
        return Err(
            Finding::error(format!("{} is {depth} levels deep", quoted(text)))
                .label(format!("at most {DEEPEST_CGROUP}: name a parent instead")),
        );
    }
    Ok(path.to_owned())
}

/// The rest of a path that starts with a place where the hierarchy is usually mounted.
fn below_mount(path: &str) -> Option<&str> {
    let below = path.strip_prefix("sys/fs/cgroup")?;
    let below = below.strip_prefix("/unified").unwrap_or(below);
    below.is_empty().then_some("/").or(below.strip_prefix('/'))
}

/// An absolute path, without `.`, `..` or a slash at its end.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, Finding> {
    let path = Path::new(text);
    let mut parts = path.components();
    let rooted = parts.next() == Some(Component::RootDir);
    let normal = parts.all(|part| matches!(part, Component::Normal(_)));
    if rooted && normal && path.file_name().is_some() && !text.ends_with('/') && is_path(text) {
        return Ok(path.components().collect());
    }
    let finding = Finding::error(format!(
        "{} is not the absolute path of a file",
        quoted(text)
    ));
    Err(if rooted {
        finding.label("expected a path without `.`, `..` or a slash at its end")
    } else {
        finding.label("expected a path that starts with `/`")
    })
}

fn is_path(text: &str) -> bool {
    text.len() < LONGEST_PATH && !text.contains('\0')
}

/// User ids: a number, a range or a user name.
pub(super) fn ids(
    text: &str,
    kind: Kind,
    look_up: impl Fn(&str) -> Result<u32, Finding>,
) -> Result<RangeInclusive<u32>, Finding> {
    match range(text, kind.id_name(), 0..=LARGEST_ID) {
        Some(range) => range,
        None => look_up(text).map(|id| id..=id),
    }
}

/// A process id.
pub(super) fn pid(text: &str) -> Result<u32, Finding> {
    let pid = text.parse().ok();
    pid.filter(|pid| (1..=LARGEST_PID).contains(pid))
        .ok_or_else(|| {
            Finding::error(format!("{} is not a process id", quoted(text)))
                .label(format!("expected a number from 1 to {LARGEST_PID}"))
        })
}

/// A port or a range of ports.
pub(super) fn ports(text: &str) -> Result<RangeInclusive<u16>, Finding> {
    let (first, last) = range(text, "port", 1..=u32::from(u16::MAX))
        .unwrap_or_else(|| {
            Err(Finding::error(format!("{} is not a port", quoted(text)))
                .label("expected a number or a range such as `8000-8999`"))
        })?
        .into_inner();
    // Within the bounds just given.
    Ok(u16::try_from(first).unwrap_or(u16::MAX)..=u16::try_from(last).unwrap_or(u16::MAX))
}

/// A number or `FIRST-LAST`; nothing where the text has another form.
fn range(
    text: &str,
    what: &str,
    bounds: RangeInclusive<u32>,
) -> Option<Result<RangeInclusive<u32>, Finding>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let negative = text.strip_prefix('-').is_some_and(digits);
    if !(negative || digits(first) && digits(last)) {
        return None;
    }
    let (lowest, highest) = (bounds.start(), bounds.end());
    let number = |text: &str| text.parse().ok().filter(|number| bounds.contains(number));
    Some(match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        (Some(first), Some(last)) => {
            Err(Finding::error(format!("the range `{text}` is backwards"))
                .label(format!("did you mean `{last}-{first}`?")))
        }
        _ => Err(Finding::error(format!("{} is not a {what}", quoted(text)))
            .label(format!("a {what} is from {lowest} to {highest}"))),
    })
}

/// An address or a prefix.
pub(super) fn prefix(text: &str) -> Result<IpNet, Finding> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().map_err(|_| not_a_prefix(text))?,
    };
    if let Some(v4) = mapped(&net) {
        return Err(
            Finding::error(format!("{} is IPv4 written as IPv6", quoted(text)))
                .label(format!("write `{v4}`: mapped destinations count as IPv4")),
        );
    }
    if net.trunc() != net {
        return Err(
            Finding::error(format!("{} has bits set behind its prefix", quoted(text))).label(
                format!("did you mean `{}` or `{}`?", net.trunc(), net.addr()),
            ),
        );
    }
    Ok(net)
}

fn not_a_prefix(text: &str) -> Finding {
    let finding = Finding::error(format!("{} is not an address or prefix", quoted(text)));
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return finding.label(format!(
            "expected `{}` here and {} in `port`",
            socket.ip(),
            socket.port()
        ));
    }
    let address = text
        .split_once('/')
        .map(|(address, _)| address.parse::<IpAddr>());
    match address {
        Some(Ok(IpAddr::V4(_))) => finding.label("the prefix length of IPv4 is from 0 to 32"),
        Some(Ok(IpAddr::V6(_))) => finding.label("the prefix length of IPv6 is from 0 to 128"),
        _ => finding.label("expected one such as `192.0.2.7`, `10.0.0.0/8` or `2001:db8::/32`"),
    }
}

/// The IPv4 prefix that an IPv4-mapped IPv6 prefix stands for.
fn mapped(net: &IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(v6) = net else { return None };
    let length = v6.prefix_len().checked_sub(96)?;
    let address = v6.addr().to_ipv4_mapped()?;
    Ipv4Net::new(address, length).ok().map(|v4| v4.trunc())
}
