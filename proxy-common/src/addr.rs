//! Addresses as the maps hold them: always 16 bytes, IPv4 in its IPv4-mapped form (RFC 4291 section 2.5.5.2).

/// An IPv4 or IPv6 address in network byte order; IPv4 as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// From the four bytes of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// From an IPv4 address as the kernel holds it: the four bytes in memory order, read as a native `u32`.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_word(word: u32) -> Self {
        Self::from_v4(word.to_ne_bytes())
    }

    /// From an IPv6 address as the kernel holds it: four words in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; 4]) -> Self {
        let [a, b, c, d] = words;
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_ne_bytes(), b.to_ne_bytes());
        let ([c0, c1, c2, c3], [d0, d1, d2, d3]) = (c.to_ne_bytes(), d.to_ne_bytes());
        Self([
            a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3,
        ])
    }

    /// The four words in memory order, as the kernel's context structs take them.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        let [
            a0,
            a1,
            a2,
            a3,
            b0,
            b1,
            b2,
            b3,
            c0,
            c1,
            c2,
            c3,
            d0,
            d1,
            d2,
            d3,
        ] = self.0;
        [
            u32::from_ne_bytes([a0, a1, a2, a3]),
            u32::from_ne_bytes([b0, b1, b2, b3]),
            u32::from_ne_bytes([c0, c1, c2, c3]),
            u32::from_ne_bytes([d0, d1, d2, d3]),
        ]
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words();
        a == 0 && b == 0 && c == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Whether a connection to it stays on this host: `127.0.0.0/8`, `::1` and the unspecified addresses,
    /// which `connect()` takes for loopback.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words();
        if self.is_v4() {
            d == 0 || d.to_ne_bytes()[0] == 127
        } else {
            a == 0 && b == 0 && c == 0 && (d == 0 || d == u32::from_ne_bytes([0, 0, 0, 1]))
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

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn words_round_trip() {
        let addr = Addr("2001:db8::42".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(Addr::from_words(addr.words()), addr);
    }

    #[test]
    fn loopback_is_what_stays_on_this_host() {
        let v4 = |text: &str| Addr::from_v4(text.parse::<Ipv4Addr>().unwrap().octets());
        let v6 = |text: &str| Addr(text.parse::<Ipv6Addr>().unwrap().octets());
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
