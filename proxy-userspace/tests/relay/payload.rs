//! Bytes that say where they belong, so that a lost, doubled or moved one is seen at once.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A stream of bytes in which every aligned word of eight depends on its position and on the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payload {
    pub(crate) stream: u64,
    pub(crate) length: u64,
}

impl Payload {
    pub(crate) const fn new(stream: u64, length: u64) -> Self {
        Self { stream, length }
    }

    /// `count` bytes from `offset` on.
    pub(crate) fn bytes(self, offset: u64, count: usize) -> Vec<u8> {
        let first = offset / 8;
        let words = (count as u64).div_ceil(8) + 1;
        let mut bytes = Vec::with_capacity(count + 16);
        for word in first..first + words {
            bytes.extend_from_slice(&mixed(self.stream ^ mixed(word)).to_le_bytes());
        }
        let skip = usize::try_from(offset % 8).unwrap();
        bytes.truncate(skip + count);
        bytes.drain(..skip);
        bytes
    }

    /// Writes all of it in pieces of every size up to `largest`.
    pub(crate) async fn send(
        self,
        sink: &mut (impl AsyncWrite + Unpin),
        largest: usize,
    ) -> io::Result<()> {
        let mut sizes = Sizes::new(self.stream, largest);
        let mut sent = 0;
        while sent < self.length {
            let size = sizes.next_upto(self.length - sent);
            sink.write_all(&self.bytes(sent, size)).await?;
            sent += size as u64;
        }
        Ok(())
    }

    /// Reads exactly all of it, in reads of every size up to `largest`.
    pub(crate) async fn receive(self, source: &mut (impl AsyncRead + Unpin), largest: usize) {
        let mut sizes = Sizes::new(!self.stream, largest);
        let mut buffer = vec![0; largest];
        let mut received = 0;
        while received < self.length {
            let size = sizes.next_upto(self.length - received);
            let count = source
                .read(&mut buffer[..size])
                .await
                .unwrap_or_else(|error| panic!("after {received} bytes of {self:?}: {error}"));
            assert!(
                count > 0,
                "end of stream after {received} bytes of {self:?}"
            );
            let expected = self.bytes(received, count);
            assert!(
                buffer[..count] == expected,
                "wrong bytes within {count} at {received} of {self:?}"
            );
            received += count as u64;
        }
    }
}

/// The next bytes must be these.
pub(crate) async fn expect_text(source: &mut (impl AsyncRead + Unpin), text: &[u8]) {
    let mut received = vec![0; text.len()];
    source.read_exact(&mut received).await.unwrap();
    assert_eq!(
        received.escape_ascii().to_string(),
        text.escape_ascii().to_string()
    );
}

/// The stream must end here.
pub(crate) async fn expect_end(source: &mut (impl AsyncRead + Unpin)) {
    let mut byte = [0];
    let count = source
        .read(&mut byte)
        .await
        .expect("an orderly end of the stream");
    assert_eq!(count, 0, "byte {byte:?} behind the end of the stream");
}

/// Sizes from one upwards that look random but repeat in every run.
struct Sizes {
    state: u64,
    largest: u64,
}

impl Sizes {
    fn new(seed: u64, largest: usize) -> Self {
        Self {
            state: seed,
            largest: largest as u64,
        }
    }

    fn next_upto(&mut self, limit: u64) -> usize {
        self.state = mixed(self.state);
        usize::try_from(1 + self.state % self.largest.min(limit)).unwrap()
    }
}

/// splitmix64: neighbours in, strangers out.
fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
