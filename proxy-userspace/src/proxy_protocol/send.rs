//! The header by which a server learns who connects.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    process,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ppp::{v1, v2};

use crate::rule::ProxyHeader;

/// What a connection is called, at the server as in our close record (`PP2_TYPE_UNIQUE_ID`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueId(String);

impl UniqueId {
    /// One that no connection had, of this or of another process.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "each is another, which nobody expects of a default"
    )]
    pub fn new() -> Self {
        static PROCESS: LazyLock<u64> =
            LazyLock::new(|| RandomState::new().hash_one(process::id()));
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        Self(format!("{:016x}-{number:x}", *PROCESS))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UniqueId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The header for a connection from `client` to `destination`. IPv4-mapped addresses are written as the IPv4 addresses
/// they are; of two families, as no header can have them, IPv4 becomes IPv4-mapped. Version 1 has no room for a [`UniqueId`], nor
/// for the `authority`: the name that the client asked for in TLS.
#[must_use]
pub fn header(
    version: ProxyHeader,
    client: SocketAddr,
    destination: SocketAddr,
    unique_id: Option<&UniqueId>,
    authority: Option<&str>,
) -> Vec<u8> {
    let (client, destination) = of_one_family(client, destination);
    match version {
        ProxyHeader::V1 => v1::Addresses::from((client, destination))
            .to_string()
            .into_bytes(),
        ProxyHeader::V2 => {
            let builder = v2::Builder::with_addresses(
                v2::Version::Two | v2::Command::Proxy,
                v2::Protocol::Stream,
                (client, destination),
            );
            let id = unique_id.map(|id| (v2::Type::UniqueId, id.as_str()));
            let name = authority.map(|name| (v2::Type::Authority, name));
            let written = [id, name]
                .into_iter()
                .flatten()
                .try_fold(builder, |builder, (kind, text)| {
                    builder.write_tlv(kind, text.as_bytes())
                });
            // It fails for more than 64 KiB only.
            written.and_then(v2::Builder::build).unwrap_or_default()
        }
    }
}

/// The header for a connection of our own, which is nobody's: a check.
#[must_use]
pub fn own_header(version: ProxyHeader) -> Vec<u8> {
    match version {
        ProxyHeader::V1 => v1::Addresses::Unknown.to_string().into_bytes(),
        ProxyHeader::V2 => v2::Builder::with_addresses(
            v2::Version::Two | v2::Command::Local,
            v2::Protocol::Unspecified,
            v2::Addresses::Unspecified,
        )
        .build()
        .unwrap_or_default(),
    }
}

fn of_one_family(client: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let ips = (client.ip().to_canonical(), destination.ip().to_canonical());
    let (client_ip, destination_ip) = match ips {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => ips,
        (one, other) => (mapped(one).into(), mapped(other).into()),
    };
    (
        SocketAddr::new(client_ip, client.port()),
        SocketAddr::new(destination_ip, destination.port()),
    )
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn text(client: &str, destination: &str) -> String {
        let id = UniqueId::new();
        let header = header(
            ProxyHeader::V1,
            address(client),
            address(destination),
            Some(&id),
            Some("a.example"),
        );
        String::from_utf8(header).unwrap()
    }

    #[test]
    fn version_1_is_a_line() {
        assert_eq!(
            text("192.0.2.1:5000", "198.51.100.7:443"),
            "PROXY TCP4 192.0.2.1 198.51.100.7 5000 443\r\n"
        );
        assert_eq!(
            text("[2001:db8::1]:5000", "[2001:db8::2]:443"),
            "PROXY TCP6 2001:db8::1 2001:db8::2 5000 443\r\n"
        );
        assert_eq!(
            text("[::ffff:192.0.2.1]:5000", "198.51.100.7:443"),
            "PROXY TCP4 192.0.2.1 198.51.100.7 5000 443\r\n"
        );
        assert_eq!(
            text("192.0.2.1:5000", "[2001:db8::2]:443"),
            "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 5000 443\r\n"
        );
    }

    #[test]
    fn version_2_has_addresses_and_the_unique_id() {
        let id = UniqueId(String::from("ab-1"));
        let v4 = header(
            ProxyHeader::V2,
            address("192.0.2.1:5000"),
            address("198.51.100.7:443"),
            Some(&id),
            None,
        );
        // Byte by byte from the specification, not from the crate that wrote it.
        let expected = [
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13".as_slice(),
            &[192, 0, 2, 1, 198, 51, 100, 7],
            &[0x13, 0x88, 0x01, 0xbb],
            b"\x05\0\x04ab-1",
        ]
        .concat();
        assert_eq!(v4, expected);
        let v6 = header(
            ProxyHeader::V2,
            address("[2001:db8::1]:1"),
            address("192.0.2.1:2"),
            Some(&id),
            Some("a.example"),
        );
        assert_eq!(&v6[12..16], [0x21, 0x21, 0, 36 + 7 + 12]);
        assert!(v6.ends_with(b"\x02\0\x09a.example"));
    }

    #[test]
    fn a_check_is_nobodys_connection() {
        assert_eq!(own_header(ProxyHeader::V1), b"PROXY UNKNOWN\r\n");
        let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
        assert_eq!(own_header(ProxyHeader::V2), local);
    }

    #[test]
    fn no_two_ids_are_alike() {
        assert_ne!(UniqueId::new(), UniqueId::new());
    }
}
