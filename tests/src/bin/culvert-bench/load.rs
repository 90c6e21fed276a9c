//! The load: a client that runs as an app and a server, each a process of its own, and what they say to each other.
//!
//! Both are event loops over sockets that do not block, as programs are that care for speed; a socket that blocks would not be
//! given the shortcut. Neither does anything for a byte but count it and look at a few positions.

pub(crate) mod client;
mod job;
mod message;
pub(crate) mod order;
mod pair;
mod pattern;
mod reactor;
pub(crate) mod server;
mod transfer;

pub(crate) use self::pair::Pair;
