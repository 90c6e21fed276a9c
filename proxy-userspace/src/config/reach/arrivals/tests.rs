use std::{net::IpAddr, time::Duration};

use proptest::{prelude::*, sample::select};

use super::*;
use crate::rule::{FailMode, PathChoice, ReverseVia};

const NETS: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/30",
    "10.0.0.0/31",
    "10.0.0.2/31",
    "10.0.0.0/32",
    "10.0.0.1/32",
    "::/0",
    "2001:db8::/127",
    "2001:db8::1/128",
];
const ADDRESSES: [&str; 7] = [
    "10.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "192.0.2.1",
    "2001:db8::",
    "2001:db8::1",
];
const SOURCES: [&str; 3] = ["10.0.0.0/8", "10.0.0.0/9", "0.0.0.0/0"];
const CLIENTS: [&str; 3] = ["10.1.0.0", "10.128.0.0", "11.0.0.0"];
const INTERFACES: [&str; 2] = ["eth0", "eth1"];

fn rule(listen: Vec<Listen>, source: Selector<IpNet>, interface: Selector<String>) -> Reverse {
    Reverse {
        name: "rule".into(),
        listen,
        source,
        interface,
        via: ReverseVia::Original,
        names: None,
        connect_timeout: Duration::from_secs(1),
        accept_proxy: Vec::new(),
        send_proxy: None,
        keep_source: false,
        on_relay_failure: FailMode::Direct,
        path: PathChoice::Auto,
        steer: false,
    }
}

fn listen() -> impl Strategy<Value = Listen> {
    (select(&NETS[..]), 1..5_u16, 0..4_u16).prop_map(|(net, first, more)| Listen {
        net: net.parse().unwrap(),
        ports: first..=(first + more).min(4),
    })
}

fn selector<T: Clone + std::fmt::Debug>(
    value: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Selector<T>> {
    let include = prop::collection::vec(value.clone(), 0..2);
    (include, prop::collection::vec(value, 0..2))
        .prop_map(|(include, exclude)| Selector { include, exclude })
}

fn rules() -> impl Strategy<Value = Vec<Reverse>> {
    let net = select(&SOURCES[..]).prop_map(|net| net.parse::<IpNet>().unwrap());
    let interface = select(&INTERFACES[..]).prop_map(str::to_owned);
    let one = (
        prop::collection::vec(listen(), 1..4),
        prop_oneof![2 => Just(Selector::default()), 1 => selector(net)],
        prop_oneof![2 => Just(Selector::default()), 1 => selector(interface)],
    )
        .prop_map(|(listen, source, interface)| rule(listen, source, interface));
    prop::collection::vec(one, 1..5)
}

/// Which rule decides, spelled out.
fn decides(rules: &[Reverse], to: IpAddr, port: u16, from: IpAddr, by: &str) -> Option<usize> {
    let all = rules.iter().enumerate().flat_map(|(index, rule)| {
        let listening = rule
            .listen
            .iter()
            .filter(move |one| one.net.contains(&to) && one.ports.contains(&port));
        listening.map(move |one| {
            let width = one.ports.end() - one.ports.start();
            ((Descending(one.net.prefix_len()), width, index), rule)
        })
    });
    let matching = all.filter(|(_, rule)| {
        rule.source.selects(|net| net.contains(&from)) && rule.interface.selects(|name| name == by)
    });
    matching
        .min_by_key(|(order, _)| *order)
        .map(|((.., index), _)| index)
}

fn placed(rules: &[Reverse]) -> Vec<PlacedReverse> {
    let place = |rule: &Reverse| PlacedReverse {
        rule: rule.clone(),
        name: 0..0,
        keep_source: 0..0,
    };
    rules.iter().map(place).collect()
}

fn dead(rules: &[Reverse]) -> BTreeSet<usize> {
    let placed = placed(rules);
    let (areas, mut reach) = (Areas::of(&placed), Reach::of(&placed));
    let is_dead = |(index, rule): &(usize, &Reverse)| {
        nothing(rule).is_some() || areas.takers(*index, rule, &mut reach).is_some()
    };
    rules
        .iter()
        .enumerate()
        .filter(is_dead)
        .map(|(index, _)| index)
        .collect()
}

proptest! {
    #[test]
    fn a_rule_that_is_said_to_be_dead_never_decides(rules in rules()) {
        let dead = dead(&rules);
        for to in ADDRESSES {
            for port in 1..=4 {
                for from in CLIENTS {
                    for by in INTERFACES {
                        let (to, from) = (to.parse().unwrap(), from.parse().unwrap());
                        let decided = decides(&rules, to, port, from, by);
                        prop_assert!(
                            decided.is_none_or(|index| !dead.contains(&index)),
                            "{decided:?} of {dead:?} for {to}:{port} from {from} by {by}"
                        );
                    }
                }
            }
        }
    }
}

fn listening(of: &[&[&str]]) -> Vec<Reverse> {
    let listens = |texts: &&[&str]| {
        let texts = texts
            .iter()
            .map(|text| crate::config::listens_of(text).unwrap());
        let listen = texts.flatten().collect();
        rule(listen, Selector::default(), Selector::default())
    };
    of.iter().map(listens).collect()
}

#[test]
fn a_rule_without_a_place_of_its_own_is_dead() {
    let of = |of: &[&[&str]]| dead(&listening(of)).into_iter().collect::<Vec<_>>();
    assert_eq!(of(&[&["*:80"], &["*:80"]]), [1]);
    assert_eq!(of(&[&["*:80"], &["0.0.0.0:80"], &["*:1-100"]]), [1]);
    // Where the specific comes in the file does not matter.
    assert_eq!(
        of(&[&["10.0.0.0/31:80"], &["10.0.0.0:80"], &["10.0.0.1:80"]]),
        [0]
    );
    assert_eq!(of(&[&["*:80-81"], &["*:80"], &["*:81"]]), [0]);
    assert_eq!(of(&[&["*:80-82"], &["*:80"], &["*:82"]]), [0; 0]);
    assert_eq!(of(&[&["*:80", "*:81"], &["*:80"], &["*:81", "*:82"]]), [1]);
    // `[::]` is one family.
    assert_eq!(of(&[&["[::]:80"], &["0.0.0.0:80"]]), [0; 0]);
}

#[test]
fn thousands_of_addresses_take_no_time() {
    let addresses: Vec<String> = (0..20_000_u32)
        .map(|at| format!("10.{}.{}.{}:80-90", at >> 16, at >> 8 & 255, at & 255))
        .collect();
    let all: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let wide: &[&str] = &["*:1-65535", "10.0.0.0/8:80"];
    let begun = std::time::Instant::now();
    assert_eq!(dead(&listening(&[&all, wide, &all])), [2].into());
    // A square of them would be minutes.
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
}
