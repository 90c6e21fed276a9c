//! Weighted rendezvous hashing in two steps: first a bucket of endpoints, then one in it.
//!
//! Each endpoint draws a number that depends on the key and on itself, and the best draw wins (Thaler, Ravishankar 1998;
//! with weights as exponential variates, Mosharraf et al. 2014: share is exactly weight). When one leaves only keys change
//! hands that its bucket had. Asking all endpoints would be minimal, and takes several microseconds for a thousand; with
//! buckets it is a tenth, and at most twice its share changes hands.
//!
//! A key that leads to an endpoint which is out draws once more, among those that are in and by what those weigh: what the others
//! had they keep, each gets its part of the rest, and it takes two draws however many are out.
//!
//! All in integers: nodes with different processors or C libraries must agree.

use super::{
    Member,
    hash::{hash, mix},
};

/// Buckets; an endpoint's is part of its identity and does not depend on how many there are.
const BUCKETS: usize = 32;

/// Endpoints by bucket.
#[derive(Debug)]
pub(super) struct Rendezvous {
    buckets: Vec<Bucket>,
    /// The bucket of each endpoint.
    places: Vec<usize>,
}

#[derive(Debug)]
struct Bucket {
    id: u64,
    weight: u64,
    endpoints: Vec<Endpoint>,
    /// Those that are in once more, in the same order: to step over the others costs as much as to ask them.
    endpoints_in: Vec<Endpoint>,
    weight_in: u64,
}

#[derive(Clone, Debug)]
struct Endpoint {
    at: usize,
    id: u64,
    weight: u64,
    is_in: bool,
}

impl Rendezvous {
    pub(super) fn new(members: &[Member]) -> Self {
        let mut buckets: Vec<Bucket> = (0..BUCKETS as u64)
            .map(|number| Bucket {
                id: hash(&number.to_be_bytes()),
                weight: 0,
                endpoints: Vec::new(),
                endpoints_in: Vec::new(),
                weight_in: 0,
            })
            .collect();
        let mut places = Vec::with_capacity(members.len());
        for (at, member) in members.iter().enumerate() {
            let number = usize::try_from(mix(member.id) % BUCKETS as u64).unwrap_or(0);
            places.push(number);
            if let Some(bucket) = buckets.get_mut(number) {
                let weight = u64::from(member.weight);
                bucket.weight += weight;
                bucket.endpoints.push(Endpoint {
                    at,
                    id: member.id,
                    weight,
                    is_in: false,
                });
            }
        }
        Self { buckets, places }
    }

    /// Says whether an endpoint is in; none is at first.
    pub(super) fn set_in(&mut self, at: usize, is_in: bool) {
        let bucket = self.places.get(at).and_then(|at| self.buckets.get_mut(*at));
        let Some(bucket) = bucket else { return };
        let mut endpoints = bucket.endpoints.iter_mut();
        if let Some(endpoint) = endpoints.find(|endpoint| endpoint.at == at) {
            endpoint.is_in = is_in;
        }
        let those_in = bucket.endpoints.iter().filter(|one| one.is_in);
        bucket.endpoints_in = those_in.cloned().collect();
        bucket.weight_in = bucket.endpoints_in.iter().map(|one| one.weight).sum();
    }

    /// The one that a key leads to, whether it is in or not.
    pub(super) fn at(&self, hash: u64) -> Option<usize> {
        let bucket = winner(&self.buckets, hash, |one| (one.id, one.weight))?;
        let endpoint = winner(&bucket.endpoints, hash, |one| (one.id, one.weight));
        endpoint.map(|one| one.at)
    }

    /// The one of those that are in.
    pub(super) fn in_at(&self, hash: u64) -> Option<usize> {
        let bucket = winner(&self.buckets, hash, |one| (one.id, one.weight_in))?;
        let endpoint = winner(&bucket.endpoints_in, hash, |one| (one.id, one.weight));
        endpoint.map(|one| one.at)
    }
}

/// The one with the least exponential variate, whose rate is its weight; who weighs nothing takes no part.
fn winner<T>(all: &[T], hash: u64, parts: impl Fn(&T) -> (u64, u64)) -> Option<&T> {
    let mut best = None;
    for one in all {
        let (id, weight) = parts(one);
        if weight == 0 {
            continue;
        }
        let random = mix(hash ^ id);
        // drawn / weight < best, without the division.
        let wins = |drawn: u64| {
            best.is_none_or(|(_, least, of): (_, u64, u64)| {
                drawn.saturating_mul(of) < weight.saturating_mul(least)
            })
        };
        // Most lose already by what is surely not more than the logarithm, which takes longer.
        if wins(least_negative_log2(random)) {
            let drawn = negative_log2(random);
            if wins(drawn) {
                best = Some((one, drawn, weight));
            }
        }
    }
    best.map(|(one, ..)| one)
}

/// At most [`negative_log2`]: -ln x is at least 1 - x, and -log2 x is more than that.
const fn least_negative_log2(random: u64) -> u64 {
    !random >> (64 - FRACTION)
}

/// Bits of the fraction of a logarithm.
const FRACTION: u32 = 32;
/// Bits of the index into [`LOG2`].
const INDEX: u32 = 8;

/// -log2(random / 2^64), in units of 2^-32; below 2^38.
fn negative_log2(random: u64) -> u64 {
    let random = random | 1;
    let zeros = random.leading_zeros();
    // The highest bit is 1; what is below it is the mantissa.
    let mantissa = (random << zeros) << 1;
    let index = (mantissa >> (64 - INDEX)) as usize;
    let rest = (mantissa << INDEX) >> 32;
    let (low, high) = match LOG2.get(index..index + 2) {
        Some([low, high]) => (*low, *high),
        _ => (0, 0),
    };
    let fraction = low + (((high - low) * rest) >> 32);
    (u64::from(zeros + 1) << FRACTION) - fraction
}

/// log2 of 1, 1 + 1/256, ... 2, in units of 2^-32.
#[expect(
    clippy::indexing_slicing,
    reason = "made by the compiler, which would say so"
)]
static LOG2: [u64; (1 << INDEX) + 1] = {
    let mut table = [0; (1 << INDEX) + 1];
    let mut index = 0;
    while index < table.len() {
        table[index] = log2((1 << 31) + ((index as u64) << (31 - INDEX)));
        index += 1;
    }
    table
};

/// log2 of a number from 1 to 2 in units of 2^-31, digit by digit: squaring a number doubles its logarithm.
const fn log2(mut number: u64) -> u64 {
    if number >= 1 << 32 {
        return 1 << FRACTION;
    }
    let mut result = 0;
    let mut digit = 1 << (FRACTION - 1);
    while digit > 0 {
        number = (number * number) >> 31;
        if number >= 1 << 32 {
            number >>= 1;
            result |= digit;
        }
        digit >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_least_logarithm_is_not_more_than_the_logarithm(random: u64, zeros in 0..64_u32) {
            for random in [random >> zeros, !(random >> zeros)] {
                prop_assert!(least_negative_log2(random) <= negative_log2(random));
            }
        }
    }

    #[test]
    fn logarithms_are_close() {
        for random in [1, 3, 1 << 20, u64::MAX / 3, u64::MAX / 2, u64::MAX] {
            #[expect(
                clippy::cast_precision_loss,
                reason = "that is what it is compared with"
            )]
            let (found, exact) = (
                negative_log2(random) as f64 / (1_u64 << FRACTION) as f64,
                64.0 - (random as f64).log2(),
            );
            assert!(
                (found - exact).abs() < 1e-4,
                "{random}: {found} for {exact}"
            );
        }
    }
}
