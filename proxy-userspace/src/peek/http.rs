//! The head of an HTTP/1 request. What comes before a request is recognised is no HTTP, and so has no name; what is wrong
//! with one afterwards is malformed.

use httparse::{EMPTY_HEADER, Request, Status};
use hyper::http::{Uri, uri::Authority};

use crate::rule::{Kind, Name};

use super::{Flight, Sight};

/// Most lines of a head, which otherwise is only limited in bytes.
const MOST_LINES: usize = 128;
/// Longer than any method; where no space came by then it is no HTTP.
const LONGEST_METHOD: usize = 32;

pub(super) fn judge(bytes: &[u8]) -> Sight {
    let mut lines = [EMPTY_HEADER; MOST_LINES];
    let mut request = Request::new(&mut lines);
    match request.parse(bytes) {
        Ok(Status::Complete(_)) => named(&request).map_or_else(Sight::Malformed, Sight::Whole),
        Ok(Status::Partial) if begins(bytes) => Sight::More(bytes.len() + 1),
        Err(_) if is_request(bytes) => Sight::Malformed("no head of a request is like that"),
        Ok(Status::Partial) | Err(_) => Sight::Whole(Flight::default()),
    }
}

/// Whether the method may end yet.
fn begins(bytes: &[u8]) -> bool {
    let mut head = bytes.trim_ascii_start().iter().take(LONGEST_METHOD);
    bytes.len() < LONGEST_METHOD || head.any(|byte| *byte == b' ')
}

/// Whether the first line is one of HTTP.
fn is_request(bytes: &[u8]) -> bool {
    let bytes = bytes.trim_ascii_start();
    let line = bytes.split(|byte| *byte == b'\n').next();
    line.is_some_and(|line| line.windows(6).any(|part| part == b" HTTP/"))
}

/// What the request is for: its target, if that is whole, or its `Host` (RFC 9112 section 3.2).
fn named(request: &Request<'_, '_>) -> Result<Flight, &'static str> {
    const NO_NAME: &str = "its host is no name";
    let mut hosts = request
        .headers
        .iter()
        .filter(|line| line.name.eq_ignore_ascii_case("host"));
    let host = hosts.next().map(|line| line.value.trim_ascii());
    if hosts.next().is_some() {
        return Err("it has two hosts");
    }
    let target: Option<Uri> = request.path.and_then(|target| target.parse().ok());
    let is_local = |target: &str| target.starts_with('/') || target == "*";
    if target.is_none() && !request.path.is_some_and(is_local) {
        return Err("its target is none");
    }
    let in_target = target.as_ref().and_then(Uri::authority);
    let name = match (in_target, host) {
        (Some(authority), _) => Some(of_authority(authority)),
        (None, None | Some([])) => None,
        (None, Some(host)) => Some(
            Authority::try_from(host)
                .ok()
                .as_ref()
                .and_then(of_authority),
        ),
    };
    Ok(Flight {
        kind: Some(Kind::Host),
        name: name.map(|name| name.ok_or(NO_NAME)).transpose()?,
        ..Flight::default()
    })
}

/// The name in `name:port`. No user may stand before it (RFC 9110 section 4.2.4).
pub(super) fn of_authority(authority: &Authority) -> Option<Name> {
    let is_plain = !authority.as_str().contains('@');
    is_plain.then(|| Name::of(authority.host().as_bytes()))?
}
