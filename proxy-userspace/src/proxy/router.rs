//! Keeps the fast path on the interfaces that it is wanted on, as long as nobody else has a say in what passes there.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use proxy_common::{Doubts, FAST_LINK_NUMBERS, FastLink, asks};
use thiserror::Error;

use super::{Proxy, ProxyError};
use crate::{
    forwarding::{self, WayBack},
    netfilter,
    netlink::{Conversation, Header, Interface, Port},
    rule::Router,
};

/// Why there is no fast path.
#[derive(Debug, Error)]
pub enum RouterError {
    /// Rules of netfilter would not see what passes through.
    #[error(
        "the fast path keeps packets from netfilter, which has something to say about them ({}); leave out `fast_path`, or write \
         `force = true` beside it",
        .0.join(", ")
    )]
    Netfilter(Vec<String>),
    /// Packets would go past `IPsec`.
    #[error(
        "the fast path sends packets past IPsec, which has policies for them ({}); leave out `fast_path`, or write `force = true` \
         beside it",
        .0.join(", ")
    )]
    Ipsec(Vec<String>),
    /// It is not known whether there are such rules.
    #[error(
        "cannot see whether netfilter or IPsec has rules for what passes through (`force = true` in [router] does without)"
    )]
    Unknown(#[source] io::Error),
    /// The interfaces are not known, or whose addresses they have.
    #[error("cannot list the interfaces and addresses of this host (`fast_path`)")]
    Interfaces(#[source] io::Error),
}

/// What is wanted, and what was wrong with it.
#[derive(Default)]
pub(super) struct FastPath {
    wanted: Router,
    /// Why it is off at the moment, or some interfaces are.
    failure: Option<String>,
}

impl Router {
    /// Checks that it may be on.
    ///
    /// # Errors
    /// When netfilter or `IPsec` has rules for what passes through, and nobody said that they do not matter.
    pub fn allow(&self) -> Result<(), RouterError> {
        if !self.is_on() || self.force {
            return Ok(());
        }
        let rules = netfilter::on_the_way().map_err(RouterError::Unknown)?;
        if !rules.is_empty() {
            return Err(RouterError::Netfilter(rules));
        }
        let policies = netfilter::ipsec_on_the_way().map_err(RouterError::Unknown)?;
        if !policies.is_empty() {
            return Err(RouterError::Ipsec(policies));
        }
        Ok(())
    }
}

impl Proxy {
    /// Sends on what passes between some interfaces, and nothing else. To be called when everything else is attached: the
    /// programs of one interface run in that order.
    ///
    /// # Errors
    /// When it may not be, or the kernel refuses.
    pub fn route(&mut self, router: &Router) -> Result<(), ProxyError> {
        router.allow()?;
        self.gates.fast_path = FastPath {
            wanted: router.clone(),
            failure: None,
        };
        self.warn_of_interfaces();
        self.hook_router(true)
    }

    /// Follows interfaces that appear and change, and leaves everything to the kernel while netfilter or `IPsec` has rules.
    pub fn follow_router(&mut self) {
        if !self.gates.fast_path.wanted.is_on() {
            return;
        }
        let allowed = self
            .gates
            .fast_path
            .wanted
            .allow()
            .map_err(ProxyError::from);
        let followed = self.hook_router(allowed.is_ok());
        let failure = allowed.and(followed).err();
        let text = failure.as_ref().map(ToString::to_string);
        if text != self.gates.fast_path.failure {
            if let Some(error) = failure {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the fast path rests; the kernel routes");
            } else {
                tracing::info!("the fast path is on again");
            }
        }
        self.gates.fast_path.failure = text;
    }

    fn hook_router(&mut self, is_allowed: bool) -> Result<(), ProxyError> {
        let mut links = BTreeMap::new();
        let mut doubts = Doubts::default();
        if is_allowed && self.gates.fast_path.wanted.is_on() {
            let mut kernel = Conversation::open().map_err(RouterError::Interfaces)?;
            let wanted = &self.gates.fast_path.wanted.fast_path;
            let interfaces = named(&mut kernel, wanted).map_err(RouterError::Interfaces)?;
            // What claims to come from one of this host's addresses is not sent on.
            let own = kernel.addresses_v4().map_err(RouterError::Interfaces)?;
            links.extend(
                interfaces
                    .iter()
                    .filter(|interface| obstacle(interface).is_none())
                    .map(|interface| (interface.number, link(interface))),
            );
            for address in own {
                doubts.add(u32::from(address).to_be());
            }
        }
        Ok(self.interceptor.route(&links, &doubts)?)
    }

    /// Tells of those that it cannot be on.
    fn warn_of_interfaces(&self) {
        let wanted = &self.gates.fast_path.wanted;
        if !wanted.is_on() {
            return;
        }
        let interfaces =
            Conversation::open().and_then(|mut kernel| named(&mut kernel, &wanted.fast_path));
        for interface in interfaces.unwrap_or_default() {
            if let Some(why) = obstacle(&interface) {
                tracing::warn!(interface = interface.name, "no fast path there: {why}");
            }
        }
    }
}

/// Those of some interfaces that are there.
fn named(kernel: &mut Conversation, names: &BTreeSet<String>) -> io::Result<Vec<Interface>> {
    let mut interfaces = kernel.interfaces()?;
    interfaces.retain(|interface| names.contains(&interface.name));
    Ok(interfaces)
}

/// What keeps the fast path from an interface.
#[must_use]
pub fn obstacle(interface: &Interface) -> Option<&'static str> {
    if interface.header != Header::Ethernet {
        Some("it is no Ethernet, whose headers the program reads")
    } else if interface.port == Port::Link {
        Some("its packets are those of the bridge or bond that it is part of; name that one")
    } else if interface.number as usize >= FAST_LINK_NUMBERS {
        Some(
            "so many interfaces were made before it that its number is too high for the program's table",
        )
    } else {
        None
    }
}

fn link(interface: &Interface) -> FastLink {
    FastLink {
        mtu: interface.mtu,
        asks: match forwarding::way_back(&interface.name) {
            WayBack::Same => asks::SAME,
            WayBack::None if interface.port != Port::Table => asks::SELDOM,
            _ => asks::ANY,
        },
    }
}
