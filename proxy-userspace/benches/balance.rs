//! What a decision costs among a thousand endpoints: less than a microsecond, by every method.
//!
//! `pick` is the choice with the count of connections that belongs to it, `half` the same while every second endpoint is out.

#![allow(
    missing_docs,
    clippy::expect_used,
    reason = "criterion's macros make functions without comments, and a benchmark fails by panicking"
)]

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use proxy_userspace::balance::{Balancer, Member, Method, hash::hash};

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

criterion_group!(benches, pick, half);
criterion_main!(benches);
