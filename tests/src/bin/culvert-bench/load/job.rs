//! What a connection is for, which the client says in its first bytes.

use std::io;

/// A connection's purpose. Except for [`Job::Byte`] the server answers by [`READY`] when it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// The byte that says so comes back, and nothing else is done.
    Byte,
    /// Messages of so many bytes, each of which comes back when it is whole.
    Exchange(u32),
    /// After one more byte from the client, so many bytes each way at the same time; one more of the server ends it.
    Transfer { up: u64, down: u64 },
    /// The server receives nothing more.
    Hold,
}

/// The server's answer, when the connection is there from end to end.
pub(crate) const READY: u8 = 0x55;
/// The first byte of [`Job::Byte`].
pub(crate) const BYTE: u8 = 0;
/// Bytes of the others.
pub(crate) const LENGTH: usize = 17;

const EXCHANGE: u8 = 1;
const TRANSFER: u8 = 2;
const HOLD: u8 = 3;

impl Job {
    /// Its first bytes.
    pub(crate) fn encode(self) -> Vec<u8> {
        let (kind, one, other) = match self {
            Self::Byte => return vec![BYTE],
            Self::Exchange(length) => (EXCHANGE, u64::from(length), 0),
            Self::Transfer { up, down } => (TRANSFER, up, down),
            Self::Hold => (HOLD, 0, 0),
        };
        let mut bytes = vec![kind];
        bytes.extend(one.to_le_bytes());
        bytes.extend(other.to_le_bytes());
        bytes
    }

    /// From its first bytes.
    pub(crate) fn decode(bytes: &[u8; LENGTH]) -> io::Result<Self> {
        let [kind, rest @ ..] = bytes;
        let number = |from: usize| {
            let bytes = rest.iter().skip(from).take(8).rev();
            bytes.fold(0, |number, byte| (number << 8) | u64::from(*byte))
        };
        match *kind {
            EXCHANGE => u32::try_from(number(0)).map(Self::Exchange).ok(),
            TRANSFER => Some(Self::Transfer {
                up: number(0),
                down: number(8),
            }),
            HOLD => Some(Self::Hold),
            _ => None,
        }
        .ok_or_else(|| io::Error::other("no such job"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_understood() {
        let jobs = [
            Job::Exchange(16_384),
            Job::Transfer {
                up: 1 << 40,
                down: 77,
            },
            Job::Hold,
        ];
        for job in jobs {
            let bytes = <[u8; LENGTH]>::try_from(job.encode()).unwrap();
            assert_eq!(Job::decode(&bytes).unwrap(), job);
        }
        assert_eq!(Job::Byte.encode(), [BYTE]);
        assert!(Job::decode(&[9; LENGTH]).is_err());
    }
}
