//! A set of ports, a bit for each.

use core::ops::RangeInclusive;

use crate::BePort;

/// 64-bit words of a [`PortSet`].
const WORDS: usize = 1 << 10;

/// Any of the 65,536.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSet {
    words: [u64; WORDS],
}

impl Default for PortSet {
    fn default() -> Self {
        Self::NONE
    }
}

impl PortSet {
    /// No port.
    pub const NONE: Self = Self { words: [0; WORDS] };

    /// Every port.
    pub const ALL: Self = Self {
        words: [u64::MAX; WORDS],
    };

    /// Adds the ports of a range.
    pub fn insert(&mut self, range: RangeInclusive<u16>) {
        for port in range {
            if let Some(word) = self.words.get_mut(usize::from(port / 64)) {
                *word |= 1 << (port % 64);
            }
        }
    }

    /// Removes the ports of a range.
    pub fn remove(&mut self, range: RangeInclusive<u16>) {
        for port in range {
            if let Some(word) = self.words.get_mut(usize::from(port / 64)) {
                *word &= !(1 << (port % 64));
            }
        }
    }

    /// Adds all of another set.
    pub fn insert_all(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Whether a port is in it.
    #[inline(always)]
    #[must_use]
    pub fn contains(&self, port: BePort) -> bool {
        let port = port.get();
        // The word is always there, which the verifier sees by this.
        let word = self.words.get(usize::from(port / 64) % WORDS);
        word.is_some_and(|word| word & 1 << (port % 64) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_in_it_that_were_added_and_not_removed() {
        let mut set = PortSet::NONE;
        set.insert(60..=200);
        set.insert(65_535..=65_535);
        set.remove(64..=127);
        for port in 0..=u16::MAX {
            let is_in = matches!(port, 60..=63 | 128..=200 | 65_535);
            assert_eq!(set.contains(BePort::new(port)), is_in, "{port}");
        }
        set.insert_all(&PortSet::ALL);
        assert_eq!(set, PortSet::ALL);
    }
}
