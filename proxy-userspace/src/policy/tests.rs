//! `decide` over compiled tables against a naive reading of the rules.

mod arrivals;
mod reasons;
mod transits;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::PathBuf,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::{collection::vec, prelude::*, sample::select};
use proxy_common::{Addr, BePort, Decision, RuleRef, Subject, decide};

use super::{CgroupRef, Compiled, ExeRef, Names, action, compile, memory::MemoryTables};
use crate::rule::{Departure, FailMode, Match, PathChoice, Roles, Rule, Selector, Via};

const GENERATION: u32 = 7;

fn tables(compiled: &Compiled) -> MemoryTables {
    let prefixes: HashMap<_, _> = compiled.prefixes.iter().copied().collect();
    assert_eq!(
        prefixes.len(),
        compiled.prefixes.len(),
        "a prefix is listed twice"
    );
    MemoryTables::new(GENERATION, compiled)
}

#[derive(Clone, Debug)]
struct Caller {
    dest: IpAddr,
    port: u16,
    uid: u32,
    gid: u32,
    /// Ids from the root down.
    cgroups: Vec<u64>,
    exe: Option<ExeRef>,
    root_pid: Option<u32>,
}

impl Subject for Caller {
    fn dest(&self) -> Addr {
        self.dest.into()
    }
    fn port(&self) -> BePort {
        BePort::new(self.port)
    }
    fn uid(&self) -> u32 {
        self.uid
    }
    fn gid(&self) -> u32 {
        self.gid
    }
    fn cgroup(&self, level: u32) -> u64 {
        self.cgroups.get(level as usize).copied().unwrap_or(0)
    }
    fn exe(&self) -> Option<(u64, u64)> {
        self.exe.map(|exe| (exe.inode, exe.device))
    }
    fn descends_from(&self) -> Option<u32> {
        self.root_pid
    }
}

/// What the configuration's documentation says, rule by rule.
fn naive(rules: &[Rule], names: &Names, caller: &Caller) -> Option<usize> {
    let dest = match caller.dest {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(caller.dest, IpAddr::V4),
        IpAddr::V4(_) => caller.dest,
    };
    let is_loopback = dest.is_loopback() || dest.is_unspecified();
    rules.iter().position(|rule| {
        let m = &rule.matches;
        let names_loopback = m.dest.include.iter().any(|net| {
            net.contains(&dest)
                && match net {
                    IpNet::V4(v4) => {
                        v4.network().is_loopback() && v4.prefix_len() >= 8
                            || *net == IpNet::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
                    }
                    IpNet::V6(v6) => v6.prefix_len() == 128,
                }
        });
        m.dest.selects(|net| net.contains(&dest))
            && (!is_loopback || names_loopback)
            && m.port.selects(|range| range.contains(&caller.port))
            && m.uid.selects(|range| range.contains(&caller.uid))
            && m.gid.selects(|range| range.contains(&caller.gid))
            && m.cgroup.selects(|reference| {
                names.cgroups.get(reference).is_some_and(|found| {
                    found
                        .iter()
                        .any(|cgroup| caller.cgroup(cgroup.level) == cgroup.id)
                })
            })
            && m.exe.selects(|path| {
                caller.exe.is_some_and(|exe| {
                    names
                        .exes
                        .get(path)
                        .is_some_and(|found| found.contains(&exe))
                })
            })
            && m.pid.selects(|pid| caller.root_pid == Some(*pid))
    })
}

pub(super) fn selector<T: Clone + std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + Clone + 'static,
) -> impl Strategy<Value = Selector<T>> {
    prop_oneof![
        2 => Just(Selector::default()),
        3 => (vec(value.clone(), 0..4), vec(value, 0..3))
            .prop_map(|(include, exclude)| Selector { include, exclude }),
    ]
}

/// Addresses from a small space, so that prefixes nest and meet.
fn address() -> impl Strategy<Value = IpAddr> + Clone {
    let v4 = (
        select(vec![0u8, 10, 127, 128]),
        select(vec![0u8, 1, 128]),
        select(vec![0u8, 255]),
        0..4u8,
    )
        .prop_map(|(a, b, c, d)| IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
    let v6 = (select(vec![0u16, 0x2001, 0xfe80]), 0..2u16, 0..3u16)
        .prop_map(|(a, b, h)| IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, h)));
    prop_oneof![3 => v4, 2 => v6]
}

fn net() -> impl Strategy<Value = IpNet> + Clone {
    (address(), 0..=128u8).prop_map(|(addr, len)| match addr {
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new_assert(v4, len.min(32)).trunc()),
        IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new_assert(v6, len).trunc()),
    })
}

fn range<T: Copy + Ord + std::fmt::Debug + 'static>(
    values: Vec<T>,
) -> impl Strategy<Value = RangeInclusive<T>> + Clone {
    (select(values.clone()), select(values)).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

const PORTS: [u16; 7] = [0, 1, 80, 443, 1023, 8080, u16::MAX];
const IDS: [u32; 6] = [0, 1, 999, 1000, 65534, u32::MAX];

fn matches() -> impl Strategy<Value = Match> {
    (
        selector(select(vec!["a", "a/b", "c", "gone"]).prop_map(str::to_owned)),
        selector(select(vec!["/bin/x", "/bin/y", "/bin/gone"]).prop_map(PathBuf::from)),
        selector(range(IDS.to_vec())),
        selector(range(IDS.to_vec())),
        selector(10..13u32),
        selector(net()),
        selector(range(PORTS.to_vec())),
    )
        .prop_map(|(cgroup, exe, uid, gid, pid, dest, port)| Match {
            cgroup,
            exe,
            uid,
            gid,
            pid,
            dest,
            port,
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    let via = select(vec![Via::Direct, Via::Refuse, Via::Upstream("corp".into())]);
    (matches(), via, any::<bool>()).prop_map(|(matches, via, refuse)| Rule {
        name: "rule".into(),
        matches,
        via,
        on_relay_failure: if refuse {
            FailMode::Refuse
        } else {
            FailMode::Direct
        },
        path: PathChoice::Auto,
        rewrite: false,
        from: Departure::Host,
    })
}

fn names() -> Names {
    let cgroup = |id, level| CgroupRef { id, level };
    let exe = |inode| ExeRef { inode, device: 9 };
    Names {
        cgroups: BTreeMap::from([
            ("a".to_owned(), vec![cgroup(100, 1)]),
            ("a/b".to_owned(), vec![cgroup(101, 2)]),
            ("c".to_owned(), vec![cgroup(102, 1), cgroup(103, 3)]),
        ]),
        exes: BTreeMap::from([
            (PathBuf::from("/bin/x"), vec![exe(1), exe(2)]),
            (PathBuf::from("/bin/y"), vec![exe(3)]),
        ]),
        ..Names::default()
    }
}

fn caller() -> impl Strategy<Value = Caller> {
    let cgroups = select(vec![
        vec![1],
        vec![1, 100],
        vec![1, 100, 101],
        vec![1, 102, 7, 103],
        vec![1, 100, 7, 103],
    ]);
    let exe = proptest::option::of((1..4u64).prop_map(|inode| ExeRef { inode, device: 9 }));
    let pid = proptest::option::of(9..14u32);
    (
        address(),
        select(PORTS.to_vec()),
        select(IDS.to_vec()),
        select(IDS.to_vec()),
        cgroups,
        exe,
        pid,
    )
        .prop_map(|(dest, port, uid, gid, cgroups, exe, root_pid)| Caller {
            dest,
            port,
            uid,
            gid,
            cgroups,
            exe,
            root_pid,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn decides_as_the_rules_read(rules in vec(rule(), 0..12), callers in vec(caller(), 16)) {
        let names = names();
        let tables = tables(&compile(Roles::from(rules.as_slice()), &names).unwrap());
        for caller in callers {
            let expected = match naive(&rules, &names, &caller) {
                None => Decision::Unselected,
                Some(index) => Decision::Selected(
                    RuleRef { generation: GENERATION, index: u32::try_from(index).unwrap() },
                    action(&rules[index]),
                ),
            };
            prop_assert_eq!(decide(&tables, &caller), expected, "{:?}", caller);
        }
    }
}

#[test]
fn a_mapped_prefix_is_the_ipv4_prefix() {
    let rules = [Rule {
        name: "mapped".into(),
        matches: Match {
            dest: Selector {
                include: vec!["::ffff:10.0.0.0/104".parse().unwrap()],
                exclude: Vec::new(),
            },
            ..Match::default()
        },
        via: Via::Refuse,
        on_relay_failure: FailMode::Direct,
        path: PathChoice::Auto,
        rewrite: false,
        from: Departure::Host,
    }];
    let tables = tables(&compile(Roles::from(rules.as_slice()), &Names::default()).unwrap());
    for dest in ["10.1.2.3", "::ffff:10.1.2.3"] {
        let caller = Caller {
            dest: dest.parse().unwrap(),
            port: 80,
            uid: 0,
            gid: 0,
            cgroups: vec![1],
            exe: None,
            root_pid: None,
        };
        assert!(
            matches!(decide(&tables, &caller), Decision::Selected(..)),
            "{dest}"
        );
    }
}
