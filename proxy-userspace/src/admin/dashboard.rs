//! The page that shows in a browser what a daemon does: three files that are part of the binary, and the questions that only
//! look, over TCP.
//!
//! Nobody can be told from anybody there, so nothing can be changed. The page asks no other host for anything, and nobody else's page
//! may ask here: a host that is named by anything but an address could be that of a page whose name was made to mean this
//! address (DNS rebinding), and gets no answer.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, HeaderValue, REFERRER_POLICY,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use tokio::sync::mpsc;

use super::{Asked, Question, failure, reply};

/// What the page may ask.
const QUESTIONS: [Question; 4] = [
    Question::Status,
    Question::Connections,
    Question::Rules,
    Question::Upstreams,
];

/// The files of the page, by their paths.
const FILES: [(&str, &str, &str); 3] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("dashboard/page.html"),
    ),
    (
        "/page.js",
        "text/javascript; charset=utf-8",
        include_str!("dashboard/page.js"),
    ),
    (
        "/page.css",
        "text/css; charset=utf-8",
        include_str!("dashboard/page.css"),
    ),
];

/// What comes with every answer: browsers are to ask nobody else, show it in nobody's frame, give it to no other page, and keep nothing.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
];

pub(super) async fn respond(
    request: Request<Incoming>,
    ask: &mpsc::Sender<Asked>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    let file = FILES.iter().find(|(known, ..)| *known == path);
    let mut response = match file {
        _ if !is_addressed(request.headers()) => failure(
            StatusCode::MISDIRECTED_REQUEST,
            "only an address or localhost is answered here, no other name",
        ),
        Some(_) if request.method() != Method::GET => {
            failure(StatusCode::METHOD_NOT_ALLOWED, "only GET")
        }
        Some((_, kind, text)) => reply(StatusCode::OK, kind, (*text).to_owned()),
        None => super::respond(request, |question| QUESTIONS.contains(&question), ask).await?,
    };
    for (name, value) in HEADERS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// Whether the client knows this host by an address, which nobody can make mean another one.
fn is_addressed(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    host.to_str().is_ok_and(is_address)
}

fn is_address(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let bracketed = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::Ipv4Addr>().is_ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_name_this_host() {
        for host in [
            "127.0.0.1:9465",
            "127.0.0.1",
            "localhost:9465",
            "LocalHost",
            "192.0.2.7:9465",
            "[::1]:9465",
            "[2001:db8::1]",
        ] {
            assert!(is_address(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "example.com:9465",
            "127.0.0.1.example.com",
            "localhost.example.com:9465",
            "::1",
            "[::1",
            "[localhost]:9465",
            "127.0.0.1:99999",
            "2130706433",
        ] {
            assert!(!is_address(host), "{host}");
        }
    }

    #[test]
    fn the_page_asks_no_other_host() {
        for (path, _, text) in FILES {
            for foreign in ["http:", "https:", "//", "innerHTML", "eval("] {
                let comments = text.lines().filter(|line| !line.trim().starts_with("//"));
                for line in comments {
                    assert!(!line.contains(foreign), "{path} has {foreign:?}: {line}");
                }
            }
        }
        // What the policy forbids anyway.
        let (_, _, page) = FILES[0];
        assert!(!page.contains("<style") && !page.contains("style=") && !page.contains("onclick"));
    }
}
