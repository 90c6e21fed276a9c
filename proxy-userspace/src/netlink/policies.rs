//! Policies of `IPsec`, as far as the kernel tells with the list of them.

use std::{fmt, io, net::IpAddr};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
};
use netlink_sys::protocols::NETLINK_XFRM;
use nix::errno::Errno;

use super::{Conversation, is_one_of};

/// What `IPsec` has to say about packets of some hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpsecPolicy {
    /// Of whom, with a prefix length, to whom; or of all that nothing else is said about.
    hosts: Option<[(IpAddr, u8); 2]>,
    /// The direction, by the kernel's number.
    pub direction: u8,
}

impl IpsecPolicy {
    /// Of what this host sends, also for others.
    pub const OUT: u8 = 1;
    /// Of what passes through.
    pub const FORWARD: u8 = 2;

    /// All of them in the network namespace of this thread; none where the kernel has no `IPsec`. Those of single sockets are not listed.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn all() -> io::Result<Vec<Self>> {
        let listed = Conversation::with(NETLINK_XFRM).and_then(|mut kernel| {
            let mut policies = Vec::new();
            let mut hear = |answer| match answer {
                Message::Policy(policy) => policies.push(policy),
                Message::Blocked(directions) => {
                    policies.extend(directions.into_iter().flatten().map(|direction| Self {
                        hosts: None,
                        direction,
                    }));
                }
                Message::ListAll | Message::AskDefault | Message::Other => {}
            };
            kernel.ask(Message::ListAll, NLM_F_DUMP, &mut hear)?;
            // Before 5.15 what no policy is about is let through.
            match kernel.ask(Message::AskDefault, NLM_F_ACK, &mut hear) {
                Err(error) if is_one_of(&error, &[Errno::EINVAL]) => {}
                answered => answered?,
            }
            Ok(policies)
        });
        match listed {
            Err(error) if is_one_of(&error, &[Errno::EPROTONOSUPPORT]) => Ok(Vec::new()),
            listed => listed,
        }
    }
}

/// As `ip xfrm policy` shows it.
impl fmt::Display for IpsecPolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Self::OUT => "out",
            Self::FORWARD => "fwd",
            _ => "in",
        };
        match self.hosts {
            Some([(from, from_len), (to, to_len)]) => {
                write!(
                    formatter,
                    "src {from}/{from_len} dst {to}/{to_len} dir {direction}"
                )
            }
            None => write!(formatter, "default {direction} block"),
        }
    }
}

/// `XFRM_MSG_GETPOLICY`, `XFRM_MSG_NEWPOLICY` and `XFRM_MSG_GETDEFAULT`.
const GET_POLICY: u16 = 0x15;
const NEW_POLICY: u16 = 0x13;
const GET_DEFAULT: u16 = 0x28;
/// Bytes of `struct xfrm_userpolicy_id`, with which they are asked for, and of `struct xfrm_userpolicy_default`.
const QUESTION_LEN: usize = 64;
const DEFAULT_LEN: usize = 3;
/// Where fields of `struct xfrm_userpolicy_info` are: addresses to and from, their family, lengths of their prefixes, the direction.
const TO: usize = 0;
const FROM: usize = 16;
const FAMILY: usize = 40;
const TO_LEN: usize = 42;
const FROM_LEN: usize = 43;
const DIRECTION: usize = 160;
/// `XFRM_USERPOLICY_BLOCK`.
const BLOCK: u8 = 1;

/// What is asked and answered.
enum Message {
    /// For all policies.
    ListAll,
    /// For what becomes of packets that no policy is about.
    AskDefault,
    Policy(IpsecPolicy),
    /// The directions in which such packets are dropped.
    Blocked([Option<u8>; DEFAULT_LEN]),
    Other,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::AskDefault => GET_DEFAULT,
            _ => GET_POLICY,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::AskDefault => DEFAULT_LEN,
            _ => QUESTION_LEN,
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let read = match header.message_type {
            NEW_POLICY => policy(payload).map(Self::Policy),
            GET_DEFAULT => blocked(payload).map(Self::Blocked),
            _ => None,
        };
        Ok(read.unwrap_or(Self::Other))
    }
}

fn policy(payload: &[u8]) -> Option<IpsecPolicy> {
    let family = u16::from_ne_bytes([*payload.get(FAMILY)?, *payload.get(FAMILY + 1)?]);
    let address = |at: usize| {
        let bytes: [u8; 16] = payload.get(at..at + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = bytes;
        Some(if i32::from(family) == libc::AF_INET6 {
            IpAddr::from(bytes)
        } else {
            IpAddr::from([a, b, c, d])
        })
    };
    let from = (address(FROM)?, *payload.get(FROM_LEN)?);
    let to = (address(TO)?, *payload.get(TO_LEN)?);
    Some(IpsecPolicy {
        hosts: Some([from, to]),
        direction: *payload.get(DIRECTION)?,
    })
}

/// In the order of the struct: in, forward, out.
fn blocked(payload: &[u8]) -> Option<[Option<u8>; DEFAULT_LEN]> {
    let [in_, forward, out]: [u8; DEFAULT_LEN] = payload.get(..DEFAULT_LEN)?.try_into().ok()?;
    let of = |what, direction| (what == BLOCK).then_some(direction);
    Some([
        of(in_, 0),
        of(forward, IpsecPolicy::FORWARD),
        of(out, IpsecPolicy::OUT),
    ])
}
