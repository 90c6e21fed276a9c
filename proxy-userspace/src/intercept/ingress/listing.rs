//! What the kernel is asked and told about filters and the queueing discipline that they hang on.

use std::{io, os::fd::AsRawFd as _, os::fd::BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use nix::errno::Errno;

use crate::netlink::{Conversation, is_one_of};

/// The queueing discipline that queues nothing, and has filters on ingress and egress (kernel 4.5).
const CLSACT: &str = "clsact";
/// Every protocol (`ETH_P_ALL`), as filters write it.
const ALL: u16 = 3_u16.to_be();

/// Where filters of an interface are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Ingress,
    Egress,
}

impl Side {
    const fn handle(self) -> TcHandle {
        TcHandle {
            major: TcHandle::CLSACT.major,
            minor: match self {
                Self::Ingress => TcHandle::MIN_INGRESS,
                Self::Egress => TcHandle::MIN_EGRESS,
            },
        }
    }
}

/// A filter, of whomever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) priority: u16,
    /// Which of those of a priority.
    handle: TcHandle,
    protocol: u16,
    /// Of a program, as whoever has attached it calls it.
    pub(super) name: Option<String>,
}

/// All filters of a side of an interface, in the order that packets meet them in; none where there is no such interface.
pub(super) fn filters(
    kernel: &mut Conversation,
    interface: u32,
    side: Side,
) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    let mut all = about(interface);
    all.header.parent = side.handle();
    let asked = RouteNetlinkMessage::GetTrafficFilter(all);
    let answered = kernel.ask(asked, NLM_F_DUMP, |answer| {
        if let RouteNetlinkMessage::NewTrafficFilter(filter) = answer
            && filter.header.index == index(interface)
        {
            listed.push(Listed::from(&filter));
        }
    });
    match answered {
        Err(error) if is_one_of(&error, &[Errno::ENODEV, Errno::EINVAL]) => Ok(Vec::new()),
        answered => answered.map(|()| listed),
    }
}

#[cfg(test)]
impl Listed {
    /// One of a priority and a name.
    pub(super) fn for_tests(priority: u16, name: &str) -> Self {
        Self {
            priority,
            handle: TcHandle::UNSPEC,
            protocol: ALL,
            name: Some(name.to_owned()),
        }
    }
}

impl From<&TcMessage> for Listed {
    fn from(message: &TcMessage) -> Self {
        let options = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                TcAttribute::Options(options) => Some(options.as_slice()),
                _ => None,
            });
        let name = options
            .unwrap_or_default()
            .iter()
            .find_map(|option| match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
                _ => None,
            });
        let info = message.header.info;
        Self {
            priority: (info >> 16) as u16,
            handle: message.header.handle,
            protocol: (info & 0xffff) as u16,
            name,
        }
    }
}

/// Adds a program to ingress, which says itself what becomes of a packet.
pub(super) fn add(
    kernel: &mut Conversation,
    interface: u32,
    priority: u16,
    program: BorrowedFd<'_>,
    name: &str,
) -> io::Result<()> {
    let mut message = about(interface);
    message.header.parent = Side::Ingress.handle();
    message.header.handle = TcHandle { major: 0, minor: 1 };
    message.header.info = info(priority, ALL);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(
            [
                TcFilterBpfOption::ProgFd(program.as_raw_fd().unsigned_abs()),
                TcFilterBpfOption::ProgName(name.to_owned()),
                TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
            ]
            .map(TcOption::Bpf)
            .into(),
        ),
    ];
    let message = RouteNetlinkMessage::NewTrafficFilter(message);
    kernel.change(message, NLM_F_CREATE | NLM_F_EXCL)
}

/// Removes a program from ingress. That there is none is no error.
pub(super) fn remove(kernel: &mut Conversation, interface: u32, filter: &Listed) -> io::Result<()> {
    let mut message = about(interface);
    message.header.parent = Side::Ingress.handle();
    message.header.handle = filter.handle;
    message.header.info = info(filter.priority, filter.protocol);
    message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
    forgive(kernel.change(RouteNetlinkMessage::DelTrafficFilter(message), 0))
}

/// Makes what filters hang on, and says whether it was not there.
pub(super) fn add_qdisc(kernel: &mut Conversation, interface: u32) -> io::Result<bool> {
    let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc(interface));
    match kernel.change(message, NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if is_one_of(&error, &[Errno::EEXIST]) => Ok(false),
        added => added.map(|()| true),
    }
}

/// Removes it, and all filters with it.
pub(super) fn remove_qdisc(kernel: &mut Conversation, interface: u32) -> io::Result<()> {
    let message = RouteNetlinkMessage::DelQueueDiscipline(qdisc(interface));
    forgive(kernel.change(message, 0))
}

fn qdisc(interface: u32) -> TcMessage {
    let mut message = about(interface);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.attributes = vec![TcAttribute::Kind(CLSACT.to_owned())];
    message
}

/// What is gone is gone.
fn forgive(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if is_one_of(&error, &[Errno::ENOENT, Errno::ENODEV, Errno::EINVAL]) => Ok(()),
        removed => removed,
    }
}

fn about(interface: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = index(interface);
    message
}

/// Numbers of interfaces are positive integers of the kernel's.
fn index(interface: u32) -> i32 {
    interface.cast_signed()
}

fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol)
}
