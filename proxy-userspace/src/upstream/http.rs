//! The client side of HTTP CONNECT (RFC 9110 section 9.3.6) with Basic credentials (RFC 7617).
//!
//! Owns the request, the limits on the answer and what its status means. Takes exactly the head of the answer from the
//! stream: the bytes behind it are the destination's first words.

use std::io::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, zeroize::Zeroizing};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Credentials, Hop, Next, UpstreamStream,
    error::{HandshakeError, OnwardCause, ProtocolCause, RefusalCause},
};

/// Limit for the heads of the answer, interim ones included.
pub(super) const MAX_HEAD: usize = 16 * 1024;
/// Limit for the header fields of one head.
const MAX_FIELDS: usize = 64;
/// Bytes looked at per system call; an answer to CONNECT is rarely longer.
const CHUNK: usize = 1024;

/// Asks the HTTP proxy at the other end of `stream` to connect to `next`.
pub(super) async fn connect(
    stream: &mut UpstreamStream,
    hop: &Hop,
    next: Next<'_>,
) -> Result<(), HandshakeError> {
    let request = request(hop.credentials.as_ref(), next)?;
    stream.write_all(&request).await?;
    stream.flush().await?;

    let mut budget = MAX_HEAD;
    loop {
        let head = read_head(stream, budget).await?;
        budget -= head.len();
        match status(&head)? {
            101 => return Err(ProtocolCause::Status(101).into()),
            100..=199 => {}
            code => return meaning(code, hop.credentials.is_some()),
        }
    }
}

fn request(
    credentials: Option<&Credentials>,
    next: Next<'_>,
) -> Result<Zeroizing<Vec<u8>>, HandshakeError> {
    let mut request = Zeroizing::new(Vec::with_capacity(1024));
    write!(request, "CONNECT {next} HTTP/1.1\r\nHost: {next}\r\n")?;
    if let Some(Credentials { user, password }) = credentials {
        if user.contains(':') {
            let why = "HTTP user names cannot hold a colon";
            return Err(HandshakeError::Refused(RefusalCause::CredentialsUnfit(why)));
        }
        let pair = Zeroizing::new(format!("{user}:{}", password.expose_secret()));
        let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
        write!(request, "Proxy-Authorization: Basic {}\r\n", *encoded)?;
    }
    request.extend_from_slice(b"\r\n");
    Ok(request)
}

/// Takes one head off the stream, up to and with its empty line.
async fn read_head(stream: &mut UpstreamStream, budget: usize) -> Result<Vec<u8>, HandshakeError> {
    let mut head = Vec::new();
    let mut chunk = [0; CHUNK];
    loop {
        let seen = stream.peek(&mut chunk).await?;
        if seen == 0 {
            return Err(ProtocolCause::Closed.into());
        }
        let taken = head.len();
        head.extend(chunk.iter().take(seen));
        let end = end_of_head(&head, taken);
        head.truncate(end.unwrap_or(head.len()));
        if head.len() > budget {
            return Err(ProtocolCause::HeadTooLong(MAX_HEAD).into());
        }
        let (_, new) = head.split_at_mut(taken);
        stream.read_exact(new).await?;
        if end.is_some() {
            return Ok(head);
        }
    }
}

/// The length of the head with its empty line, of which at most two bytes stand before `searched`.
fn end_of_head(bytes: &[u8], searched: usize) -> Option<usize> {
    let start = searched.saturating_sub(2);
    let tail = bytes.get(start..)?;
    let at = |length: usize| start + length;
    tail.iter().enumerate().find_map(|(index, byte)| {
        let rest = (*byte == b'\n').then(|| tail.get(index + 1..)).flatten()?;
        match rest {
            [b'\n', ..] => Some(at(index + 2)),
            [b'\r', b'\n', ..] => Some(at(index + 3)),
            _ => None,
        }
    })
}

fn status(head: &[u8]) -> Result<u16, HandshakeError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(head) {
        Ok(httparse::Status::Complete(_)) => response.code.ok_or(httparse::Error::Status),
        // Ends where a head ends, yet is none: an empty line comes first.
        Ok(httparse::Status::Partial) => Err(httparse::Error::NewLine),
        Err(error) => Err(error),
    }
    .map_err(|error| ProtocolCause::Http(error).into())
}

/// A gateway reports the destination's trouble with 502, 503 and 504; every other failure is its own refusal.
fn meaning(code: u16, had_credentials: bool) -> Result<(), HandshakeError> {
    Err(match code {
        200..=299 => return Ok(()),
        407 if had_credentials => HandshakeError::Refused(RefusalCause::CredentialsRejected),
        407 => HandshakeError::Refused(RefusalCause::CredentialsWanted),
        502..=504 => HandshakeError::Onward(OnwardCause::Status(code)),
        300..=599 => HandshakeError::Refused(RefusalCause::Status(code)),
        _ => ProtocolCause::Status(code).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::end_of_head;

    #[test]
    fn a_head_ends_at_its_empty_line_however_it_arrives() {
        for (bytes, length) in [
            (&b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0\r\n\r\n"[..], Some(19)),
            (b"HTTP/1.1 200 OK\n\nearly", Some(17)),
            (b"HTTP/1.1 200 OK\n\r\nearly", Some(18)),
            (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", Some(25)),
            (b"HTTP/1.1 200 OK\r\nA: b\r\n\r", None),
            (b"HTTP/1.1 200 OK\r\r\n", None),
            (b"", None),
        ] {
            for pause in 0..=length.unwrap_or(bytes.len()) {
                // Only what was no head before the pause is searched after it.
                if end_of_head(&bytes[..pause], 0).is_none() {
                    assert_eq!(
                        end_of_head(bytes, pause),
                        length,
                        "{bytes:?} cut at {pause}"
                    );
                }
            }
        }
    }
}
