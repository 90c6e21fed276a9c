//! Whether this host routes what comes in by an interface: without that nothing passes through.

use std::{fs, path::Path};

/// What an interface forwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// IPv4 (`net.ipv4.conf.NAME.forwarding`).
    pub v4: bool,
    /// IPv6 (`net.ipv6.conf.NAME.forwarding`).
    pub v6: bool,
}

impl Forwarding {
    /// Of an interface, or of `all`, in the network namespace of this thread. What is not there forwards nothing.
    #[must_use]
    pub fn of(interface: &str) -> Self {
        Self::below(Path::new("/proc/sys/net"), interface)
    }

    fn below(settings: &Path, interface: &str) -> Self {
        let is_on = |family: &str| {
            let path = settings.join(family).join("conf").join(interface);
            fs::read_to_string(path.join("forwarding")).is_ok_and(|text| text.trim() == "1")
        };
        Self {
            v4: is_on("ipv4"),
            v6: is_on("ipv6"),
        }
    }

    /// Whether it forwards anything.
    #[must_use]
    pub const fn any(self) -> bool {
        self.v4 || self.v6
    }

    /// In words.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match (self.v4, self.v6) {
            (true, true) => "IPv4 and IPv6",
            (true, false) => "IPv4 only",
            (false, true) => "IPv6 only",
            (false, false) => "nothing",
        }
    }
}

/// What an interface asks of the sources of IPv4 packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayBack {
    /// Nothing.
    None,
    /// That there is a way to them.
    Any,
    /// That it is this interface.
    Same,
}

/// What it does to packets that an interface asks for that: to be said of the interface.
pub const STRICT: &str = "what comes in there by another way than answers would leave by is dropped before culvert sees it";

/// What an interface asks of the sources of IPv4 packets (`net.ipv4.conf.NAME.rp_filter`).
#[must_use]
pub fn way_back(interface: &str) -> WayBack {
    let value = |interface: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse::<u8>().unwrap_or_default()
    };
    // The greater one counts (ip-sysctl.rst in the kernel's documentation).
    match value("all").max(value(interface)) {
        0 => WayBack::None,
        1 => WayBack::Same,
        _ => WayBack::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let of = |v4: &str, v6: &str| {
            for (family, value) in [("ipv4", v4), ("ipv6", v6)] {
                let place = directory.path().join(family).join("conf/eth1");
                fs::create_dir_all(&place).unwrap();
                fs::write(place.join("forwarding"), value).unwrap();
            }
            Forwarding::below(directory.path(), "eth1").label()
        };
        assert_eq!(of("1\n", "0\n"), "IPv4 only");
        assert_eq!(of("0\n", "1\n"), "IPv6 only");
        assert_eq!(of("0\n", "0\n"), "nothing");
        assert_eq!(of("1\n", "1\n"), "IPv4 and IPv6");
        assert!(!Forwarding::below(directory.path(), "eth2").any());
    }
}
