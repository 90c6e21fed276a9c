//! Which chains of nftables packets meet, as far as the kernel tells with the list of them.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
    NlasIterator,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::{Conversation, is_one_of};

/// A chain of nftables that packets go through at some point of their way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `NFPROTO_…`.
    pub family: u8,
    /// The table that it is in.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The point, by the numbers of its family.
    pub hook: u32,
    /// Whether what no rule accepts is dropped.
    pub drops: bool,
    /// Rules in it.
    pub rules: u32,
}

impl Chain {
    /// All of them in the network namespace of this thread; none where the kernel has no nftables.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn all() -> io::Result<Vec<Self>> {
        let listed = Conversation::with(NETLINK_NETFILTER).and_then(|mut kernel| {
            let mut chains = Vec::new();
            kernel.ask(Message::Question, NLM_F_DUMP, |answer| {
                if let Message::Base(chain) = answer {
                    chains.push(chain);
                }
            })?;
            Ok(chains)
        });
        let absent = [
            Errno::EPROTONOSUPPORT,
            Errno::EOPNOTSUPP,
            Errno::EINVAL,
            Errno::ENOENT,
        ];
        match listed {
            Err(error) if is_one_of(&error, &absent) => Ok(Vec::new()),
            listed => listed,
        }
    }
}

/// `NFNL_SUBSYS_NFTABLES`, and `NFT_MSG_GETCHAIN` and `NFT_MSG_NEWCHAIN` of it.
const GET_CHAIN: u16 = 10 << 8 | 4;
const NEW_CHAIN: u16 = 10 << 8 | 3;
/// `struct nfgenmsg`: the family, and nothing of ours.
const GENERAL_LEN: usize = 4;

/// Of `enum nft_chain_attributes`.
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const USES: u16 = 6;
/// Of `enum nft_hook_attributes`.
const HOOK_NUMBER: u16 = 1;
/// A policy.
const DROP: u32 = 0;

/// What is asked and answered.
enum Message {
    /// For the chains of every family.
    Question,
    /// One that packets go through.
    Base(Chain),
    /// One that others jump to, or something else.
    Other,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        GET_CHAIN
    }

    fn buffer_len(&self) -> usize {
        GENERAL_LEN
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (Some(family), Some(attributes)) = (payload.first(), payload.get(GENERAL_LEN..)) else {
            return Ok(Self::Other);
        };
        if header.message_type != NEW_CHAIN {
            return Ok(Self::Other);
        }
        let mut chain = Chain {
            family: *family,
            ..Chain::default()
        };
        let mut hook = None;
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                TABLE => chain.table = text(value),
                NAME => chain.name = text(value),
                HOOK => {
                    for inner in NlasIterator::new(value) {
                        let inner = inner?;
                        if inner.kind() == HOOK_NUMBER {
                            hook = number(inner.value());
                        }
                    }
                }
                POLICY => chain.drops = number(value) == Some(DROP),
                USES => chain.rules = number(value).unwrap_or_default(),
                _ => {}
            }
        }
        Ok(hook.map_or(Self::Other, |hook| Self::Base(Chain { hook, ..chain })))
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
