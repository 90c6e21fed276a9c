//! The conversation with the kernel about rules and routes: one question or change at a time, each answered at once.

use std::{io, net::IpAddr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage},
    rule::RuleMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use super::{
    DeliveryError,
    entry::{Family, Route, Rule, length},
};

/// Longest message of the kernel's (`netlink_dump()` in `net/netlink/af_netlink.c`).
const LONGEST: usize = 32 << 10;

/// What the kernel says of an address that no route leads to.
const NO_ROUTE: [Errno; 4] = [
    Errno::ENETUNREACH,
    Errno::EHOSTUNREACH,
    Errno::EACCES,
    Errno::EINVAL,
];

/// A socket of the network namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Kernel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Kernel {
    pub(super) fn open() -> Result<Self, DeliveryError> {
        let socket = Socket::new(NETLINK_ROUTE)
            .and_then(|socket| socket.connect(&SocketAddr::new(0, 0)).map(|()| socket))
            .map_err(failed("talk to the kernel about routing (NETLINK_ROUTE)"))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(LONGEST),
        })
    }

    /// All rules of a family, in the order they are asked in; none where there is no such family.
    pub(super) fn rules(&mut self, family: Family) -> Result<Vec<Rule>, DeliveryError> {
        let mut all = RuleMessage::default();
        all.header.family = family.into();
        let mut rules = Vec::new();
        let answered = self.ask(RouteNetlinkMessage::GetRule(all), NLM_F_DUMP, |message| {
            if let RouteNetlinkMessage::NewRule(rule) = message {
                rules.push(Rule::from(rule));
            }
        });
        match answered {
            Err(error) if is_one_of(&error, &[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP]) => {}
            answered => answered.map_err(failed("list the routing rules"))?,
        }
        // The kernel has sent another family's where it knows no rules of this one.
        rules.retain(|rule| rule.family() == Some(family));
        Ok(rules)
    }

    /// The route to an address; none where none leads there.
    pub(super) fn route(&mut self, to: IpAddr) -> Result<Option<RouteMessage>, DeliveryError> {
        let mut message = RouteMessage::default();
        message.header.address_family = Family::of(to).into();
        message.header.destination_prefix_length = length(to);
        message.attributes = vec![RouteAttribute::Destination(to.into())];
        let mut found = None;
        let asked = RouteNetlinkMessage::GetRoute(message);
        // The acknowledgement is the end of the answer.
        let answered = self.ask(asked, NLM_F_ACK, |answer| {
            if let RouteNetlinkMessage::NewRoute(route) = answer {
                found = Some(route);
            }
        });
        match answered {
            Err(error) if is_one_of(&error, &NO_ROUTE) => Ok(None),
            answered => answered
                .map(|()| found)
                .map_err(failed(format!("ip route get {to}"))),
        }
    }

    pub(super) fn add_rule(&mut self, rule: &Rule) -> Result<(), DeliveryError> {
        let message = RouteNetlinkMessage::NewRule(rule.message().clone());
        self.change(message, NLM_F_CREATE | NLM_F_EXCL)
            .map_err(failed(rule.command()))
    }

    pub(super) fn add_route(&mut self, route: Route) -> Result<(), DeliveryError> {
        let message = RouteNetlinkMessage::NewRoute(route.message());
        self.change(message, NLM_F_CREATE | NLM_F_EXCL)
            .map_err(failed(route.command()))
    }

    /// That there is none is no error.
    pub(super) fn remove_rule(&mut self, rule: &Rule) -> Result<(), DeliveryError> {
        let message = RouteNetlinkMessage::DelRule(rule.message().clone());
        self.remove(message)
            .map_err(failed(format!("remove the routing rule `{rule}`")))
    }

    /// That there is none is no error.
    pub(super) fn remove_route(&mut self, route: Route) -> Result<(), DeliveryError> {
        let message = RouteNetlinkMessage::DelRoute(route.message());
        let operation = format!("remove the route that `{}` makes", route.command());
        self.remove(message).map_err(failed(operation))
    }

    fn remove(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        match self.change(message, 0) {
            Err(error)
                if is_one_of(
                    &error,
                    &[
                        Errno::ENOENT,
                        Errno::ESRCH,
                        Errno::ENODEV,
                        Errno::EAFNOSUPPORT,
                        Errno::EOPNOTSUPP,
                    ],
                ) =>
            {
                Ok(())
            }
            changed => changed,
        }
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, flags | NLM_F_ACK, |_| ())
    }

    /// Sends a message and hears its answers to the last one.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut hear: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = &*self.buffer;
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(io::Error::other)?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                // An answer to an earlier question, whose end was not waited for.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(answer) => hear(answer),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }
}

fn is_one_of(error: &io::Error, numbers: &[Errno]) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    number.is_some_and(|number| numbers.contains(&number))
}

fn failed(operation: impl Into<String>) -> impl FnOnce(io::Error) -> DeliveryError {
    let operation = operation.into();
    move |source| DeliveryError::Kernel { operation, source }
}
