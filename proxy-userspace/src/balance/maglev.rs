//! A look-up table that every node fills alike (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4), with weights.
//!
//! Every endpoint has its own order of all slots, and takes the first free one of it in turns. Shares are exact to a slot;
//! when an endpoint leaves, few other slots change hands.

use super::{
    Member,
    hash::{below, mix},
};

/// Sizes of the table, both prime, so that every step through it meets all slots.
const SIZES: [u32; 2] = [65_537, 655_373];
/// So many slots for each unit of weight keep shares within one percent.
const SLOTS_FOR_WEIGHT: u64 = 100;

/// Slot to endpoint.
#[derive(Debug)]
pub(super) struct Maglev(Vec<u32>);

impl Maglev {
    pub(super) fn new(members: &[Member]) -> Self {
        let [small, large] = SIZES;
        let weight: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
        let size = if weight.saturating_mul(SLOTS_FOR_WEIGHT) <= u64::from(small) {
            small
        } else {
            large
        };
        Self(fill(members, size))
    }

    pub(super) fn at(&self, hash: u64) -> Option<usize> {
        let slot = usize::try_from(below(hash, self.0.len() as u64)).ok()?;
        self.0.get(slot).and_then(|at| usize::try_from(*at).ok())
    }
}

/// An endpoint on its way through the slots.
struct Filling {
    number: u32,
    weight: u64,
    slot: u32,
    step: u32,
    /// It takes a slot when the rounds, times its weight, come to this.
    due: u64,
}

fn fill(members: &[Member], size: u32) -> Vec<u32> {
    let heaviest = members.iter().map(|member| member.weight).max();
    let heaviest = u64::from(heaviest.unwrap_or(0));
    let scaled = |hash: u64, end: u32| u32::try_from(below(hash, u64::from(end))).unwrap_or(0);
    let mut filling: Vec<Filling> = (0..)
        .zip(members)
        .map(|(number, member)| Filling {
            number,
            weight: u64::from(member.weight),
            slot: scaled(mix(member.id ^ 1), size),
            step: 1 + scaled(mix(member.id ^ 2), size - 1),
            due: 0,
        })
        .collect();
    let free = u32::MAX;
    let mut slots = vec![free; if heaviest == 0 { 0 } else { size as usize }];
    let mut left = slots.len();
    let mut round = 0;
    while left > 0 {
        round += 1;
        for endpoint in &mut filling {
            if left == 0 || round * endpoint.weight <= endpoint.due {
                continue;
            }
            endpoint.due += heaviest;
            // One is free, and a step that is prime to the size meets it.
            while let Some(slot) = slots.get_mut(endpoint.slot as usize) {
                endpoint.slot = (endpoint.slot + endpoint.step) % size;
                if *slot == free {
                    *slot = endpoint.number;
                    left -= 1;
                    break;
                }
            }
        }
    }
    slots
}
