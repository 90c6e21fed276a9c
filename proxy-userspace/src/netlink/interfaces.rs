//! Which interfaces there are, and which addresses.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
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
    /// What it is a port of.
    pub port: Port,
    /// What packets begin with.
    pub header: Header,
    /// Bytes of the longest IP packet that it can send.
    pub mtu: u32,
}

/// What comes before the header of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// That of Ethernet.
    Ethernet,
    /// Nothing.
    None,
    /// Something else.
    Other,
}

/// What an interface is a port of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Nothing that is known here.
    None,
    /// A bridge or bond, whose packets are those that it gets.
    Link,
    /// A VRF: its packets are routed by tables of their own.
    Table,
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

    /// All addresses of IPv4.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn addresses_v4(&mut self) -> io::Result<Vec<Ipv4Addr>> {
        let mut question = AddressMessage::default();
        question.header.family = AddressFamily::Inet;
        let mut addresses = Vec::new();
        let all = RouteNetlinkMessage::GetAddress(question);
        self.ask(all, NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewAddress(address) = answer {
                addresses.extend(address.attributes.iter().filter_map(own));
            }
        })?;
        Ok(addresses)
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
        let port = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                    LinkInfo::PortKind(kind) => Some(kind),
                    _ => None,
                }),
                _ => None,
            });
        Some(Self {
            number: link.header.index,
            name,
            is_loopback: link.header.flags.contains(LinkFlags::Loopback),
            port: match port {
                Some(InfoPortKind::Bond | InfoPortKind::Bridge | InfoPortKind::Team) => Port::Link,
                Some(InfoPortKind::Vrf) => Port::Table,
                _ => Port::None,
            },
            header: match link.header.link_layer_type {
                LinkLayerType::Ether => Header::Ethernet,
                LinkLayerType::None => Header::None,
                _ => Header::Other,
            },
            mtu: mtu.unwrap_or_default(),
        })
    }
}

/// An address of this host, not of the other end of a link.
const fn own(attribute: &AddressAttribute) -> Option<Ipv4Addr> {
    match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    }
}
