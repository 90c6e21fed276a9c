//! What a decision costs among a thousand endpoints: less than a microsecond, by every method.
//!
//! `pick` is the choice with the count of connections that belongs to it, `half` the same while every second endpoint is out.
//! `connection` and `connection, half` are all that is decided under a group's lock from the beginning of a connection to its end.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::panic,
    reason = "criterion's macros make functions without comments, and a benchmark fails by panicking"
)]

use std::{
    collections::VecDeque,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use criterion::{Criterion, criterion_group, criterion_main};
use proxy_userspace::{
    balance::{Balancer, Member, Method, hash::hash},
    group::{
        self, Address, Limits, Settings, Source,
        health::HealthRules,
        roster::{Admission, Roster},
    },
};

const ENDPOINTS: usize = 1000;
/// Connections that are open while one is decided about.
const OPEN: usize = 10_000;

fn balancer(method: Method) -> Balancer {
    let members: Vec<_> = (0..ENDPOINTS)
        .map(|at| Member {
            id: hash(&at.to_be_bytes()),
            weight: 1 + u32::try_from(at % 3).expect("a small number"),
        })
        .collect();
    Balancer::new(method, 1, &members)
}

fn decide(criterion: &mut Criterion, name: &str, set_up: fn(&mut Balancer)) {
    let mut group = criterion.benchmark_group(name);
    for (label, method) in Method::ALL {
        let mut balancer = balancer(method);
        set_up(&mut balancer);
        let now = Duration::from_secs(1);
        let mut open = vec![0; OPEN];
        for (at, place) in open.iter_mut().enumerate() {
            *place = balancer
                .pick(at as u64, now, |_| true)
                .expect("an endpoint");
            balancer.opened(*place);
        }
        let mut key = 0_u64;
        group.bench_function(label, |bencher| {
            bencher.iter(|| {
                key = key.wrapping_add(1);
                let at = balancer
                    .pick(black_box(key), now, |_| true)
                    .expect("an endpoint");
                balancer.opened(at);
                // One that has been open for a while ends.
                let oldest = usize::try_from(key).map_or(0, |key| key % OPEN);
                if let Some(place) = open.get_mut(oldest) {
                    balancer.closed(std::mem::replace(place, at));
                }
            });
        });
    }
    group.finish();
}

fn pick(criterion: &mut Criterion) {
    decide(criterion, "pick", |_| {});
}

fn half(criterion: &mut Criterion) {
    let half_is_out = |balancer: &mut Balancer| {
        for at in (0..ENDPOINTS).step_by(2) {
            balancer.set_share(at, 0);
        }
    };
    decide(criterion, "half", half_is_out);
}

fn address(at: usize) -> Address {
    let [.., high, low] = at.to_be_bytes();
    Address::Tcp(([10, 0, high, low], 80).into())
}

fn roster(method: Method, now: Duration) -> Roster {
    let members = (0..ENDPOINTS).map(|at| group::Member {
        source: Source::Address(address(at)),
        weight: 1 + u32::try_from(at % 3).expect("a small number"),
    });
    let settings = Settings {
        members: members.collect(),
        method,
        health: HealthRules::default(),
        check: None,
        limits: Limits::default(),
        send_proxy: None,
        keep_source: false,
        connect_timeout: Duration::from_secs(1),
    };
    Roster::new(Arc::new(settings), 1, now)
}

fn connections(criterion: &mut Criterion, name: &str, out: &[usize]) {
    let mut group = criterion.benchmark_group(name);
    let now = Duration::from_secs(1);
    for (label, method) in Method::ALL {
        let mut roster = roster(method, now);
        for at in out {
            let id = hash(address(*at).to_string().as_bytes());
            for _ in 0..100 {
                roster.checked(id, Err("it is out".into()), now);
            }
        }
        let client = |key: u64| {
            IpAddr::V4(Ipv4Addr::from_bits(
                u32::try_from(key % 5000).expect("it fits"),
            ))
        };
        let begin = |roster: &mut Roster, key: u64| {
            roster.arrive(client(key)).expect("there is no limit");
            match roster.admit(hash(&key.to_be_bytes()), now, &[]) {
                Admission::Chosen { id, .. } => {
                    roster.used(id, Ok(()), Duration::from_micros(100), now);
                    (id, client(key))
                }
                other => panic!("no endpoint: {other:?}"),
            }
        };
        let mut open: VecDeque<_> = (0..OPEN as u64)
            .map(|key| begin(&mut roster, key))
            .collect();
        let mut key = 0_u64;
        group.bench_function(label, |bencher| {
            bencher.iter(|| {
                key = key.wrapping_add(1);
                open.push_back(begin(&mut roster, black_box(key)));
                if let Some((id, client)) = open.pop_front() {
                    roster.closed(id);
                    roster.left(client);
                }
            });
        });
    }
    group.finish();
}

fn connection(criterion: &mut Criterion) {
    connections(criterion, "connection", &[]);
}

fn connection_half(criterion: &mut Criterion) {
    let out: Vec<_> = (0..ENDPOINTS).step_by(2).collect();
    connections(criterion, "connection, half", &out);
}

criterion_group!(benches, pick, half, connection, connection_half);
criterion_main!(benches);
