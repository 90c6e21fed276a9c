//! `select` over compiled tables against a naive reading of the rules.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::{collection::vec, prelude::*, sample::select as one_of};
use proxy_common::{
    Addr, Arrival, BePort, Decision, MAX_CANDIDATES, MAX_DEPTH, MAX_HOSTS, MAX_PORTS, MAX_RULES,
    RuleRef, select,
};

use super::super::{CompileError, Names, arrival_action, compile, memory::MemoryTables};
use crate::rule::{FailMode, Listen, PathChoice, Reverse, ReverseVia, Roles, Selector};

const GENERATION: u32 = 3;

#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    local: IpAddr,
    port: u16,
    source: IpAddr,
    interface: u32,
}

impl Arrival for Incoming {
    fn local(&self) -> Addr {
        self.local.into()
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

/// What the documentation says: of all that listens there and takes connections from there, the longest prefix, then the
/// narrowest ports, then the first in the file.
pub(super) fn naive(rules: &[Reverse], names: &Names, incoming: &Incoming) -> Option<usize> {
    let takes = |rule: &Reverse| {
        rule.source.selects(|net| net.contains(&incoming.source))
            && rule
                .interface
                .selects(|name| names.interfaces.get(name) == Some(&Some(incoming.interface)))
    };
    let mut found: Vec<(u8, u16, usize)> = Vec::new();
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| takes(rule)) {
        for listen in &rule.listen {
            if listen.net.contains(&incoming.local) && listen.ports.contains(&incoming.port) {
                let width = listen.ports.end() - listen.ports.start();
                found.push((u8::MAX - listen.net.prefix_len(), width, index));
            }
        }
    }
    found.into_iter().min().map(|(_, _, index)| index)
}

pub(super) fn names() -> Names {
    Names {
        interfaces: BTreeMap::from([
            ("eth0".to_owned(), Some(2)),
            ("eth1".to_owned(), Some(3)),
            ("gone".to_owned(), None),
        ]),
        ..Names::default()
    }
}

/// From a small space, so that prefixes nest and meet.
fn address() -> impl Strategy<Value = IpAddr> + Clone {
    let byte = || one_of(vec![0u8, 1, 128, 255]);
    let v4 = (byte(), byte()).prop_map(|(a, b)| Ipv4Addr::new(10, 0, a, b).into());
    let v6 = (byte(), byte())
        .prop_map(|(a, b)| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, a.into(), b.into()).into());
    prop_oneof![3 => v4, 2 => v6]
}

fn net() -> impl Strategy<Value = IpNet> + Clone {
    (address(), 0..=32u8).prop_map(|(address, bits)| match address {
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new(v4, 32 - bits).unwrap().trunc()),
        IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new(v6, 128 - bits * 4).unwrap().trunc()),
    })
}

fn ports() -> impl Strategy<Value = RangeInclusive<u16>> + Clone {
    let port = || one_of(vec![1u16, 79, 80, 81, 443, 1000, 65535]);
    (port(), port()).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

pub(super) fn rule() -> impl Strategy<Value = Reverse> {
    let listen = (net(), ports()).prop_map(|(net, ports)| Listen { net, ports });
    let interface = one_of(vec![
        "eth0".to_owned(),
        "eth1".to_owned(),
        "gone".to_owned(),
    ]);
    let via = one_of(vec![
        ReverseVia::Direct,
        ReverseVia::Refuse,
        ReverseVia::Original,
    ]);
    (
        vec(listen, 1..4),
        super::selector(net()),
        super::selector(interface),
        via,
        any::<bool>(),
    )
        .prop_map(|(listen, source, interface, via, refuse)| Reverse {
            name: "rule".into(),
            listen,
            source,
            interface,
            via,
            connect_timeout: Duration::from_secs(1),
            names: None,
            accept_proxy: Vec::new(),
            send_proxy: None,
            keep_source: false,
            on_relay_failure: if refuse {
                FailMode::Refuse
            } else {
                FailMode::Direct
            },
            path: PathChoice::Auto,
            steer: false,
        })
}

pub(super) fn incoming() -> impl Strategy<Value = Incoming> {
    let port = one_of(vec![1u16, 2, 79, 80, 81, 82, 443, 999, 1000, 1001, 65535]);
    (address(), port, address(), 1..4u32).prop_map(|(local, port, source, interface)| Incoming {
        local,
        port,
        source,
        interface,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]
    #[test]
    fn select_agrees_with_the_documentation(
        rules in vec(rule(), 0..8),
        arrivals in vec(incoming(), 1..24),
    ) {
        let names = names();
        // What is nested deeper than the tables hold is refused, which is tested on its own.
        let Ok(compiled) = compile(Roles::from(rules.as_slice()), &names) else { return Ok(()) };
        let hosts: HashSet<_> = compiled.hosts.iter().map(|(host, _)| *host).collect();
        prop_assert_eq!(hosts.len(), compiled.hosts.len(), "an address is listed twice");
        let keys: HashSet<_> = compiled.areas.iter().map(|(prefix, _)| *prefix).collect();
        prop_assert_eq!(keys.len(), compiled.areas.len(), "a prefix is listed twice");
        let all = || compiled.ports.iter().chain(&compiled.cells);
        let cells: HashSet<_> = all().map(|(prefix, _)| *prefix).collect();
        prop_assert_eq!(cells.len(), all().count(), "a cell is listed twice");
        for tables in [
            MemoryTables::new(GENERATION, &compiled),
            MemoryTables::for_arrivals(GENERATION, &compiled),
        ] {
            for incoming in &arrivals {
                let expected = match naive(&rules, &names, incoming) {
                    None => Decision::Unselected,
                    Some(index) => Decision::Selected(
                        RuleRef { generation: GENERATION, index: u32::try_from(index).unwrap() },
                        arrival_action(&rules[index]),
                    ),
                };
                prop_assert_eq!(select(&tables, incoming), expected, "{:?}", incoming);
            }
        }
    }
}

fn listening(listen: Vec<Listen>) -> Reverse {
    Reverse {
        name: "rule".into(),
        listen,
        source: Selector::default(),
        interface: Selector::default(),
        via: ReverseVia::Original,
        connect_timeout: Duration::from_secs(1),
        names: None,
        accept_proxy: Vec::new(),
        send_proxy: None,
        keep_source: false,
        on_relay_failure: FailMode::Direct,
        path: PathChoice::Auto,
        steer: false,
    }
}

fn on(net: &str, ports: RangeInclusive<u16>) -> Listen {
    let net = net.parse().unwrap();
    Listen { net, ports }
}

#[test]
fn tables_grow_with_the_file_and_not_with_its_square() {
    let exact = (0..10_000u32).map(|number| {
        let address = Ipv4Addr::from(0x0a00_0000 + number);
        Listen {
            net: IpAddr::V4(address).into(),
            ports: 443..=443,
        }
    });
    // Each of these lies around all of those.
    let wide = (0..100u16).map(|number| on("10.0.0.0/8", 1000 + number * 2..=1000 + number * 2));
    let rules = [listening(exact.collect()), listening(wide.collect())];
    let compiled = compile(Roles::from(rules.as_slice()), &Names::default()).unwrap();
    assert_eq!(compiled.hosts.len(), 10_000);
    assert!(compiled.areas.len() <= 3, "{}", compiled.areas.len());
    // The addresses are alike.
    let cells = compiled.ports.len() + compiled.cells.len();
    assert!(cells <= 101, "{cells}");
}

#[test]
fn addresses_beyond_the_hash_are_found_all_the_same() {
    let addresses = 0x0a00_0000..0x0a00_0000 + u32::try_from(MAX_HOSTS).unwrap() + 100;
    // No two are alike, so there are as many ports.
    let port = |bits: u32| 1024 + u16::try_from(bits - addresses.start).unwrap();
    let exact = addresses.clone().map(|bits| Listen {
        net: IpAddr::V4(bits.into()).into(),
        ports: port(bits)..=port(bits),
    });
    let rules = [listening(exact.collect())];
    let compiled = compile(Roles::from(rules.as_slice()), &Names::default()).unwrap();
    assert_eq!(compiled.hosts.len(), MAX_HOSTS);
    assert_eq!(
        (compiled.ports.len(), compiled.cells.len()),
        (MAX_PORTS, 100)
    );
    let tables = MemoryTables::new(GENERATION, &compiled);
    for bits in [addresses.start, addresses.end - 1, addresses.end] {
        let incoming = Incoming {
            local: IpAddr::V4(bits.into()),
            port: port(bits),
            source: Ipv4Addr::LOCALHOST.into(),
            interface: 1,
        };
        let is_selected = select(&tables, &incoming) != Decision::Unselected;
        assert_eq!(is_selected, bits < addresses.end);
    }
}

#[test]
fn one_more_than_the_tables_hold_is_refused() {
    let names = Names::default();
    let nested = |count: usize| {
        let lengths = (0..count).map(|depth| on(&format!("0.0.0.0/{}", depth + 1), 80..=80));
        compile(
            Roles::from([listening(lengths.collect())].as_slice()),
            &names,
        )
        .map(drop)
    };
    assert_eq!(nested(MAX_DEPTH), Ok(()));
    assert!(matches!(
        nested(MAX_DEPTH + 1),
        Err(CompileError::TooManyPrefixes { .. })
    ));
    let alike = |count: usize| {
        let rules = vec![listening(vec![on("192.0.2.1/32", 80..=80)]); count];
        compile(Roles::from(rules.as_slice()), &names).map(drop)
    };
    assert_eq!(alike(MAX_CANDIDATES), Ok(()));
    assert!(matches!(
        alike(MAX_CANDIDATES + 1),
        Err(CompileError::TooManyListeners { port: 80, .. })
    ));
    assert!(matches!(
        alike(MAX_RULES + 1),
        Err(CompileError::TooManyRules(_))
    ));
}
