//! What a flow does, as a function of a seed and its number.

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::HEADER;
use crate::Payload;

/// What the flows of a run are like.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Shape {
    /// Where all randomness comes from.
    pub seed: u64,
    /// Fewest bytes of the larger stream of a flow.
    pub least: u64,
    /// Most bytes of a stream.
    pub most: u64,
    /// Flows in a hundred that one of the ends resets.
    pub resets: u32,
}

/// What both ends of a flow do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The app.
    pub app: Part,
    /// The server.
    pub server: Part,
}

/// What one end does.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it sends.
    pub payload: Payload,
    /// How much of it.
    pub length: u64,
    /// Where it resets the connection instead of sending on.
    pub resets_at: Option<u64>,
    /// Whether it begins to send when it has received everything.
    pub sends_last: bool,
    /// Largest write.
    pub largest: usize,
    /// Once in so many writes it pauses; 0 for never.
    pub pauses: u32,
    /// How it reads.
    pub reading: Reading,
    /// `SO_RCVBUF`, if it sets one.
    pub receive_buffer: Option<usize>,
    /// Of its write sizes, its pauses and its reads.
    pub seed: u64,
}

/// How an end reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As much as there is, as soon as it is there.
    Eagerly,
    /// A little at a time.
    InSips,
    /// Not at all for a while, a few times.
    WithStops,
}

/// Lengths around which things change: buffers, thresholds, windows.
const EDGES: [u64; 9] = [0, 1, 2, 4095, 4096, 65_535, 65_536, 65_537, 131_072];

impl Plan {
    /// That of one flow.
    pub fn of(shape: &Shape, number: u64) -> Self {
        let mut random = Rng::with_seed(shape.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // The first numbers of neighbouring seeds are alike.
        let mut random = Rng::with_seed(random.u64(..));
        let large = scattered(&mut random, shape.least.max(1), shape.most);
        let small = match random.u8(..3) {
            0 => scattered(&mut random, shape.least.max(1), shape.most),
            1 => *random.choice(&EDGES).expect("not empty"),
            _ => random.u64(..5000),
        };
        let (up, down) = if random.bool() {
            (large, small)
        } else {
            (small, large)
        };
        let mut plan = Self {
            app: Part::random(&mut random, up + HEADER as u64, down),
            server: Part::random(&mut random, down, up),
        };
        match random.u8(..4) {
            0 => plan.app.sends_last = true,
            1 => plan.server.sends_last = true,
            _ => {}
        }
        if random.u32(..100) < shape.resets {
            let app = random.bool();
            let part = if app { &mut plan.app } else { &mut plan.server };
            let first = if app { HEADER as u64 } else { 0 };
            if part.length > first {
                part.resets_at = Some(random.u64(first..part.length));
            }
        }
        plan
    }

    /// Whether neither end resets.
    pub fn is_orderly(&self) -> bool {
        self.app.resets_at.is_none() && self.server.resets_at.is_none()
    }
}

impl Part {
    fn random(random: &mut Rng, length: u64, receives: u64) -> Self {
        // Byte by byte is for short streams.
        let smallest_writes = if length < 10_000 { 0 } else { 2 };
        let largest = [1, 100, 5000, 65_536, 262_144][random.usize(smallest_writes..5)];
        let reading = match random.u8(..4) {
            0 => Reading::InSips,
            1 => Reading::WithStops,
            _ => Reading::Eagerly,
        };
        Self {
            payload: Payload {
                seed: random.u64(..),
            },
            length,
            resets_at: None,
            sends_last: false,
            largest,
            pauses: *random.choice(&[0, 0, 20, 200]).expect("not empty"),
            reading,
            receive_buffer: (random.u8(..4) == 0).then(|| {
                // Bulk through a keyhole would take hours.
                let least = usize::try_from(receives / 500).unwrap_or(usize::MAX);
                least.saturating_add(random.usize(2000..100_000))
            }),
            seed: random.u64(..),
        }
    }
}

/// A number between two others, of any size with the same probability.
fn scattered(random: &mut Rng, least: u64, most: u64) -> u64 {
    let bits = |number: u64| u64::BITS - number.leading_zeros();
    let size = random.u32(bits(least)..=bits(most.max(least)));
    let number = random.u64(..1_u64.checked_shl(size).unwrap_or(u64::MAX));
    number.clamp(least, most.max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_make_the_same_plan_and_neighbours_another() {
        let shape = Shape {
            seed: 1,
            least: 1,
            most: 1 << 20,
            resets: 50,
        };
        let plan = |number| format!("{:?}", Plan::of(&shape, number));
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        let plans: Vec<_> = (0..1000).map(|number| Plan::of(&shape, number)).collect();
        assert!(plans.iter().all(|plan| plan.app.length >= HEADER as u64));
        let resets = |part: fn(&Plan) -> &Part| {
            let parts = plans.iter().map(part);
            parts.filter(|part| part.resets_at.is_some()).count()
        };
        assert!(resets(|plan| &plan.app) > 100 && resets(|plan| &plan.server) > 100);
    }
}
