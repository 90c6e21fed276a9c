//! By which way the kernel would route a packet.

use std::{io, net::IpAddr};

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteType},
};

use super::Conversation;

/// Where a packet goes that comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is for this host.
    Here,
    /// On, by the interface of this number.
    By(u32),
    /// Nowhere.
    Nowhere,
}

impl Conversation {
    /// Where a packet goes that comes in by an interface.
    ///
    /// # Errors
    /// The kernel's answer: also that it would not take such a packet.
    pub fn way(&mut self, from: IpAddr, to: IpAddr, by: u32) -> io::Result<Way> {
        let mut message = RouteMessage::default();
        let (family, length) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.header.address_family = family;
        message.header.destination_prefix_length = length;
        message.header.source_prefix_length = length;
        message.attributes = vec![
            RouteAttribute::Destination(to.into()),
            RouteAttribute::Source(from.into()),
            RouteAttribute::Iif(by),
        ];
        let mut way = Way::Nowhere;
        // The acknowledgement is the end of the answer.
        self.ask(
            RouteNetlinkMessage::GetRoute(message),
            NLM_F_ACK,
            |answer| {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    way = Way::of(&route);
                }
            },
        )?;
        Ok(way)
    }
}

impl Way {
    fn of(route: &RouteMessage) -> Self {
        let leaves_by = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(number) => Some(*number),
                _ => None,
            });
        match route.header.kind {
            RouteType::Unicast => leaves_by.map_or(Self::Nowhere, Self::By),
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => Self::Nowhere,
            _ => Self::Here,
        }
    }
}
