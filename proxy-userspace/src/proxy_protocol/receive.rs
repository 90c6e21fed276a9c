//! What a trusted sender says about a connection.
//!
//! The header is taken off the stream exactly, so that the next byte is the client's. Whom to believe is up to the
//! caller. Strict: a trusted sender always sends a header, a whole one, and at once.

use std::{io, net::SocketAddr, time::Duration};

use ppp::{v1, v2};
use thiserror::Error;
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

/// How long a sender may take for its header.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a version 1 header, the end of its line included.
const LONGEST_V1: usize = 107;
/// Bytes of a version 2 header before those that its length counts.
const HEAD_V2: usize = 16;
/// What `length` of a version 2 header may be: addresses and some TLVs. The format allows 64 KiB.
const LONGEST_V2: usize = 4096;

/// Why a header is none.
#[derive(Debug, Error)]
pub(crate) enum HeaderError {
    /// Nothing came, or not all of it.
    #[error("none within {PATIENCE:?}")]
    Late,
    /// The connection ended before its header did.
    #[error("the connection ended before its header did")]
    Read(#[source] io::Error),
    /// Something else came.
    #[error("the connection begins with something else")]
    Absent,
    /// Not as the format has it.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Longer than anybody needs.
    #[error("{0} bytes long, more than {LONGEST_V2}")]
    TooLong(usize),
}

/// Takes the header, and returns the client that it names; `None` when the sender speaks for itself.
pub(crate) async fn receive(stream: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    timeout(PATIENCE, header(stream))
        .await
        .map_err(|_| HeaderError::Late)?
}

async fn header(stream: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    // No header of either version is shorter than the signature of the second.
    let mut head = vec![0; v2::PROTOCOL_PREFIX.len()];
    stream
        .read_exact(&mut head)
        .await
        .map_err(HeaderError::Read)?;
    if head == v2::PROTOCOL_PREFIX {
        binary(stream, head).await
    } else if head.starts_with(v1::PROTOCOL_PREFIX.as_bytes()) {
        text(stream, head).await
    } else {
        Err(HeaderError::Absent)
    }
}

async fn binary(
    stream: &mut TcpStream,
    mut bytes: Vec<u8>,
) -> Result<Option<SocketAddr>, HeaderError> {
    more(stream, &mut bytes, HEAD_V2).await?;
    let length = match bytes.get(14..HEAD_V2) {
        Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
        _ => 0,
    };
    if length > LONGEST_V2 {
        return Err(HeaderError::TooLong(length));
    }
    more(stream, &mut bytes, HEAD_V2 + length).await?;
    let header = v2::Header::try_from(bytes.as_slice())
        .map_err(|error| HeaderError::Malformed(error.to_string()))?;
    if let Some(Err(error)) = header.tlvs().find(Result::is_err) {
        return Err(HeaderError::Malformed(error.to_string()));
    }
    if header.command == v2::Command::Local {
        return Ok(None);
    }
    Ok(match header.addresses {
        v2::Addresses::IPv4(said) => Some((said.source_address, said.source_port).into()),
        v2::Addresses::IPv6(said) => Some((said.source_address, said.source_port).into()),
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
    })
}

async fn text(
    stream: &mut TcpStream,
    mut bytes: Vec<u8>,
) -> Result<Option<SocketAddr>, HeaderError> {
    // What is read is gone, so no more than the line is; what waits is looked at first, so that it takes few calls.
    while !bytes.contains(&b'\n') {
        let left = LONGEST_V1.saturating_sub(bytes.len());
        if left == 0 {
            return Err(HeaderError::Malformed("the line has no end".to_owned()));
        }
        let mut waiting = [0; LONGEST_V1];
        let room = waiting.get_mut(..left).unwrap_or_default();
        let count = stream.peek(room).await.map_err(HeaderError::Read)?;
        if count == 0 {
            return Err(HeaderError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        let line_end = waiting.iter().take(count).position(|byte| *byte == b'\n');
        let whole = bytes.len() + line_end.map_or(count, |at| at + 1);
        more(stream, &mut bytes, whole).await?;
    }
    let header = v1::Header::try_from(bytes.as_slice())
        .map_err(|error| HeaderError::Malformed(error.to_string()))?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(said) => Some((said.source_address, said.source_port).into()),
        v1::Addresses::Tcp6(said) => Some((said.source_address, said.source_port).into()),
        v1::Addresses::Unknown => None,
    })
}

/// Reads on until there are so many bytes.
async fn more(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    length: usize,
) -> Result<(), HeaderError> {
    let at = bytes.len();
    bytes.resize(length.max(at), 0);
    let rest = bytes.get_mut(at..).unwrap_or_default();
    stream
        .read_exact(rest)
        .await
        .map(drop)
        .map_err(HeaderError::Read)
}
