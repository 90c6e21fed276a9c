//! What holds for all methods, and what for some, over all sorts of groups.

use proptest::prelude::*;

use super::{hash::hash, *};

const NOW: Duration = Duration::from_secs(1000);

fn members(weights: &[u32]) -> Vec<Member> {
    weights
        .iter()
        .enumerate()
        .map(|(at, weight)| Member {
            id: hash(format!("10.0.{}.{}:80", at / 256, at % 256).as_bytes()),
            weight: *weight,
        })
        .collect()
}

fn balancer(method: Method, weights: &[u32]) -> Balancer {
    Balancer::new(method, 7, &members(weights))
}

/// Which endpoints so many connections went to, each of which ends before the next comes.
fn picks(balancer: &mut Balancer, count: u64) -> Vec<u64> {
    let mut picks = vec![0; balancer.states.len()];
    for key in 0..count {
        let at = balancer.pick(key, NOW, |_| true).unwrap();
        picks[at] += 1;
    }
    picks
}

fn any_method() -> impl Strategy<Value = Method> {
    prop::sample::select(Method::ALL.map(|(_, method)| method).to_vec())
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![
        prop::collection::vec(1..=10_u32, 1..8),
        prop::collection::vec(prop_oneof![Just(1_u32), Just(3), Just(10)], 8..20),
    ]
}

/// How far an endpoint may be off its due: 2 % of that, and what draws and hashes of so many keys are off by chance.
fn allowed(method: Method, due: u64) -> u64 {
    let chance = match method {
        Method::RoundRobin | Method::LeastConn => 1,
        // Five times the deviation: once in a million.
        Method::P2c | Method::Maglev | Method::SourceHash => 5 * due.isqrt(),
    };
    due / 50 + chance
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn weights_hold_within_two_percent(method in any_method(), weights in weights()) {
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        let count = 50_000;
        let picked = picks(&mut balancer(method, &weights), count);
        for (picked, weight) in picked.into_iter().zip(weights) {
            let wanted = count * u64::from(weight) / total;
            prop_assert!(picked.abs_diff(wanted) <= allowed(method, wanted), "{picked} for {wanted}");
            prop_assert!(picked > 0, "starved");
        }
    }

    #[test]
    fn who_has_no_share_or_may_not_is_never_chosen(
        method in any_method(),
        weights in weights(),
        without in prop::collection::vec(any::<bool>(), 20),
        forbidden in prop::collection::vec(any::<bool>(), 20),
    ) {
        let mut balancer = balancer(method, &weights);
        for (at, without) in without.iter().enumerate() {
            if *without {
                balancer.set_share(at, 0);
            }
        }
        let some = (0..weights.len()).any(|at| !without[at] && !forbidden[at]);
        for key in 0..200 {
            let picked = balancer.pick(key, NOW, |at| !forbidden[at]);
            prop_assert_eq!(picked.is_some(), some);
            if let Some(at) = picked {
                prop_assert!(!without[at] && !forbidden[at]);
            }
        }
    }

    #[test]
    fn who_comes_back_takes_its_part_and_no_more(weights in weights(), gone in any::<prop::sample::Index>()) {
        let gone = gone.index(weights.len());
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        for method in [Method::RoundRobin, Method::LeastConn] {
            let mut balancer = balancer(method, &weights);
            balancer.set_share(gone, 0);
            for key in 0..10_000 {
                balancer.pick(key, NOW, |_| true);
            }
            balancer.set_share(gone, FULL);
            let picked = picks(&mut balancer, 10 * total)[gone];
            let wanted = 10 * u64::from(weights[gone]);
            prop_assert!(picked.abs_diff(wanted) <= 2, "{method:?}: {picked} for {wanted}");
        }
    }

    #[test]
    fn a_share_is_a_part_of_the_weight(method in prop::sample::select(vec![Method::RoundRobin, Method::LeastConn, Method::P2c])) {
        let mut balancer = balancer(method, &[1, 1]);
        balancer.set_share(0, FULL / 4);
        let picked = picks(&mut balancer, 10_000);
        prop_assert!(picked[0].abs_diff(2000) <= 200, "{picked:?}");
    }

    #[test]
    fn a_tournament_is_won_by_the_best(
        players in 1..40_usize,
        changes in prop::collection::vec((0..40_usize, prop::option::of(0..8_u64), any::<u64>()), 1..100),
    ) {
        let mut tournament = Tournament::new(players);
        let mut ranks = vec![None; players];
        for (player, rank, may) in changes {
            let (player, rank) = (player % players, rank.map(|rank| (rank, 0)));
            tournament.set(player, rank);
            ranks[player] = rank;
            let may = |player: usize| may >> player & 1 == 1;
            let best = (0..players).filter(|at| may(*at) && ranks[*at].is_some()).min_by_key(|at| ranks[*at]);
            prop_assert_eq!(tournament.best(may), best);
        }
    }

    #[test]
    fn one_failure_starves_nobody_for_long(
        weights in prop::collection::vec(1..=10_u32, 2..8),
        failed in any::<prop::sample::Index>(),
        micros in 1..5_000_u64,
    ) {
        let failed = failed.index(weights.len());
        let (took, total) = (Duration::from_micros(micros), weights.iter().sum::<u32>());
        let mut balancer = balancer(Method::P2c, &weights);
        for at in 0..weights.len() {
            balancer.observed(at, NOW, took);
        }
        balancer.failed(failed, NOW, took);
        // Nearly idle: everybody else answers as ever, and has no connection when the next one comes.
        let mut counts = |from: Duration| {
            (0..2_000_u32).filter(|key| {
                let now = NOW + from + *key * Duration::from_millis(1);
                let at = balancer.pick(u64::from(*key), now, |_| true).unwrap();
                balancer.observed(at, now, took);
                at == failed
            }).count()
        };
        prop_assert_eq!(counts(Duration::ZERO), 0, "it is no quick endpoint");
        let later = counts(Duration::from_secs(10));
        let wanted = 2_000 * weights[failed] as usize / total as usize;
        prop_assert!(later >= wanted / 2, "{later} of {wanted}");
    }

    #[test]
    fn weights_hold_among_those_that_are_as_quick(
        weights in prop::collection::vec(1..=10_u32, 2..8),
        micros in prop::collection::vec(1_000..1_100_u64, 8),
        pause in prop::sample::select(vec![Duration::from_millis(1), Duration::from_secs(1)]),
    ) {
        let mut balancer = balancer(Method::P2c, &weights);
        let mut picked = vec![0_u64; weights.len()];
        for key in 0..20_000_u32 {
            let now = NOW + key * pause;
            let at = balancer.pick(u64::from(key), now, |_| true).unwrap();
            balancer.observed(at, now, Duration::from_micros(micros[at]));
            picked[at] += 1;
        }
        let total = weights.iter().sum::<u32>();
        for (count, weight) in picked.iter().zip(&weights) {
            let due = 20_000 * u64::from(*weight) / u64::from(total);
            prop_assert!(count.abs_diff(due) <= 400, "{picked:?} for {weights:?}");
        }
    }

    #[test]
    fn an_endpoint_that_fails_moves_nobody_elses_connections(
        method in prop::sample::select(vec![Method::Maglev, Method::SourceHash]),
        weights in weights(),
        failed in any::<prop::sample::Index>(),
    ) {
        let failed = failed.index(weights.len());
        let (mut before, mut after) = (balancer(method, &weights), balancer(method, &weights));
        after.set_share(failed, 0);
        for key in 0..2000 {
            let was = before.pick(key, NOW, |_| true);
            if was != Some(failed) {
                prop_assert_eq!(after.pick(key, NOW, |_| true), was);
            }
        }
    }
}

#[test]
fn with_many_connections_each_is_within_two_percent_of_its_due() {
    let weights = [1, 2, 3, 10];
    for (_, method) in Method::ALL {
        let picks = picks(&mut balancer(method, &weights), 2_000_000);
        for (picked, weight) in picks.into_iter().zip(weights) {
            let due = 125_000 * u64::from(weight);
            assert!(
                picked.abs_diff(due) <= due / 50,
                "{method:?}: {picked} for {due}"
            );
        }
    }
}

#[test]
fn the_rest_of_a_hash_takes_its_parts_of_what_is_out() {
    for method in [Method::Maglev, Method::SourceHash] {
        let mut balancer = balancer(method, &[2; 40]);
        for at in (0..40).step_by(2) {
            balancer.set_share(at, 0);
        }
        let picked = picks(&mut balancer, 100_000);
        for (at, picked) in picked.into_iter().enumerate() {
            let wanted = if at % 2 == 0 { 0 } else { 5000 };
            assert!(picked.abs_diff(wanted) <= 500, "{method:?}, {at}: {picked}");
        }
    }
}

/// The part of keys that change hands when one endpoint of so many leaves the configuration, those it had included.
fn disruption(method: Method, count: u32, leaves: usize) -> f64 {
    let all = members(&vec![1; count as usize]);
    let mut rest = all.clone();
    rest.remove(leaves);
    let (mut before, mut after) = (
        Balancer::new(method, 1, &all),
        Balancer::new(method, 1, &rest),
    );
    let keys = 100_000_u32;
    let moved = (0..u64::from(keys)).filter(|key| {
        let was = before.pick(*key, NOW, |_| true).unwrap();
        let is = after.pick(*key, NOW, |_| true).unwrap();
        all[was].id != rest[is].id
    });
    f64::from(u32::try_from(moved.count()).unwrap()) / f64::from(keys)
}

#[test]
fn few_keys_change_hands_when_an_endpoint_leaves() {
    // Measured, with little room: the README has these figures. By its making source-hash stays below twice the share.
    for (count, maglev, source_hash) in [(3, 0.34, 0.34), (10, 0.11, 0.16), (100, 0.017, 0.019)] {
        for leaves in [0, 1, count as usize / 2] {
            let found = disruption(Method::Maglev, count, leaves);
            assert!(found <= maglev, "maglev, {count}: {found}");
            let found = disruption(Method::SourceHash, count, leaves);
            assert!(found <= source_hash, "source-hash, {count}: {found}");
        }
    }
}

#[test]
fn the_choice_is_the_same_in_every_version() {
    // Nodes of different versions serve one address: a change here moves their connections.
    let chosen = |method| {
        let mut balancer = balancer(method, &[1, 2, 3, 1, 1]);
        (0..12).map(move |key| balancer.pick(key, NOW, |_| true).unwrap())
    };
    let maglev: Vec<_> = chosen(Method::Maglev).collect();
    let source_hash: Vec<_> = chosen(Method::SourceHash).collect();
    assert_eq!(maglev, [1, 1, 1, 3, 2, 1, 1, 3, 0, 2, 2, 1]);
    assert_eq!(source_hash, [1, 3, 2, 1, 3, 4, 1, 0, 2, 2, 1, 2]);
}

#[test]
fn least_conn_evens_out_connections() {
    let mut balancer = balancer(Method::LeastConn, &[1, 1, 2]);
    let mut live = [0; 3];
    for key in 0..400 {
        let at = balancer.pick(key, NOW, |_| true).unwrap();
        balancer.opened(at);
        live[at] += 1;
    }
    assert_eq!(live, [100, 100, 200]);
    for _ in 0..50 {
        balancer.closed(1);
    }
    for key in 0..50 {
        assert_eq!(balancer.pick(key, NOW, |_| true), Some(1));
        balancer.opened(1);
    }
}

#[test]
fn p2c_avoids_what_is_slow_or_busy_and_comes_back_to_it() {
    let mut balancer = balancer(Method::P2c, &[1, 1, 1]);
    balancer.observed(0, NOW, Duration::from_millis(100));
    for at in [1, 2] {
        balancer.observed(at, NOW, Duration::from_millis(1));
    }
    assert_eq!(picks(&mut balancer, 1000)[0], 0);
    let later = NOW + Duration::from_mins(2);
    let again = (0..1000).filter(|key| balancer.pick(*key, later, |_| true) == Some(0));
    assert!(again.count() > 200, "it is never tried again");

    for _ in 0..100 {
        balancer.opened(1);
    }
    assert_eq!(
        (0..1000)
            .filter(|key| balancer.pick(*key, later, |_| true) == Some(1))
            .count(),
        0
    );
}
