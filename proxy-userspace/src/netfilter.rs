//! What netfilter and `IPsec` have to say about packets that pass through: the fast path keeps them from both.

use std::{fs, io};

use crate::netlink::{Chain, IpsecPolicy};

/// Of `NFPROTO_…`.
const INET: u8 = 1;
const IPV4: u8 = 2;
const NETDEV: u8 = 5;
const IPV6: u8 = 10;
/// Of `enum nf_inet_hooks`.
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
/// The only one of `NETDEV` that packets meet on their way in, and the one of `INET` that is the same.
const DEVICE_INGRESS: u32 = 0;
const INET_INGRESS: u32 = 5;

/// What packets that pass through would meet in the network namespace of this thread: chains of nftables that have rules, or drop, and
/// tables of the older iptables, which do not tell what is in them. Also of what comes before and after forwarding: there
/// addresses are translated.
///
/// # Errors
/// When the kernel does not tell.
pub fn on_the_way() -> io::Result<Vec<String>> {
    let chains = Chain::all()?;
    let chains = chains.iter().filter(|chain| is_on_the_way(chain));
    let mut found: Vec<_> = chains.map(name).collect();
    for (tool, file) in [("iptables", "ip"), ("ip6tables", "ip6")] {
        // Without the older iptables there is no such file.
        let tables = fs::read_to_string(format!("/proc/thread-self/net/{file}_tables_names"));
        let tables = tables.unwrap_or_default();
        found.extend(tables.lines().map(|table| format!("{tool} table {table}")));
    }
    Ok(found)
}

/// Policies of `IPsec` for what passes through, or is sent: packets would be sent past them, in clear.
///
/// # Errors
/// When the kernel does not tell.
pub fn ipsec_on_the_way() -> io::Result<Vec<String>> {
    let policies = IpsecPolicy::all()?.into_iter();
    let met = policies
        .filter(|policy| [IpsecPolicy::OUT, IpsecPolicy::FORWARD].contains(&policy.direction));
    Ok(met
        .map(|policy| format!("ip xfrm policy {policy}"))
        .collect())
}

fn is_on_the_way(chain: &Chain) -> bool {
    let is_met = match chain.family {
        INET | IPV4 | IPV6 => {
            matches!(chain.hook, PREROUTING | FORWARD | POSTROUTING)
                || (chain.family == INET && chain.hook == INET_INGRESS)
        }
        NETDEV => chain.hook == DEVICE_INGRESS,
        _ => false,
    };
    is_met && (chain.drops || chain.rules > 0)
}

fn name(chain: &Chain) -> String {
    let family = match chain.family {
        INET => "inet",
        IPV4 => "ip",
        IPV6 => "ip6",
        _ => "netdev",
    };
    format!("nftables chain {family} {} {}", chain.table, chain.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_count_that_do_something_to_what_passes_through() {
        let is_on = |family, hook, drops, rules| {
            is_on_the_way(&Chain {
                family,
                hook,
                drops,
                rules,
                ..Chain::default()
            })
        };
        for family in [INET, IPV4, IPV6] {
            for hook in [PREROUTING, FORWARD, POSTROUTING] {
                assert!(is_on(family, hook, false, 1));
                assert!(is_on(family, hook, true, 0));
                assert!(!is_on(family, hook, false, 0));
            }
            // Of what is for this host, or comes from it.
            for hook in [1, 3] {
                assert!(!is_on(family, hook, true, 1));
            }
        }
        assert!(is_on(INET, INET_INGRESS, false, 1));
        assert!(is_on(NETDEV, DEVICE_INGRESS, false, 1));
        // On the way out of a device, ARP, and bridges.
        assert!(!is_on(NETDEV, 1, false, 1));
        assert!(!is_on(3, 0, false, 1));
        assert!(!is_on(7, FORWARD, false, 1));
    }
}
