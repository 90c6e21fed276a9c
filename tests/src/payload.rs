//! Bytes that say where they belong: a byte lost, doubled, swapped or of another stream shows, and where it began.

use std::io::{self, Read, Write};

/// Bytes of one block of [`Payload::write`] and [`Payload::verify`].
const BLOCK: usize = 64 * 1024;

/// An endless stream of bytes in which each eight tell their position and their stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Which stream: streams of different seeds have no eight bytes in common where it matters.
    pub seed: u64,
}

impl Payload {
    /// The bytes from `offset` on.
    pub fn fill(self, offset: u64, buffer: &mut [u8]) {
        let skipped = usize::try_from(offset % 8).expect("a small number");
        let first = self.word(offset / 8).to_le_bytes();
        let (head, whole) = buffer.split_at_mut(buffer.len().min(8 - skipped));
        head.copy_from_slice(&first[skipped..skipped + head.len()]);
        for (index, place) in (offset / 8 + 1..).zip(whole.chunks_mut(8)) {
            place.copy_from_slice(&self.word(index).to_le_bytes()[..place.len()]);
        }
    }

    /// The first bytes.
    pub fn prefix(self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(0, &mut bytes);
        bytes
    }

    /// Where `bytes`, which should stand at `offset`, differ for the first time.
    pub fn first_difference(self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut expected = vec![0; bytes.len()];
        self.fill(offset, &mut expected);
        // As a whole first: byte by byte takes long where nothing is optimised, and longer still where that is emulated.
        if bytes == expected {
            return None;
        }
        let at = bytes.iter().zip(&expected).position(|(a, b)| a != b)?;
        Some(offset + at as u64)
    }

    /// Writes the first `length` bytes.
    ///
    /// # Errors
    /// That of writing.
    pub fn write(self, sink: &mut impl Write, length: u64) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        for (offset, size) in blocks(length) {
            let part = &mut block[..size];
            self.fill(offset, part);
            sink.write_all(part)?;
        }
        Ok(())
    }

    /// Reads `length` bytes and compares them.
    ///
    /// # Errors
    /// That of reading; `UnexpectedEof` when there are fewer, `InvalidData` when one differs.
    pub fn verify(self, source: &mut impl Read, length: u64) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        for (offset, size) in blocks(length) {
            // What comes before an early end is to be right, too.
            let read = fill(source, &mut block[..size])?;
            let part = &block[..read.unwrap_or_else(|part| part)];
            if let Some(at) = self.first_difference(offset, part) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("byte {at} of {length} is wrong"),
                ));
            }
            if read.is_err() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// The mixing function of `SplitMix64` over seed and position.
    fn word(self, index: u64) -> u64 {
        let mut word = self
            .seed
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

/// Reads until a block is full, or as many bytes as there are: how many.
fn fill(source: &mut impl Read, block: &mut [u8]) -> io::Result<Result<usize, usize>> {
    let mut filled = 0;
    while filled < block.len() {
        match source.read(&mut block[filled..]) {
            Ok(0) => return Ok(Err(filled)),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Ok(filled))
}

fn blocks(length: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..length).step_by(BLOCK).map(move |offset| {
        let left = usize::try_from(length - offset).unwrap_or(usize::MAX);
        (offset, left.min(BLOCK))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_verifies_and_a_shift_does_not() {
        let payload = Payload { seed: 7 };
        let mut bytes = Vec::new();
        payload.write(&mut bytes, 100_001).unwrap();
        assert!(payload.verify(&mut bytes.as_slice(), 100_001).is_ok());
        bytes.remove(70_000);
        bytes.push(0);
        let error = payload.verify(&mut bytes.as_slice(), 100_001).unwrap_err();
        assert_eq!(error.to_string(), "byte 70000 of 100001 is wrong");
        assert_eq!(Payload { seed: 8 }.first_difference(0, &bytes), Some(0));
    }
}
