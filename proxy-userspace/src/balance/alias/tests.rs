//! The seats as the draw uses them, which is the one that the hook runs.

use std::collections::HashMap;

use proptest::prelude::*;
use proxy_common::{Draws, Seat, SeatKey, Wheel, Wheels, draw};

use super::*;
use crate::balance::hash::Random;

const GROUP: u32 = 3;
const TABLE: u32 = 9;

struct Tables {
    wheels: Wheels,
    seats: HashMap<SeatKey, Seat>,
}

impl Draws for Tables {
    fn wheels(&self, group: u32) -> Option<&Wheels> {
        (group == GROUP).then_some(&self.wheels)
    }

    fn seat(&self, key: &SeatKey) -> Option<&Seat> {
        self.seats.get(key)
    }
}

/// Endpoints of IPv4 with these weights, numbered in order.
fn tables(weights: &[u64]) -> Tables {
    let key = |index| SeatKey {
        group: GROUP,
        table: TABLE,
        index,
    };
    let seat = |index, share: Share| Seat {
        endpoint: index,
        keeps: share.keeps,
        other: share.other,
        ..Seat::default()
    };
    let seats: HashMap<_, _> = (0..)
        .zip(seats(weights))
        .map(|(index, share)| (key(index), seat(index, share)))
        .collect();
    let wheel = Wheel {
        table: TABLE,
        seats: u32::try_from(seats.len()).unwrap(),
    };
    let wheels = Wheels {
        v4: wheel,
        v6: Wheel::default(),
    };
    Tables { wheels, seats }
}

/// The exact part of each endpoint, of 2^32 for each seat.
fn parts(weights: &[u64]) -> Vec<u64> {
    let mut parts = vec![0; weights.len()];
    for (at, share) in seats(weights).into_iter().enumerate() {
        let other = usize::try_from(share.other).unwrap();
        let keeps = if other == at {
            1 << 32
        } else {
            u64::from(share.keeps)
        };
        parts[at] += keeps;
        parts[other] += (1 << 32) - keeps;
    }
    parts
}

proptest! {
    #[test]
    fn shares_are_weights(weights in prop::collection::vec(1..=256_000_u64, 1..200)) {
        let (total, count) = (u128::from(weights.iter().sum::<u64>()), weights.len() as u128);
        for (part, weight) in parts(&weights).into_iter().zip(&weights) {
            let wanted = ((u128::from(*weight) * count) << 32) / total;
            // A seat's rounding each.
            prop_assert!(u128::from(part).abs_diff(wanted) <= count + 1, "{part} for {wanted}");
        }
    }

    #[test]
    fn draws_hold_within_two_percent_and_nobody_starves(
        weights in prop::collection::vec(1..=10_u64, 1..20),
        seed in any::<u64>(),
    ) {
        let tables = tables(&weights);
        let mut random = Random::new(seed);
        let mut drawn = vec![0_u64; weights.len()];
        let count = 50_000;
        for _ in 0..count {
            let seat = draw(&tables, GROUP, true, random.next()).unwrap();
            drawn[seat.endpoint as usize] += 1;
        }
        let total: u64 = weights.iter().sum();
        for (drawn, weight) in drawn.into_iter().zip(weights) {
            let wanted = count * weight / total;
            prop_assert!(drawn.abs_diff(wanted) <= count / 50, "{drawn} for {wanted}");
            prop_assert!(drawn > 0, "starved");
        }
    }
}

#[test]
fn every_corner_leads_to_an_endpoint() {
    for weights in [vec![1], vec![1, 1], vec![1, 1000], vec![7, 3, 3, 1]] {
        let tables = tables(&weights);
        for random in [0, u64::from(u32::MAX), u64::MAX << 32, u64::MAX] {
            assert!(draw(&tables, GROUP, true, random).is_some());
        }
    }
}

#[test]
fn there_is_none_of_another_family_or_group() {
    let some = tables(&[1, 2]);
    assert_eq!(draw(&some, GROUP, false, 7), None);
    assert_eq!(draw(&some, GROUP + 1, true, 7), None);
    assert_eq!(draw(&tables(&[]), GROUP, true, 7), None);
}
