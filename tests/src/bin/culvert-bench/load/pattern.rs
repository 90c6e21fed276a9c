//! The bytes of transfers: each position has its byte, so that one that was lost or doubled before it shows.

use std::io;

/// A prime, so that no buffer on the way has a length that divides it.
const PERIOD: usize = 65_521;
/// Bytes that are sent by one call.
pub(crate) const CHUNK: usize = 256 * 1024;

/// One period and as much as a chunk beyond it.
pub(crate) struct Pattern(Vec<u8>);

impl Pattern {
    pub(crate) fn new() -> Self {
        let byte = |at: usize| {
            // The upper bits of a multiplicative hash.
            let mixed = ((at % PERIOD) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed.to_be_bytes().first().copied().unwrap_or_default()
        };
        Self((0..PERIOD + CHUNK).map(byte).collect())
    }

    /// What stands at a position, at most a chunk of it.
    pub(crate) fn at(&self, position: u64, length: u64) -> &[u8] {
        let start = usize::try_from(position % PERIOD as u64).unwrap_or_default();
        let length = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
        self.0.get(start..start + length).unwrap_or_default()
    }

    /// Looks at the first byte, the last, and one between.
    pub(crate) fn check(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let expected = self.at(position, bytes.len() as u64);
        let alike = |at: usize| bytes.get(at) == expected.get(at);
        let last = bytes.len().saturating_sub(1);
        if alike(0) && alike(last / 2) && alike(last) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("wrong bytes at or before position {position}"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_shows() {
        let pattern = Pattern::new();
        let bytes = pattern.at(100_000, CHUNK as u64);
        assert_eq!(bytes.len(), CHUNK);
        assert!(pattern.check(100_000, bytes).is_ok());
        assert!(pattern.check(100_000 + PERIOD as u64, bytes).is_ok());
        assert!(pattern.check(100_001, bytes).is_err());
        assert!(pattern.check(100_000 + CHUNK as u64, bytes).is_err());
    }
}
