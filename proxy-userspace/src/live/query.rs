//! Which connections somebody wants to see, as the query of a URL says it.

use std::{borrow::Cow, net::IpAddr};

use ipnet::IpNet;
use thiserror::Error;
use url::form_urlencoded;

use super::{Caller, Open, Reached};
use crate::{record::comm_text, status::connections::Sort};

/// Connections in an answer if nothing else is said.
const LIMIT: usize = 1000;
/// And at most: some megabytes of text.
const MOST: usize = 20_000;

/// Which connections, in which order, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    pub(super) filters: Vec<Filter>,
    pub(super) sort: Sort,
    pub(super) limit: usize,
    pub(super) offset: usize,
}

/// Why it is not understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum QueryError {
    /// Nothing is called so.
    #[error(
        "{key:?} is nothing that connections can be chosen by; there is {}",
        known()
    )]
    Unknown {
        /// What was said.
        key: String,
    },
    /// It cannot be this.
    #[error("{value:?} is no {key}; it is {wanted}")]
    Malformed {
        /// Of what.
        key: &'static str,
        /// What was said.
        value: String,
        /// What it can be.
        wanted: &'static str,
    },
}

/// A property that a connection must have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Filter {
    Id(u64),
    Role(String),
    Rule(String),
    /// An address, a prefix or, otherwise, a part of the name that the client asked for; and perhaps a port.
    To(Place),
    Client(Place),
    /// An id, or what it is called.
    Process(String),
    Path(String),
    /// An upstream, or an endpoint.
    Via(String),
    /// A part of whatever it is shown with.
    Any(String),
}

/// What can be said.
const KEYS: [&str; 12] = [
    "id", "role", "rule", "to", "client", "process", "path", "via", "any", "sort", "limit",
    "offset",
];

fn known() -> String {
    KEYS.join(", ")
}

impl Default for Query {
    fn default() -> Self {
        Self {
            filters: Vec::new(),
            sort: Sort::default(),
            limit: LIMIT,
            offset: 0,
        }
    }
}

impl Query {
    /// Understands the query of a URL. Of a key that is said twice both must hold.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let mut query = Self::default();
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            query.read(&key, value)?;
        }
        Ok(query)
    }

    fn read(&mut self, key: &str, value: Cow<'_, str>) -> Result<(), QueryError> {
        let filter = match key {
            "id" => Filter::Id(number("id", &value)?),
            "role" => Filter::Role(value.into_owned()),
            "rule" => Filter::Rule(value.into_owned()),
            "to" => Filter::To(Place::parse(&value)),
            "client" => Filter::Client(Place::parse(&value)),
            "process" => Filter::Process(value.into_owned()),
            "path" => Filter::Path(value.into_owned()),
            "via" => Filter::Via(value.into_owned()),
            "any" => Filter::Any(value.to_lowercase()),
            "sort" => {
                self.sort =
                    Sort::named(&value).ok_or_else(|| malformed("sort", &value, Sort::NAMES))?;
                return Ok(());
            }
            "limit" => {
                let limit: u64 = number("limit", &value)?;
                self.limit = usize::try_from(limit).unwrap_or(MOST).min(MOST);
                return Ok(());
            }
            "offset" => {
                let offset: u64 = number("offset", &value)?;
                self.offset = usize::try_from(offset).unwrap_or(usize::MAX);
                return Ok(());
            }
            _ => {
                return Err(QueryError::Unknown {
                    key: key.to_owned(),
                });
            }
        };
        self.filters.push(filter);
        Ok(())
    }

    pub(super) fn selects(&self, open: &Open) -> bool {
        self.filters.iter().all(|filter| filter.holds(open))
    }
}

fn number(key: &'static str, value: &str) -> Result<u64, QueryError> {
    value.parse().map_err(|_| malformed(key, value, "a number"))
}

fn malformed(key: &'static str, value: &str, wanted: &'static str) -> QueryError {
    QueryError::Malformed {
        key,
        value: value.to_owned(),
        wanted,
    }
}

impl Filter {
    fn holds(&self, open: &Open) -> bool {
        let begun = &open.begun;
        match self {
            Self::Id(id) => open.id == *id,
            Self::Role(role) => begun.role.label() == role,
            Self::Rule(rule) => *begun.rule == **rule,
            Self::To(place) => {
                let to = begun.orig_dst;
                place.has(to.ip(), to.port(), open.name.get().map(|name| &**name))
            }
            Self::Client(place) => place.has(begun.client.ip(), begun.client.port(), None),
            Self::Process(process) => begun.process.is_some_and(|caller| {
                caller.pid.to_string() == *process || *comm_text(&caller.comm) == **process
            }),
            Self::Path(path) => open.progress.path().label() == path,
            Self::Via(via) => open.reached.get().is_some_and(|reached| {
                *reached.upstream == **via || reached.endpoint.as_deref() == Some(via)
            }),
            Self::Any(part) => is_shown(open, part),
        }
    }
}

/// Whether a text in lower case is a part of what a connection is shown with.
fn is_shown(open: &Open, part: &str) -> bool {
    let begun = &open.begun;
    let has = |text: &str| text.to_lowercase().contains(part);
    let process =
        |caller: Caller| has(&comm_text(&caller.comm)) || caller.pid.to_string().contains(part);
    let reached = |reached: &Reached| {
        has(&reached.upstream)
            || reached.endpoint.as_deref().is_some_and(has)
            || reached.peer.is_some_and(|peer| has(&peer.to_string()))
    };
    has(&begun.rule)
        || begun.process.is_some_and(process)
        || open.name.get().is_some_and(|name| has(name))
        || open.reached.get().is_some_and(reached)
        || has(open.progress.path().label())
        || has(begun.role.label())
        || has(&begun.orig_dst.to_string())
        || has(&begun.client.to_string())
}

/// Addresses, or names, and perhaps a port.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    host: Option<Host>,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
enum Host {
    Net(IpNet),
    Name(String),
}

impl Place {
    /// `10.0.0.0/8`, `192.0.2.1:80`, `[2001:db8::1]:80`, `2001:db8::/32`, `:443`, or a part of a name.
    fn parse(text: &str) -> Self {
        let whole = |host| Self { host, port: None };
        if let Some(net) = net(text) {
            return whole(Some(Host::Net(net)));
        }
        if let Some((host, port)) = text.rsplit_once(':')
            && let Ok(port) = port.parse()
        {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let host = match net(host) {
                _ if host.is_empty() => None,
                Some(net) => Some(Host::Net(net)),
                None => Some(Host::Name(host.to_lowercase())),
            };
            return Self {
                host,
                port: Some(port),
            };
        }
        whole(Some(Host::Name(text.to_lowercase())))
    }

    fn has(&self, ip: IpAddr, port: u16, name: Option<&str>) -> bool {
        let here = match &self.host {
            None => true,
            Some(Host::Net(net)) => net.contains(&ip.to_canonical()),
            Some(Host::Name(wanted)) => name.is_some_and(|name| name.contains(&**wanted)),
        };
        here && self.port.is_none_or(|wanted| wanted == port)
    }
}

fn net(text: &str) -> Option<IpNet> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.ok().or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let has = |place: &str, ip: &str, port, name| {
            Place::parse(place).has(ip.parse().unwrap(), port, name)
        };
        assert!(has("10.0.0.0/8", "10.1.2.3", 80, None));
        assert!(has("10.0.0.0/8", "::ffff:10.1.2.3", 80, None));
        assert!(!has("10.0.0.0/8", "11.1.2.3", 80, None));
        assert!(has("10.1.2.3:80", "10.1.2.3", 80, None));
        assert!(!has("10.1.2.3:80", "10.1.2.3", 81, None));
        assert!(has(":443", "2001:db8::1", 443, None));
        assert!(has("2001:db8::1", "2001:db8::1", 443, None));
        assert!(has("[2001:db8::]:443", "2001:db8::", 443, None));
        assert!(has("Example", "192.0.2.1", 443, Some("www.example.com")));
        assert!(!has("example", "192.0.2.1", 443, None));
        assert!(has("example:443", "192.0.2.1", 443, Some("example.com")));
    }

    #[test]
    fn a_query_says_all_that_it_says_and_nothing_unknown() {
        let query = Query::parse("rule=a%20b&to=10.0.0.0%2F8&to=%3A80&sort=age&limit=7").unwrap();
        assert_eq!(query.filters.len(), 3);
        assert_eq!(query.filters[0], Filter::Rule("a b".to_owned()));
        assert_eq!((query.sort, query.limit), (Sort::Age, 7));
        assert_eq!(Query::parse("").unwrap(), Query::default());
        assert_eq!(Query::parse("limit=999999999999").unwrap().limit, MOST);
        let error = |text| Query::parse(text).unwrap_err().to_string();
        assert!(error("colour=red").contains("\"colour\" is nothing"));
        assert!(error("sort=colour").contains("rate, bytes, age, rtt or id"));
        assert!(error("limit=-1").contains("no limit"));
    }
}
