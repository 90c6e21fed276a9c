//! Addresses as the maps hold them: always 16 bytes, IPv4 in its IPv4-mapped form (RFC 4291 section 2.5.5.2).

#![expect(
    clippy::many_single_char_names,
    reason = "the sixteen bytes of an address"
)]

/// An IPv4 or IPv6 address in network byte order; IPv4 as `::ffff:a.b.c.d`.
///
/// Held as four words in memory order, since that is how the kernel's context structs have it and what eBPF
/// handles without shuffling bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addr {
    words: [u32; 4],
}

const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
const ONE: u32 = u32::from_ne_bytes([0, 0, 0, 1]);

impl Addr {
    /// From the four bytes of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(octets))
    }

    /// From the sixteen bytes of an IPv6 address.
    #[must_use]
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self {
            words: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                u32::from_ne_bytes([i, j, k, l]),
                u32::from_ne_bytes([m, n, o, p]),
            ],
        }
    }

    /// From an IPv4 address as the kernel holds it: the four bytes in memory order, read as a native `u32`.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_word(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, word],
        }
    }

    /// From an IPv6 address as the kernel holds it: four words in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The four words in memory order, as the kernel's context structs take them.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The sixteen bytes.
    #[must_use]
    pub const fn octets(&self) -> [u8; 16] {
        let [first, second, third, fourth] = self.words;
        let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
        let ([i, j, k, l], [m, n, o, p]) = (third.to_ne_bytes(), fourth.to_ne_bytes());
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words;
        a == 0 && b == 0 && c == MAPPED
    }

    /// Whether a connection to it stays on this host: `127.0.0.0/8`, `::1` and the unspecified addresses,
    /// which `connect()` takes for loopback.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words;
        if self.is_v4() {
            let [first, ..] = d.to_ne_bytes();
            d == 0 || first == 127
        } else {
            a == 0 && b == 0 && c == 0 && (d == 0 || d == ONE)
        }
    }
}

/// A port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BePort(pub u16);

impl BePort {
    /// From a port number.
    #[inline(always)]
    #[must_use]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// The port number.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

#[cfg(feature = "user")]
mod std_types {
    use core::net::{IpAddr, Ipv6Addr, SocketAddr};

    use super::{Addr, BePort};

    impl From<IpAddr> for Addr {
        fn from(ip: IpAddr) -> Self {
            match ip {
                IpAddr::V4(v4) => Self::from_v4(v4.octets()),
                IpAddr::V6(v6) => Self::from_v6(v6.octets()),
            }
        }
    }

    impl Addr {
        /// With a port; an IPv4-mapped address as the IPv4 address it is.
        #[must_use]
        pub fn with_port(self, port: BePort) -> SocketAddr {
            SocketAddr::new(
                IpAddr::V6(Ipv6Addr::from(self.octets())).to_canonical(),
                port.get(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn octets_and_words_round_trip() {
        let octets = "2001:db8:1:2:3:4:5:6".parse::<Ipv6Addr>().unwrap().octets();
        let addr = Addr::from_v6(octets);
        assert_eq!(addr.octets(), octets);
        assert_eq!(Addr::from_words(addr.words()), addr);
    }

    #[test]
    fn loopback_is_what_stays_on_this_host() {
        let v4 = |text: &str| Addr::from_v4(text.parse::<Ipv4Addr>().unwrap().octets());
        let v6 = |text: &str| Addr::from_v6(text.parse::<Ipv6Addr>().unwrap().octets());
        for addr in [
            v4("127.0.0.1"),
            v4("127.255.255.254"),
            v4("0.0.0.0"),
            v6("::1"),
            v6("::"),
            v6("::ffff:127.0.0.1"),
        ] {
            assert!(addr.is_loopback(), "{addr:?}");
        }
        for addr in [v4("128.0.0.1"), v4("10.0.0.1"), v6("::2"), v6("fe80::1")] {
            assert!(!addr.is_loopback(), "{addr:?}");
        }
    }
}
