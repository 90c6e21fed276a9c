//! What a client asks for by name in its first bytes: the name in a TLS `ClientHello`, the host of an HTTP request.
//!
//! The bytes are looked at where they lie (`MSG_PEEK`) and stay there for the relay: nothing is answered, ended or changed.
//! Looking is bounded in bytes and in time, and costs a connection no memory: each look reads into a buffer of the thread and
//! keeps what it found. `connection` asks only where a rule has names, so no other connection ever waits.
//!
//! What the kernel does here (Linux 6.18; the first is older than our oldest kernel, 5.10):
//! - `SO_RCVLOWAT` has the socket wake nobody until so many bytes wait, or the stream ends (`tcp_data_ready()` and `tcp_poll()`,
//!   Linux 4.18). Setting it rings for what waits already, so bytes that came in between are not missed.
//! - A look does not take bytes, so the queue never runs empty and the end of the stream shows by no read of 0 bytes, but by
//!   `EPOLLRDHUP` alone.
//! - It also raises a receive buffer that is too small for so many bytes, and for no more (`tcp_set_rcvlowat()`). So the limit is asked
//!   for once, or a buffer of a few KiB (`tcp_rmem`) would be full for ever: nobody takes anything out of it.

mod h2;
mod http;
mod table;
mod tls;

#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    io,
};

use tokio::{io::Interest, net::TcpStream, time::timeout};

use crate::{
    rule::{Kind, Limits, Name},
    socket,
};

pub use self::table::Table;

/// What a client's first bytes say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flight {
    /// Where the name was, or would have been; `None`: the bytes are of no protocol that has one.
    pub kind: Option<Kind>,
    /// The name that the client asks for.
    pub name: Option<Name>,
    /// The protocols that it offers (ALPN), as they are on the wire: each behind a byte with its length.
    alpn: Vec<u8>,
}

impl Flight {
    /// The protocols that the client offers, in its order.
    pub fn alpn(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.alpn.as_slice();
        std::iter::from_fn(move || {
            let (length, behind) = rest.split_first()?;
            let (protocol, behind) = behind.split_at_checked(usize::from(*length))?;
            rest = behind;
            Some(protocol)
        })
    }
}

/// What came of looking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The first bytes are whole, and may hold a name.
    Whole(Flight),
    /// They begin as TLS or HTTP and are not, or are longer than the limit. Why.
    Malformed(&'static str),
    /// They were not all there in time.
    Late,
}

impl Seen {
    /// As it is counted.
    #[must_use]
    pub fn counted(&self) -> Peeked {
        match self {
            Self::Whole(flight) if flight.name.is_some() => Peeked::Named,
            Self::Whole(_) => Peeked::Unnamed,
            Self::Malformed(_) => Peeked::Malformed,
            Self::Late => Peeked::Late,
        }
    }
}

/// What came of looking, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peeked {
    /// There was a name.
    Named,
    /// There was none.
    Unnamed,
    /// See [`Seen::Malformed`].
    Malformed,
    /// See [`Seen::Late`].
    Late,
}

impl Peeked {
    /// Every one, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Named, Self::Unnamed, Self::Malformed, Self::Late];

    /// The stable name of the counter.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Unnamed => "unnamed",
            Self::Malformed => "malformed",
            Self::Late => "timed_out",
        }
    }
}

/// What the bytes up to here say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sight {
    /// All that is to know.
    Whole(Flight),
    /// See [`Seen::Malformed`].
    Malformed(&'static str),
    /// Nothing before there are at least so many bytes.
    More(usize),
}

/// Looks at the first bytes of a connection until they say what they have to say.
///
/// # Errors
/// When the connection failed.
pub async fn first_flight(stream: &TcpStream, limits: Limits) -> io::Result<Seen> {
    let waited = Cell::new(false);
    let seen = match timeout(limits.time, look(stream, limits.bytes, &waited)).await {
        Ok(seen) => seen?,
        Err(_) => Seen::Late,
    };
    if waited.get() {
        // Back to what it was; and rings for those who wait for bytes that came before, which the runtime has forgotten.
        socket::handle_waiting(stream)?;
    }
    Ok(seen)
}

async fn look(stream: &TcpStream, most: usize, waited: &Cell<bool>) -> io::Result<Seen> {
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        let ended = ready.is_read_closed();
        // One closure: a wake-up while it runs is newer than what "would block" takes back.
        let looked = stream.try_io(Interest::READABLE, || {
            match BUFFER.with_borrow_mut(|buffer| glance(stream, buffer, most))? {
                (Sight::Whole(flight), _) => Ok(Seen::Whole(flight)),
                (Sight::Malformed(why), _) => Ok(Seen::Malformed(why)),
                (Sight::More(_), 0) if ended => Ok(Seen::Whole(Flight::default())),
                (Sight::More(_), _) if ended => Ok(Seen::Malformed("it ends too early")),
                (Sight::More(least), count) if least > most || count == most => {
                    Ok(Seen::Malformed("it is longer than may be looked at"))
                }
                (Sight::More(least), count) => {
                    if !waited.replace(true) {
                        // For the room that it makes.
                        socket::wake_at(stream, most)?;
                    }
                    socket::wake_at(stream, least.max(count + 1))?;
                    Err(io::ErrorKind::WouldBlock.into())
                }
            }
        });
        match looked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            looked => return looked,
        }
    }
}

thread_local! {
    /// Every look reads anew from the beginning, so nothing outlives one.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What waits now, and how many bytes of it were looked at.
fn glance(stream: &TcpStream, buffer: &mut Vec<u8>, most: usize) -> io::Result<(Sight, usize)> {
    if buffer.len() < most {
        buffer.resize(most, 0);
    }
    let room = buffer.get_mut(..most).unwrap_or_default();
    let count = socket::peek(stream, room)?;
    let bytes = room.get(..count).unwrap_or_default();
    Ok((judge(bytes), count))
}

/// Tells TLS from HTTP by the first bytes; what is neither has no name.
fn judge(bytes: &[u8]) -> Sight {
    match bytes {
        [] => Sight::More(1),
        [tls::HANDSHAKE, ..] => tls::judge(bytes),
        _ if h2::may_be(bytes) => h2::judge(bytes),
        _ => http::judge(bytes),
    }
}
