//! What the kernel is asked and told about rules and routes.

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage},
    rule::RuleMessage,
};
use nix::errno::Errno;

use super::{
    DeliveryError,
    entry::{Family, Route, Rule, length},
};
use crate::netlink::{Conversation, is_one_of};

/// What the kernel says of an address that no route leads to.
const NO_ROUTE: [Errno; 4] = [
    Errno::ENETUNREACH,
    Errno::EHOSTUNREACH,
    Errno::EACCES,
    Errno::EINVAL,
];

/// A socket of the network namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Kernel(Conversation);

/// What is answered about rules of a family that the kernel does not speak.
const NO_FAMILY: [Errno; 2] = [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP];

impl Kernel {
    pub(super) fn open() -> Result<Self, DeliveryError> {
        Conversation::open()
            .map(Self)
            .map_err(failed("talk to the kernel about routing (NETLINK_ROUTE)"))
    }

    /// All rules of a family, in the order they are asked in; none where there is no such family.
    pub(super) fn rules(&mut self, family: Family) -> Result<Vec<Rule>, DeliveryError> {
        let mut all = RuleMessage::default();
        all.header.family = family.into();
        let mut rules = Vec::new();
        let answered = self
            .0
            .ask(RouteNetlinkMessage::GetRule(all), NLM_F_DUMP, |message| {
                if let RouteNetlinkMessage::NewRule(rule) = message {
                    rules.push(Rule::from(rule));
                }
            });
        match answered {
            Err(error) if is_one_of(&error, &NO_FAMILY) => {}
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
        let answered = self.0.ask(asked, NLM_F_ACK, |answer| {
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

    /// Whether it was added: it is not where the kernel has no such family (`ipv6.disable=1`).
    pub(super) fn add_rule(&mut self, rule: &Rule) -> Result<bool, DeliveryError> {
        let message = RouteNetlinkMessage::NewRule(rule.message().clone());
        match self.0.change(message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if is_one_of(&error, &NO_FAMILY) => Ok(false),
            changed => changed.map(|()| true).map_err(failed(rule.command())),
        }
    }

    pub(super) fn add_route(&mut self, route: Route) -> Result<(), DeliveryError> {
        let message = RouteNetlinkMessage::NewRoute(route.message());
        self.0
            .change(message, NLM_F_CREATE | NLM_F_EXCL)
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
        match self.0.change(message, 0) {
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
}

fn failed(operation: impl Into<String>) -> impl FnOnce(io::Error) -> DeliveryError {
    let operation = operation.into();
    move |source| DeliveryError::Kernel { operation, source }
}
