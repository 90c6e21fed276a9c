//! The listeners for what passes through, the interfaces that it comes in by, and what has its packets delivered here.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
};

use super::{BACKLOG, Proxy, ProxyError, Rules, Shown, router::FastPath};
use crate::{
    delivery::{Delivery, Want},
    forwarding::Forwarding,
    netlink::{Conversation, Port},
    socket,
};

/// Interfaces by which packets of other hosts come in: all but loopback and those whose packets are another interface's.
fn outer() -> io::Result<impl Iterator<Item = Arc<str>>> {
    let interfaces = Conversation::open()?.interfaces()?.into_iter();
    let outer =
        interfaces.filter(|interface| !interface.is_loopback && interface.port != Port::Link);
    Ok(outer.map(|interface| interface.name.into()))
}

/// What there is for connections that pass through, once there are rules for them.
#[derive(Default)]
pub(super) struct Gates {
    /// Of all workers: the hook gives connections to them.
    pub(super) listeners: Vec<TcpListener>,
    /// The interfaces that rules have named. They stay when no rule names them any more: connections may be open that came in
    /// there, and their packets must not be routed on.
    interfaces: BTreeSet<Arc<str>>,
    delivery: Option<Delivery>,
    /// Whether what passes through is to be guarded.
    pub(super) is_guarded: bool,
    /// Between which interfaces the rest is sent on.
    pub(super) fast_path: FastPath,
}

impl Proxy {
    /// Opens the listeners once there are rules for what passes through, and has packets of its interfaces delivered.
    pub(super) fn provide_gates(&mut self, policy: &Rules<'_>) -> Result<(), ProxyError> {
        let gateway = policy.roles.gateway;
        if gateway.is_empty() {
            return Ok(());
        }
        if self.gates.listeners.is_empty() {
            let opened = self.open_gates()?;
            self.supervisor.open(opened);
        }
        let named = gateway.iter().flat_map(|rule| &rule.interface);
        let named: BTreeSet<Arc<str>> = named.map(|name| Arc::from(name.as_str())).collect();
        self.warn_of_silence(&named);
        let interfaces = self.passed(named, policy)?;
        let mark = self.deliver(interfaces)?;
        Ok(self
            .interceptor
            .prepare_gateway(mark, &self.gates.listeners)?)
    }

    /// Has packets of these interfaces delivered, and returns the mark by which.
    fn deliver(&mut self, interfaces: BTreeSet<Arc<str>>) -> Result<u32, ProxyError> {
        let wants: Vec<_> = interfaces
            .iter()
            .map(|interface| Want::Marked {
                interface: Arc::clone(interface),
            })
            .collect();
        let mark = match &mut self.gates.delivery {
            Some(delivery) => {
                delivery.change(&wants)?;
                delivery.mark()
            }
            none => none.insert(Delivery::new(&wants)?).mark(),
        };
        self.gates.interfaces = interfaces;
        Ok(mark)
    }

    /// The interfaces that packets of relayed connections come in by: those that rules name, those that were named before, and where
    /// servers see the addresses of clients all that packets from elsewhere come in by.
    fn passed(
        &self,
        mut named: BTreeSet<Arc<str>>,
        policy: &Rules<'_>,
    ) -> Result<BTreeSet<Arc<str>>, ProxyError> {
        named.extend(self.gates.interfaces.iter().cloned());
        if Shown::are_wanted(policy.roles.gateway.into(), policy.groups) {
            named.extend(outer().map_err(ProxyError::Interfaces)?);
        }
        Ok(named)
    }

    /// Attaches to interfaces by which servers answer that have appeared.
    pub fn follow_interfaces(&mut self, policy: &Rules<'_>) {
        if self.gates.listeners.is_empty() {
            return;
        }
        let followed = self.passed(BTreeSet::new(), policy).and_then(|interfaces| {
            if interfaces != self.gates.interfaces {
                self.deliver(interfaces)?;
            }
            self.hook_transits()?;
            Ok(self.interceptor.follow_gateway()?)
        });
        if let Err(error) = followed {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "some interfaces cannot be attached to");
        }
    }

    /// Attaches the hook on what passes through to the interfaces that are there.
    pub(super) fn hook_transits(&mut self) -> Result<(), ProxyError> {
        if self.own_cgroup.is_none() || self.gates.interfaces.is_empty() {
            return Ok(());
        }
        let names = self.gates.interfaces.iter();
        let numbers = names
            .filter_map(|name| socket::interface_number(name))
            .collect();
        self.interceptor.attach_gateway(&numbers)?;
        if self.gates.is_guarded {
            self.interceptor.attach_gateway_guard()?;
        }
        Ok(())
    }

    /// Tells of interfaces by which nothing passes through, once for each.
    fn warn_of_silence(&mut self, interfaces: &BTreeSet<Arc<str>>) {
        for name in interfaces.difference(&self.gates.interfaces) {
            if socket::interface_number(name).is_some() && !Forwarding::of(name).any() {
                tracing::warn!(
                    interface = &**name,
                    "it does not forward, so nothing passes through there (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding)"
                );
            }
        }
    }

    /// Listeners for each worker. Without IPv6 in this namespace there are none of it; the hook then applies the fail mode.
    fn open_gates(&mut self) -> Result<Vec<Vec<TcpListener>>, ProxyError> {
        let workers = self.supervisor.workers();
        let mut opened = Vec::with_capacity(workers);
        for _ in 0..workers {
            let mut gates = vec![gate((Ipv4Addr::LOCALHOST, 0).into())?];
            gates.extend(
                gate((Ipv6Addr::LOCALHOST, 0).into())
                    .inspect_err(|error| tracing::info!(%error, "no IPv6 listener"))
                    .ok(),
            );
            for gate in &gates {
                let gate = gate.try_clone().map_err(ProxyError::Worker)?;
                self.gates.listeners.push(gate);
            }
            opened.push(gates);
        }
        Ok(opened)
    }
}

fn gate(address: SocketAddr) -> Result<TcpListener, ProxyError> {
    socket::gate(address, BACKLOG).map_err(|source| ProxyError::Listen { address, source })
}
