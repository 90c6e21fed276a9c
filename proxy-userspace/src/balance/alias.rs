//! Seats for [`proxy_common::draw()`]: weights as widths of seats that two share.

/// Whose seat it is besides, and how much of it, of 2^32, is its owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The owner's part.
    pub keeps: u32,
    /// Who has the rest: a number in the list.
    pub other: u32,
}

/// One seat for each weight, in their order. (Vose 1991.)
///
/// In integers: a seat is as wide as all weights together, and a weight is multiplied by how many there are.
#[must_use]
pub fn seats(weights: &[u64]) -> Vec<Share> {
    let width: u128 = weights.iter().copied().map(u128::from).sum();
    let count = weights.len() as u128;
    let mut left: Vec<u128> = weights
        .iter()
        .map(|weight| u128::from(*weight) * count)
        .collect();
    let mut seats: Vec<Share> = (0..weights.len())
        .map(|at| Share {
            keeps: u32::MAX,
            other: u32::try_from(at).unwrap_or(u32::MAX),
        })
        .collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|at| left.get(*at).is_some_and(|left| *left < width));
    while let (Some(&one), Some(&other)) = (small.last(), large.last()) {
        small.pop();
        let has = left.get(one).copied().unwrap_or(0);
        if let Some(seat) = seats.get_mut(one) {
            // Rounded down, below 2^32 since it is less than the width.
            seat.keeps = u32::try_from((has << 32) / width.max(1)).unwrap_or(u32::MAX);
            seat.other = u32::try_from(other).unwrap_or(u32::MAX);
        }
        if let Some(rest) = left.get_mut(other) {
            *rest -= width - has;
            if *rest < width {
                large.pop();
                small.push(other);
            }
        }
    }
    seats
}

#[cfg(test)]
mod tests;
