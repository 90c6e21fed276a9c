use std::{net::IpAddr, path::PathBuf};

use proptest::{prelude::*, sample::select};

use super::*;

/// A connection as the kernel sees it, for the meaning of a rule spelled out value by value.
#[derive(Clone, Debug)]
struct Flow {
    cgroup: &'static str,
    exe: &'static str,
    uid: u32,
    pid: u32,
    dest: IpAddr,
    port: u16,
}

const CGROUPS: [&str; 5] = ["a", "a/b", "a/b/c", "ab", "d"];
const EXES: [&str; 2] = ["/bin/a", "/bin/b"];
const ADDRESSES: [&str; 9] = [
    "0.0.0.0",
    "::",
    "10.0.0.1",
    "10.128.0.1",
    "11.0.0.1",
    "127.0.0.1",
    "127.1.0.1",
    "::1",
    "2001:db8::1",
];
const PREFIXES: [&str; 10] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/9",
    "10.128.0.0/9",
    "10.0.0.0/7",
    "127.0.0.0/8",
    "127.0.0.0/16",
    "::1/128",
    "::/0",
    "2001:db8::/32",
];

fn selects(rule: &Match, flow: &Flow) -> bool {
    let dest = IpNet::from(flow.dest);
    let loopback = is_loopback(&dest);
    let named = |prefix: &IpNet| is_loopback(prefix) && prefix.contains(&dest);
    let dest_selected = rule.dest.selects(|prefix| prefix.contains(&dest))
        && (!loopback || rule.dest.include.iter().any(named));
    dest_selected
        && rule.cgroup.selects(|cgroup| is_below(flow.cgroup, cgroup))
        && rule.exe.selects(|exe| exe == &PathBuf::from(flow.exe))
        && rule.uid.selects(|uids| uids.contains(&flow.uid))
        && rule.pid.selects(|pid| *pid == flow.pid)
        && rule.port.selects(|ports| ports.contains(&flow.port))
}

fn flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    for cgroup in CGROUPS {
        for exe in EXES {
            for address in ADDRESSES {
                for (uid, pid, port) in [(0, 1, 1), (1, 2, 2), (2, 1, 3), (1, 1, 1), (0, 2, 3)] {
                    let dest = address.parse().unwrap();
                    flows.push(Flow {
                        cgroup,
                        exe,
                        uid,
                        pid,
                        dest,
                        port,
                    });
                }
            }
        }
    }
    flows
}

fn selector<T: Clone + std::fmt::Debug + 'static>(
    values: impl Strategy<Value = T> + Clone + 'static,
) -> impl Strategy<Value = Selector<T>> {
    let include = prop::collection::vec(values.clone(), 0..3);
    let exclude = prop::collection::vec(values, 0..2);
    let some = (include, exclude).prop_map(|(include, exclude)| Selector { include, exclude });
    prop_oneof![Just(Selector::default()), some]
}

fn rules() -> impl Strategy<Value = Match> {
    let cgroup = selector(select(&CGROUPS[..]).prop_map(str::to_owned));
    let exe = selector(select(&EXES[..]).prop_map(PathBuf::from));
    let uid = selector((0..3_u32, 0..2_u32).prop_map(|(first, more)| first..=first + more));
    let pid = selector(1..3_u32);
    let dest = selector(select(&PREFIXES[..]).prop_map(|prefix| prefix.parse().unwrap()));
    let port = selector((1..4_u16, 0..3_u16).prop_map(|(first, more)| first..=first + more));
    (cgroup, exe, uid, pid, dest, port).prop_map(|(cgroup, exe, uid, pid, dest, port)| Match {
        cgroup,
        exe,
        uid,
        gid: Selector::default(),
        pid,
        dest,
        port,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn a_rule_that_covers_another_selects_its_flows(one in rules(), other in rules()) {
        let (first, second) = (Reach::of(&one), Reach::of(&other));
        // About one pair in fifteen; the others say nothing.
        let flows = if first.covers(&second) { flows() } else { Vec::new() };
        for flow in flows {
            prop_assert!(selects(&one, &flow) || !selects(&other, &flow), "{:?}", flow);
        }
    }

    #[test]
    fn a_rule_that_can_never_match_selects_nothing(rule in rules()) {
        let nothing = Reach::of(&rule).nothing("").is_some();
        let flows = if nothing { flows() } else { Vec::new() };
        for flow in flows {
            prop_assert!(!selects(&rule, &flow), "{:?}", flow);
        }
    }

    #[test]
    fn a_rule_covers_itself_and_whatever_is_narrower(rule in rules(), port in 1..4_u16) {
        let mut narrower = rule.clone();
        narrower.port.exclude.push(port..=port);
        prop_assert!(Reach::of(&rule).covers(&Reach::of(&rule)));
        prop_assert!(Reach::of(&rule).covers(&Reach::of(&narrower)));
    }

    #[test]
    fn destinations_are_compared_exactly(
        one in selector(select(&PREFIXES[..]).prop_map(|prefix| prefix.parse().unwrap())),
        other in selector(select(&PREFIXES[..]).prop_map(|prefix| prefix.parse().unwrap())),
    ) {
        // Between two neighbours of these edges no prefix above tells addresses apart.
        let edges = [
            "0.0.0.0", "0.0.0.1", "10.0.0.0", "10.128.0.0", "11.0.0.0", "12.0.0.0", "127.0.0.0", "127.1.0.0", "128.0.0.0",
            "::", "::1", "::2", "2001:db8::", "2001:db9::",
        ];
        let rule = |dest: &Selector<IpNet>| Match { dest: dest.clone(), ..Match::default() };
        let (one, other) = (rule(&one), rule(&other));
        let covered = edges.iter().all(|edge| {
            let dest = edge.parse().unwrap();
            let flow = Flow { cgroup: "", exe: "", uid: 0, pid: 1, dest, port: 1 };
            selects(&one, &flow) || !selects(&other, &flow)
        });
        prop_assert_eq!(Reach::of(&one).covers(&Reach::of(&other)), covered);
    }
}

fn cgroups(include: &[&str], exclude: &[&str]) -> Match {
    let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    Match {
        cgroup: Selector {
            include: owned(include),
            exclude: owned(exclude),
        },
        ..Match::default()
    }
}

#[test]
fn a_unit_is_related_to_itself_only() {
    let unit = cgroups(&["nginx.service"], &[]);
    let path = cgroups(&["system.slice/nginx.service"], &[]);
    assert!(Reach::of(&unit).covers(&Reach::of(&unit)));
    assert!(!Reach::of(&unit).covers(&Reach::of(&path)));
    assert!(!Reach::of(&path).covers(&Reach::of(&unit)));
    let but_unit = cgroups(&[], &["nginx.service"]);
    assert!(
        !Reach::of(&but_unit).covers(&Reach::of(&path)),
        "the path may be that of the unit"
    );
}

#[test]
fn exclusions_apart_from_a_rule_do_not_save_it() {
    let all_but = cgroups(&[], &["a/b"]);
    assert!(Reach::of(&all_but).covers(&Reach::of(&cgroups(&["c/d"], &[]))));
    assert!(!Reach::of(&all_but).covers(&Reach::of(&cgroups(&["a"], &[]))));
    assert!(!Reach::of(&all_but).covers(&Reach::of(&cgroups(&["a/b/c"], &[]))));
    assert!(!Reach::of(&all_but).covers(&Reach::of(&cgroups(&[], &[]))));
}
