//! The PROXY protocol (haproxy.org, `proxy-protocol.txt`): what is said about a connection before its first byte, by trusted
//! senders to us and by us to servers.

mod claim;
mod receive;
mod send;

pub use self::send::{UniqueId, header, own_header};
pub(crate) use self::{claim::is_claimed, receive::receive};
