//! URLs of proxies, such as `socks5://user:password@10.0.0.5:1080`.
//!
//! No message of this module repeats the URL or a part of it that may hold a secret.

use std::net::{IpAddr, Ipv4Addr};

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::Url;

use crate::upstream::{Host, Scheme};

use super::{
    mask::quoted,
    raw::{closest, listed},
    report::Finding,
};

const SCHEMES: [&str; 4] = ["direct", "socks5", "http", "https"];
/// What the URL is parsed as: a scheme without a default port, which `url` would hide, and without other rules
/// of its own.
const NEUTRAL: &str = "proxy";
/// Longest host name, in bytes (RFC 1035 section 2.3.4, without the root's dot).
const LONGEST_HOST: usize = 253;

/// What a URL says.
#[derive(Clone, Debug)]
pub(super) enum ProxyUrl {
    /// `direct://`: no proxy.
    Direct,
    /// A proxy.
    Proxy(Address),
}

/// The address of a proxy, with the credentials that are part of the URL.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) scheme: Scheme,
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) user: Option<String>,
    pub(super) password: Option<SecretString>,
}

/// The port of a scheme that a URL without one means: that of the protocol, and for plain HTTP proxies 8080.
pub(super) const fn default_port(scheme: Scheme) -> u16 {
    match scheme {
        Scheme::Socks5 => 1080,
        Scheme::Http => 8080,
        Scheme::Https => 443,
    }
}

/// Parses a URL.
pub(super) fn parse(text: &str) -> Result<ProxyUrl, Finding> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(no_scheme(text));
    };
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "direct" if rest.is_empty() => return Ok(ProxyUrl::Direct),
        "direct" => {
            return Err(Finding::error("`direct` has no address").label("write `direct://`"));
        }
        "socks5" => Scheme::Socks5,
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => return Err(unknown_scheme(other)),
    };
    let url = neutral(rest)?;
    let port = match url.port() {
        Some(0) => return Err(bad_port()),
        port => port.unwrap_or(default_port(scheme)),
    };
    let user = decoded(url.username()).ok_or_else(not_utf8)?;
    let password = url
        .password()
        .map(|password| decoded(password).ok_or_else(not_utf8));
    let password = password.transpose()?.map(SecretString::from);
    if user.is_empty() && password.is_some() {
        return Err(
            Finding::error("the proxy URL has a password but no user name")
                .label("write `user:password@` before the host"),
        );
    }
    Ok(ProxyUrl::Proxy(Address {
        scheme,
        host: host(&url)?,
        port,
        user: Some(user).filter(|user| !user.is_empty()),
        password,
    }))
}

fn no_scheme(text: &str) -> Finding {
    // Without a scheme the rest may be anything, so it is repeated only when it cannot hold a password.
    let example = match text {
        "" => "HOST:PORT",
        _ if text.len() <= LONGEST_HOST && text.chars().all(is_address_letter) => text,
        _ => "HOST:PORT",
    };
    Finding::error("the proxy URL has no scheme")
        .label(format!("did you mean `socks5://{example}`?"))
}

fn is_address_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || ".:-[]".contains(letter)
}

fn unknown_scheme(scheme: &str) -> Finding {
    let finding = Finding::error(format!("{} is no proxy protocol", quoted(scheme)));
    match closest(scheme, SCHEMES) {
        Some(known) => finding.label(format!("did you mean `{known}`?")),
        None => finding.label(format!("expected {}", listed(&SCHEMES))),
    }
}

fn neutral(rest: &str) -> Result<Url, Finding> {
    if rest
        .chars()
        .any(|letter| letter.is_whitespace() || letter.is_control())
    {
        return Err(
            Finding::error("the proxy URL holds a space or control character")
                .label("percent-encode it, a space as `%20`"),
        );
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if path.contains('@') {
        return Err(
            Finding::error("the credentials of the proxy URL hold a `/`, `?` or `#`")
                .label("percent-encode them as `%2F`, `%3F` and `%23`"),
        );
    }
    if !matches!(path, "" | "/") {
        return Err(Finding::error("the proxy URL has more than an address")
            .label("leave out what follows the port"));
    }
    Url::parse(&format!("{NEUTRAL}://{authority}")).map_err(|source| match source {
        url::ParseError::InvalidPort => bad_port(),
        source => bad_host(&source.to_string()),
    })
}

fn bad_port() -> Finding {
    Finding::error("the proxy URL has a bad port").label("a port is from 1 to 65535")
}

fn bad_host(why: &str) -> Finding {
    Finding::error(format!("the proxy URL has a bad host: {why}"))
        .label("expected a name, an IPv4 address or an IPv6 address in brackets")
}

fn not_utf8() -> Finding {
    Finding::error("the credentials of the proxy URL are not UTF-8 once decoded")
        .label("percent-encode the bytes of UTF-8, and `%` itself as `%25`")
}

fn decoded(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

fn host(url: &Url) -> Result<Host, Finding> {
    let text = match url.host() {
        Some(url::Host::Ipv6(address)) => return Ok(Host::Ip(address.to_canonical())),
        Some(url::Host::Ipv4(address)) => return Ok(Host::Ip(address.into())),
        Some(url::Host::Domain("")) | None => return Err(bad_host("it is empty")),
        Some(url::Host::Domain(text)) => {
            decoded(text).ok_or_else(|| bad_host("it is not UTF-8 once decoded"))?
        }
    };
    match url::Host::parse(&text) {
        Err(source) => Err(bad_host(&source.to_string())),
        Ok(url::Host::Ipv6(address)) => Ok(Host::Ip(IpAddr::V6(address))),
        // `url` also takes `127.1` and `0x7f000001`, which are slips more often than not.
        Ok(url::Host::Ipv4(address)) if text.parse::<Ipv4Addr>() == Ok(address) => {
            Ok(Host::Ip(address.into()))
        }
        Ok(url::Host::Ipv4(_)) => Err(bad_host("an IPv4 address has four numbers from 0 to 255")),
        Ok(url::Host::Domain(name)) => name_that_fits(&name).map(Host::Name).map_err(bad_host),
    }
}

/// A host name, which is neither an address nor longer than DNS allows; or why it is none.
pub(super) fn host_name(text: &str) -> Result<String, &'static str> {
    match url::Host::parse(text) {
        _ if text.is_empty() => Err("it is empty"),
        Ok(url::Host::Domain(name)) => name_that_fits(&name),
        Ok(_) => Err("it is an address"),
        Err(_) => Err("it has a letter that no name has"),
    }
}

fn name_that_fits(name: &str) -> Result<String, &'static str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let fits = |label: &str| (1..=63).contains(&label.len());
    if name.len() > LONGEST_HOST || !name.split('.').all(fits) {
        return Err("a part of its name is empty or too long");
    }
    Ok(name.to_owned())
}
