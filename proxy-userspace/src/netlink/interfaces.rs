//! Which interfaces there are.

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
};

use super::Conversation;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Whether packets that it gets were sent by this host.
    pub is_loopback: bool,
    /// Whether packets that it gets are another interface's: it is a port of a bridge or bond.
    pub is_port: bool,
    /// Whether packets have Ethernet headers.
    pub is_ethernet: bool,
    /// Bytes of the longest IP packet that it can send.
    pub mtu: u32,
}

impl Conversation {
    /// All interfaces.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        let mut interfaces = Vec::new();
        let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.ask(all, NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                interfaces.extend(Interface::of(&link));
            }
        })?;
        Ok(interfaces)
    }
}

impl Interface {
    fn of(link: &LinkMessage) -> Option<Self> {
        let name = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })?;
        let mtu = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
        let is_port = link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.iter().any(|info| {
                matches!(
                    info,
                    LinkInfo::PortKind(
                        InfoPortKind::Bond | InfoPortKind::Bridge | InfoPortKind::Team
                    )
                )
            }),
            _ => false,
        });
        Some(Self {
            number: link.header.index,
            name,
            is_loopback: link.header.flags.contains(LinkFlags::Loopback),
            is_port,
            is_ethernet: link.header.link_layer_type == LinkLayerType::Ether,
            mtu: mtu.unwrap_or_default(),
        })
    }
}
