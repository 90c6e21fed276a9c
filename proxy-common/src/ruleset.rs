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
    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, index: usize) -> bool {
        let [a, b, c, d] = self.words;
        let word = match index / 64 {
            0 => a,
            1 => b,
            2 => c,
            3 => d,
            _ => 0,
        };
        word & (1 << (index % 64)) != 0
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

/// Index of the lowest bit of a word that is not 0.
///
/// BPF has no count-trailing-zeros instruction and LLVM's expansion is a table in `.rodata` on some versions:
/// six halving steps are the same everywhere and need no memory.
#[expect(
    clippy::verbose_bit_mask,
    reason = "trailing_zeros is what this replaces"
)]
#[inline(always)]
const fn lowest_bit(word: u64) -> u32 {
    let mut word = word;
    let mut index = 0;
    if word & 0xffff_ffff == 0 {
        word >>= 32;
        index += 32;
    }
    if word & 0xffff == 0 {
        word >>= 16;
        index += 16;
    }
    if word & 0xff == 0 {
        word >>= 8;
        index += 8;
    }
    if word & 0xf == 0 {
        word >>= 4;
        index += 4;
    }
    if word & 0x3 == 0 {
        word >>= 2;
        index += 2;
    }
    if word & 0x1 == 0 {
        index += 1;
    }
    index
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
            assert!(set.contains(index));
        }
        assert_eq!(RuleSet::EMPTY.first(), None);
    }

    #[test]
    fn an_index_out_of_range_is_no_rule() {
        let mut set = RuleSet::EMPTY;
        set.insert(MAX_RULES);
        assert!(set.is_empty());
        assert!(!RuleSet::ALL.contains(MAX_RULES));
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
