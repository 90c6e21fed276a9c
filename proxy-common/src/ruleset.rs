//! A set of rules as a bit field: each table answers with the rules that its dimension allows, the sets are
//! intersected, and the lowest bit left is the first rule in file order. The cost does not depend on the number
//! of rules.

#![expect(
    clippy::many_single_char_names,
    reason = "the four words of a set, and of another"
)]

/// Rules one policy can hold.
pub const MAX_RULES: usize = WORDS * 64;

/// 64-bit words of a [`RuleSet`].
pub const WORDS: usize = 4;

/// A set of rule indices below [`MAX_RULES`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuleSet {
    words: [u64; WORDS],
}

impl RuleSet {
    /// No rule.
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// Every rule.
    pub const ALL: Self = Self {
        words: [u64::MAX; WORDS],
    };

    /// Adds a rule.
    ///
    /// An index of [`MAX_RULES`] or more is ignored; the configuration refuses so many rules.
    pub const fn insert(&mut self, index: usize) {
        let [a, b, c, d] = &mut self.words;
        let bit = 1 << (index % 64);
        match index / 64 {
            0 => *a |= bit,
            1 => *b |= bit,
            2 => *c |= bit,
            3 => *d |= bit,
            _ => {}
        }
    }

    /// Whether the set has a rule.
    ///
    /// Without branches: the verifier would go on from each of them, and this stands in loops.
    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, index: u8) -> bool {
        let [a, b, c, d] = self.words;
        let (word, bit) = (index as u64 >> 6, index as u64 & 63);
        // That bit of each word, side by side.
        let bits = (a >> bit & 1) | (b >> bit & 1) << 1 | (c >> bit & 1) << 2 | (d >> bit & 1) << 3;
        (bits >> word) & 1 != 0
    }

    /// Whether there is no rule in it.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        let [a, b, c, d] = self.words;
        (a | b | c | d) == 0
    }

    /// The rules in both.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: &Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.words, other.words);
        Self {
            words: [a & e, b & f, c & g, d & h],
        }
    }

    /// The rules in either.
    #[inline(always)]
    #[must_use]
    pub const fn or(self, other: &Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.words, other.words);
        Self {
            words: [a | e, b | f, c | g, d | h],
        }
    }

    /// The rules in this set that are not in the other.
    #[inline(always)]
    #[must_use]
    pub const fn and_not(self, other: &Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.words, other.words);
        Self {
            words: [a & !e, b & !f, c & !g, d & !h],
        }
    }

    /// The first rule in file order.
    #[inline(always)]
    #[must_use]
    pub const fn first(&self) -> Option<u32> {
        let [a, b, c, d] = self.words;
        if a != 0 {
            Some(lowest_bit(a))
        } else if b != 0 {
            Some(64 + lowest_bit(b))
        } else if c != 0 {
            Some(128 + lowest_bit(c))
        } else if d != 0 {
            Some(192 + lowest_bit(d))
        } else {
            None
        }
    }
}

/// Index of the lowest bit of a word that is not 0: how many bits are below it.
///
/// BPF has no instruction for that. Halving steps would be branches, each way of which the verifier of kernels before 6.2 follows
/// to the end; LLVM's own expansion of `trailing_zeros` is a table in `.rodata` on some versions; that of `count_ones` is plain
/// arithmetic.
#[inline(always)]
const fn lowest_bit(word: u64) -> u32 {
    ((word ^ word.wrapping_sub(1)) >> 1).count_ones()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_is_the_lowest_index() {
        for index in 0..MAX_RULES {
            let mut set = RuleSet::EMPTY;
            set.insert(index);
            set.insert(MAX_RULES - 1);
            assert_eq!(set.first(), Some(u32::try_from(index).unwrap()));
            assert!(set.contains(u8::try_from(index).unwrap()));
            assert_eq!(set.contains(0), index == 0);
        }
        assert_eq!(RuleSet::EMPTY.first(), None);
    }

    #[test]
    fn an_index_out_of_range_is_no_rule() {
        let mut set = RuleSet::EMPTY;
        set.insert(MAX_RULES);
        assert!(set.is_empty());
    }

    #[test]
    fn set_algebra() {
        let mut low = RuleSet::EMPTY;
        low.insert(3);
        let mut both = low;
        both.insert(200);
        assert_eq!(both.and(&low), low);
        assert_eq!(both.and_not(&low).first(), Some(200));
        assert_eq!(low.or(&both), both);
    }
}
