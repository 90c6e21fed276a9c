//! One rule or route: what the kernel is told, and what people read.

use std::{fmt, net::IpAddr};

use netlink_packet_route::{
    AddressFamily, IpProtocol,
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange},
};

use super::{PRIORITY, PROTOCOL, TABLES, Want};

/// The table of local addresses (`RT_TABLE_LOCAL`).
const LOCAL: u32 = 255;
/// Loopback has this number in every network namespace (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
const LOOPBACK: u32 = 1;
const WHOLE_MARK: u32 = u32::MAX;

/// A family of addresses; each has rules and tables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// How `ip` is called for it.
    const fn tool(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip -6",
        }
    }
}

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Inet,
            Family::V6 => Self::Inet6,
        }
    }
}

impl Want {
    pub(super) const fn families(&self) -> &'static [Family] {
        match self {
            Self::Marked { .. } => &Family::ALL,
            Self::Replies { from } => match Family::of(from.ip()) {
                Family::V4 => &[Family::V4],
                Family::V6 => &[Family::V6],
            },
        }
    }
}

/// A routing rule, of whomever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule(RuleMessage);

impl From<RuleMessage> for Rule {
    fn from(message: RuleMessage) -> Self {
        Self(message)
    }
}

impl Rule {
    /// What a want takes in a family.
    pub(super) fn of(want: &Want, family: Family, table: u32) -> Self {
        let mut message = RuleMessage::default();
        message.header.family = family.into();
        message.header.action = RuleAction::ToTable;
        let selectors = match want {
            Want::Marked { interface } => vec![
                RuleAttribute::FwMark(table),
                RuleAttribute::FwMask(WHOLE_MARK),
                RuleAttribute::Iifname(interface.to_string()),
            ],
            Want::Replies { from } => {
                message.header.src_len = length(from.ip());
                vec![
                    RuleAttribute::Source(from.ip()),
                    RuleAttribute::IpProtocol(IpProtocol::Tcp),
                    RuleAttribute::SourcePortRange(RulePortRange {
                        start: from.port(),
                        end: from.port(),
                    }),
                ]
            }
        };
        message.attributes = selectors;
        message.attributes.extend([
            RuleAttribute::Priority(PRIORITY),
            RuleAttribute::Table(table),
            RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        ]);
        Self(message)
    }

    pub(super) const fn message(&self) -> &RuleMessage {
        &self.0
    }

    pub(super) fn family(&self) -> Option<Family> {
        let is_of = |family: &Family| AddressFamily::from(*family) == self.0.header.family;
        Family::ALL.into_iter().find(is_of)
    }

    /// The number of one of our tables, if the rule is ours.
    pub(super) fn own_table(&self) -> Option<u32> {
        let is_tagged = self.any(|attribute| match attribute {
            RuleAttribute::Protocol(protocol) => Some(u8::from(*protocol) == PROTOCOL),
            _ => None,
        });
        let table = self.table().filter(|table| TABLES.contains(table));
        table.filter(|_| is_tagged == Some(true))
    }

    /// The table that packets are looked up in.
    pub(super) fn table(&self) -> Option<u32> {
        let to_table = self.0.header.action == RuleAction::ToTable;
        let table = self.any(|attribute| match attribute {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        });
        to_table.then(|| table.unwrap_or_else(|| self.0.header.table.into()))
    }

    /// Whether it looks up local addresses only, as the first rule of every system does.
    pub(super) fn is_of_local_addresses(&self) -> bool {
        self.table() == Some(LOCAL)
    }

    /// The lower, the earlier it is asked.
    pub(super) fn priority(&self) -> u32 {
        let priority = self.any(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
        priority.unwrap_or_default()
    }

    /// The mark it asks for, and which bits of it count.
    pub(super) fn mark(&self) -> Option<(u32, u32)> {
        let value = self.any(|attribute| match attribute {
            RuleAttribute::FwMark(value) => Some(*value),
            _ => None,
        })?;
        let mask = self.any(|attribute| match attribute {
            RuleAttribute::FwMask(mask) => Some(*mask),
            _ => None,
        });
        Some((value, mask.unwrap_or(WHOLE_MARK)))
    }

    /// Whether it is about all packets that its selectors do not name.
    pub(super) fn is_inverted(&self) -> bool {
        self.0.header.flags.contains(RuleFlags::Invert)
    }

    /// What makes it.
    pub(super) fn command(&self) -> String {
        let tool = self.family().map_or("ip", Family::tool);
        format!(
            "{tool} rule add {} priority {}",
            self.selectors(),
            self.priority()
        )
    }

    fn any<T>(&self, of: impl FnMut(&RuleAttribute) -> Option<T>) -> Option<T> {
        self.0.attributes.iter().find_map(of)
    }

    fn selectors(&self) -> String {
        let header = &self.0.header;
        let mut words = Vec::new();
        if self.is_inverted() {
            words.push("not".to_owned());
        }
        if header.src_len == 0 {
            words.push("from all".to_owned());
        }
        words.extend(
            self.0
                .attributes
                .iter()
                .filter_map(|attribute| match attribute {
                    RuleAttribute::Source(from) => Some(format!("from {from}/{}", header.src_len)),
                    RuleAttribute::Destination(to) => Some(format!("to {to}/{}", header.dst_len)),
                    RuleAttribute::Iifname(name) => Some(format!("iif {name}")),
                    RuleAttribute::Oifname(name) => Some(format!("oif {name}")),
                    RuleAttribute::IpProtocol(protocol) => {
                        Some(format!("ipproto {}", i32::from(*protocol)))
                    }
                    RuleAttribute::SourcePortRange(ports) => {
                        Some(format!("sport {}", range(*ports)))
                    }
                    RuleAttribute::DestinationPortRange(ports) => {
                        Some(format!("dport {}", range(*ports)))
                    }
                    RuleAttribute::UidRange(ids) => {
                        Some(format!("uidrange {}-{}", ids.start, ids.end))
                    }
                    RuleAttribute::L3MDev(true) => Some("lookup [l3mdev-table]".to_owned()),
                    _ => None,
                }),
        );
        if let Some((value, mask)) = self.mark() {
            words.push(match mask {
                WHOLE_MARK => format!("fwmark {value:#x}"),
                _ => format!("fwmark {value:#x}/{mask:#x}"),
            });
        }
        words.extend(
            self.table()
                .filter(|table| *table != 0)
                .map(|table| format!("lookup {table}")),
        );
        if self.own_table().is_some() {
            words.push(format!("protocol {PROTOCOL}"));
        }
        words.join(" ")
    }
}

/// As `ip rule` shows it.
impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.priority(), self.selectors())
    }
}

/// The one route of a table: everything is at this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    family: Family,
    table: u32,
}

impl Route {
    pub(super) const fn of(family: Family, table: u32) -> Self {
        Self { family, table }
    }

    pub(super) fn message(self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = self.family.into();
        message.header.protocol = RouteProtocol::Other(PROTOCOL);
        message.header.scope = RouteScope::Host;
        message.header.kind = RouteType::Local;
        message.attributes = vec![
            RouteAttribute::Table(self.table),
            RouteAttribute::Oif(LOOPBACK),
        ];
        message
    }

    /// What makes it.
    pub(super) fn command(self) -> String {
        let (tool, table) = (self.family.tool(), self.table);
        format!("{tool} route add local default dev lo table {table} protocol {PROTOCOL}")
    }
}

pub(super) const fn length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn range(ports: RulePortRange) -> String {
    if ports.start == ports.end {
        ports.start.to_string()
    } else {
        format!("{}-{}", ports.start, ports.end)
    }
}
