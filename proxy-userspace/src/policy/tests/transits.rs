//! `transit` over compiled tables against a naive reading of the rules.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::{collection::vec, prelude::*, sample::select as one_of};
use proxy_common::{Addr, BePort, Decision, RuleRef, Transit, transit};

use super::super::{Names, compile, memory::MemoryTables, transit_action};
use crate::rule::{FailMode, Gateway, PathChoice, ReverseVia, Roles};

const GENERATION: u32 = 4;

#[derive(Clone, Copy, Debug)]
struct Passing {
    source: IpAddr,
    dest: IpAddr,
    port: u16,
    interface: u32,
}

impl Transit for Passing {
    fn dest(&self) -> Addr {
        self.dest.into()
    }
    fn port(&self) -> BePort {
        BePort::new(self.port)
    }
    fn source(&self) -> Addr {
        self.source.into()
    }
    fn interface(&self) -> u32 {
        self.interface
    }
}

/// What the documentation says: the first rule whose selectors hold.
fn naive(rules: &[Gateway], names: &Names, passing: &Passing) -> Option<usize> {
    rules.iter().position(|rule| {
        let number = |name: &String| names.interfaces.get(name).copied().flatten();
        let mut interfaces = rule.interface.iter().filter_map(number);
        interfaces.any(|number| number == passing.interface)
            && rule.source.selects(|net| net.contains(&passing.source))
            && rule.dest.selects(|net| net.contains(&passing.dest))
            && rule.port.selects(|ports| ports.contains(&passing.port))
    })
}

fn names() -> Names {
    Names {
        interfaces: BTreeMap::from([
            ("eth0".to_owned(), Some(2)),
            ("eth1".to_owned(), Some(3)),
            ("gone".to_owned(), None),
        ]),
        ..Names::default()
    }
}

/// From a small space, loopback included, which is an address like any other here.
fn address() -> impl Strategy<Value = IpAddr> + Clone {
    let byte = || one_of(vec![0u8, 1, 127]);
    let v4 = (one_of(vec![10u8, 127]), byte(), byte())
        .prop_map(|(net, a, b)| Ipv4Addr::new(net, 0, a, b).into());
    let v6 = byte().prop_map(|a| Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, a.into()).into());
    prop_oneof![3 => v4, 2 => v6]
}

fn net() -> impl Strategy<Value = IpNet> + Clone {
    (address(), 0..=32u8).prop_map(|(address, bits)| match address {
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new(v4, 32 - bits).unwrap().trunc()),
        IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new(v6, 128 - bits.min(8)).unwrap().trunc()),
    })
}

fn ports() -> impl Strategy<Value = RangeInclusive<u16>> + Clone {
    let port = || one_of(vec![1u16, 80, 443, 65535]);
    (port(), port()).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

fn rule() -> impl Strategy<Value = Gateway> {
    let interface = one_of(vec!["eth0", "eth1", "gone"]);
    let vias = vec![ReverseVia::Direct, ReverseVia::Refuse, ReverseVia::Original];
    (
        vec(interface, 1..3),
        super::selector(net()),
        super::selector(net()),
        super::selector(ports()),
        one_of(vias),
        one_of(vec![FailMode::Direct, FailMode::Refuse]),
    )
        .prop_map(
            |(interface, source, dest, port, via, on_relay_failure)| Gateway {
                name: "rule".into(),
                interface: interface.into_iter().map(str::to_owned).collect(),
                source,
                dest,
                port,
                via,
                names: None,
                connect_timeout: Duration::from_secs(1),
                keep_source: false,
                on_relay_failure,
                path: PathChoice::Auto,
            },
        )
}

fn passing() -> impl Strategy<Value = Passing> {
    let port = one_of(vec![1u16, 2, 80, 81, 443, 65535]);
    (address(), address(), port, 1..4u32).prop_map(|(source, dest, port, interface)| Passing {
        source,
        dest,
        port,
        interface,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]
    #[test]
    fn transit_agrees_with_the_documentation(
        rules in vec(rule(), 0..8),
        seen in vec(passing(), 1..24),
    ) {
        let names = names();
        let roles = Roles { gateway: &rules, ..Roles::default() };
        let compiled = compile(roles, &names).unwrap();
        for tables in [
            MemoryTables::new(GENERATION, &compiled),
            MemoryTables::for_transits(GENERATION, &compiled),
        ] {
            for passing in &seen {
                let expected = match naive(&rules, &names, passing) {
                    None => Decision::Unselected,
                    Some(index) => Decision::Selected(
                        RuleRef { generation: GENERATION, index: u32::try_from(index).unwrap() },
                        transit_action(&rules[index]),
                    ),
                };
                prop_assert_eq!(transit(&tables, passing), expected, "{:?}", passing);
            }
        }
    }
}
