//! Clients that begin as only trusted senders may.
//!
//! A service that believes headers would take such a client for whomever it says. The bytes are looked at where they lie and
//! stay there for the relay.

use std::{cell::Cell, io};

use ppp::{v1, v2};
use tokio::{io::Interest, net::TcpStream};

use crate::socket;

/// Whether a client begins with a PROXY header. Waits until its first bytes tell.
///
/// # Errors
/// When the connection failed.
pub(crate) async fn is_claimed(stream: &TcpStream) -> io::Result<bool> {
    let look = Look {
        stream,
        waited: Cell::new(false),
    };
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        let ended = ready.is_read_closed();
        // One closure: a wake-up while it runs is newer than what "would block" takes back.
        let looked = stream.try_io(Interest::READABLE, || look.once(ended));
        match looked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            looked => return looked,
        }
    }
}

/// A look at a stream, after which that wakes as ever.
struct Look<'a> {
    stream: &'a TcpStream,
    waited: Cell<bool>,
}

impl Look<'_> {
    fn once(&self, ended: bool) -> io::Result<bool> {
        let mut first = [0; v2::PROTOCOL_PREFIX.len()];
        let count = socket::peek(self.stream, &mut first)?;
        let bytes = first.get(..count).unwrap_or_default();
        match judge(bytes) {
            Some(claims) => Ok(claims),
            None if ended => Ok(false),
            None => {
                self.waited.set(true);
                socket::wake_at(self.stream, count + 1)?;
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        // It also rings for bytes that came before. None of this fails on a socket that is open.
        if self.waited.get()
            && let Err(error) = socket::handle_waiting(self.stream)
        {
            tracing::debug!(%error, "a socket wakes late");
        }
    }
}

/// Whether bytes begin a header; `None` while they are too few to tell.
fn judge(bytes: &[u8]) -> Option<bool> {
    let signatures = [v1::PROTOCOL_PREFIX.as_bytes(), v2::PROTOCOL_PREFIX];
    if signatures
        .iter()
        .any(|signature| bytes.starts_with(signature))
    {
        return Some(true);
    }
    let may_be = |signature: &&[u8]| signature.starts_with(bytes);
    (!signatures.iter().any(may_be)).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_from_what_only_begins_like_them() {
        assert_eq!(judge(b""), None);
        assert_eq!(judge(b"PRO"), None);
        assert_eq!(judge(b"PRI * HTTP/2.0"), Some(false));
        assert_eq!(judge(b"POST / HTTP/1.1"), Some(false));
        assert_eq!(judge(b"PROXY TCP4 "), Some(true));
        let binary = b"\r\n\r\n\0\r\nQUIT\n\x21";
        for length in 0..12 {
            assert_eq!(judge(&binary[..length]), None, "{length}");
        }
        assert_eq!(judge(binary), Some(true));
        assert_eq!(judge(b"\r\n\r\nGET / HTTP/1.1"), Some(false));
    }
}
