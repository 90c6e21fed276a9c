//! Weighted rendezvous hashing in two steps: first a bucket of endpoints, then one in it.
//!
//! Each endpoint draws a number that depends on the key and on itself, and the best draw wins (Thaler, Ravishankar 1998;
//! with weights as exponential variates, Mosharraf et al. 2014: share is exactly weight). When one leaves only keys change
//! hands that its bucket had. Asking all endpoints would be minimal, and takes several microseconds for a thousand; with
//! buckets it is a tenth, and at most twice its share changes hands.
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
pub(super) struct Rendezvous(Vec<Bucket>);

#[derive(Debug)]
struct Bucket {
    id: u64,
    weight: u64,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug)]
struct Endpoint {
    at: usize,
    id: u64,
    weight: u64,
}

impl Rendezvous {
    pub(super) fn new(members: &[Member]) -> Self {
        let mut buckets: Vec<Bucket> = (0..BUCKETS as u64)
            .map(|number| Bucket {
                id: hash(&number.to_be_bytes()),
                weight: 0,
                endpoints: Vec::new(),
            })
            .collect();
        let members = members.iter().enumerate();
        for (at, member) in members.filter(|(_, member)| member.weight > 0) {
            let number = usize::try_from(mix(member.id) % BUCKETS as u64).unwrap_or(0);
            if let Some(bucket) = buckets.get_mut(number) {
                let weight = u64::from(member.weight);
                bucket.weight += weight;
                bucket.endpoints.push(Endpoint {
                    at,
                    id: member.id,
                    weight,
                });
            }
        }
        buckets.retain(|bucket| bucket.weight > 0);
        Self(buckets)
    }

    pub(super) fn at(&self, hash: u64) -> Option<usize> {
        let parts = |bucket: &Bucket| (bucket.id, bucket.weight);
        let bucket = winner(&self.0, hash, parts)?;
        let parts = |endpoint: &Endpoint| (endpoint.id, endpoint.weight);
        winner(&bucket.endpoints, hash, parts).map(|endpoint| endpoint.at)
    }
}

/// The one with the least exponential variate, whose rate is its weight.
fn winner<T>(all: &[T], hash: u64, parts: impl Fn(&T) -> (u64, u64)) -> Option<&T> {
    let mut best = None;
    for one in all {
        let (id, weight) = parts(one);
        let drawn = negative_log2(mix(hash ^ id));
        // drawn / weight < best, without the division.
        let wins = best
            .is_none_or(|(_, least, of)| drawn.saturating_mul(of) < weight.saturating_mul(least));
        if wins {
            best = Some((one, drawn, weight));
        }
    }
    best.map(|(one, ..)| one)
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
    use super::*;

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
