//! Names that clients ask for, and what a rule says of them.
//!
//! Names are brought to one form, so that equal names are equal bytes.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use url::Host;

use super::ReverseVia;

/// Most bytes in which a name is ever looked for.
pub const MOST_PEEKED: usize = 48 * 1024;
/// Longest name in DNS without the dot at its end, and longest part of one (RFC 1035).
const LONGEST: usize = 253;
const LONGEST_LABEL: usize = 63;

/// A host name or, from HTTP, an address: in lower case, without a dot at its end; IPv6 in brackets and shortened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<str>);

impl Name {
    /// The name in the bytes that a client sent; `None` when they are no name.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        if let Some(inside) = text.strip_prefix('[') {
            let address: Ipv6Addr = inside.strip_suffix(']')?.parse().ok()?;
            return Some(Self(format!("[{address}]").into()));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let label =
            |label: &str| (1..=LONGEST_LABEL).contains(&label.len()) && label.bytes().all(plain);
        (text.len() <= LONGEST && text.split('.').all(label))
            .then(|| Self(text.to_ascii_lowercase().into()))
    }

    /// The name that a person wrote, with letters of any alphabet (IDNA).
    #[must_use]
    pub fn written(text: &str) -> Option<Self> {
        // A percent sign would be taken for an encoding.
        if text.contains('%') {
            return None;
        }
        match Host::parse(text).ok()? {
            Host::Domain(domain) => Self::of(domain.as_bytes()),
            // Only as everybody writes them: the standard of URLs knows more forms.
            Host::Ipv4(address) => Self::of(text.as_bytes()).filter(|name| name.is_v4(address)),
            Host::Ipv6(address) => Some(Self(format!("[{address}]").into())),
        }
    }

    fn is_v4(&self, address: Ipv4Addr) -> bool {
        self.0.parse() == Ok(address)
    }

    /// Whether it is an address.
    #[must_use]
    pub fn is_address(&self) -> bool {
        self.0.starts_with('[') || self.0.parse::<Ipv4Addr>().is_ok()
    }

    /// In lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names that it is below of, from the nearest on.
    pub fn above(&self) -> impl Iterator<Item = &str> {
        let is_name = !self.is_address();
        let dots = self.0.match_indices('.').filter(move |_| is_name);
        dots.filter_map(|(dot, _)| self.0.get(dot + 1..))
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Which names an entry takes, the most specific first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// This name.
    Exact(Name),
    /// All names below this one, however deep, and not itself: `*.example.com`.
    Below(Name),
    /// Every name: `*`.
    Any,
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => formatter.write_str(name.as_str()),
            Self::Below(name) => write!(formatter, "*.{}", name.as_str()),
            Self::Any => formatter.write_str("*"),
        }
    }
}

/// Where a name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// In a TLS `ClientHello` (server name indication, RFC 6066).
    Sni,
    /// In an HTTP request: its target, or `Host`, or `:authority`.
    Host,
}

impl Kind {
    /// The key in the file, and the name in records.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Sni => "sni",
            Self::Host => "host",
        }
    }
}

/// What takes connections by their name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameEntry<T> {
    /// Names from where.
    pub kind: Kind,
    /// Which.
    pub pattern: Pattern,
    /// Protocols of which the client must offer one; empty: whatever it offers.
    pub alpn: Vec<Box<str>>,
    /// Where they go.
    pub to: T,
}

/// How far looking for a name goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes; the name must be among them.
    pub bytes: usize,
    /// Since the connection was accepted, or its PROXY header was whole.
    pub time: Duration,
}

/// Where connections of a rule go by their name. Those whose name no entry takes go where the rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The most specific decides.
    pub entries: Vec<NameEntry<ReverseVia>>,
    /// For those that come without a name, or with nothing in time; `None`: where the rule says.
    pub unnamed: Option<ReverseVia>,
    /// For those whose first bytes are malformed or too long.
    pub malformed: ReverseVia,
    /// How far looking goes.
    pub limits: Limits,
}

impl Names {
    /// All that may become of connections by their names.
    pub fn vias(&self) -> impl Iterator<Item = &ReverseVia> {
        let listed = self.entries.iter().map(|entry| &entry.to);
        listed.chain(&self.unnamed).chain([&self.malformed])
    }
}
