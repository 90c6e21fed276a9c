//! The listeners for what passes through, the interfaces that it comes in by, and what has its packets delivered here.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
};

use proxy_common::GATES;

use super::{BACKLOG, Proxy, ProxyError, Rules, Shown, router::FastPath};
use crate::{
    delivery::{Delivery, Want},
    forwarding::Forwarding,
    intercept::Trail,
    live::Live,
    netlink::{Conversation, Port},
    record::Role,
    rule::Gateway,
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
    /// The interfaces that packets may come in by of connections that are relayed, or will be.
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
        self.warn_of_silence(&named(gateway));
        let interfaces = self.passed(policy)?;
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

    /// The interfaces that packets of relayed connections come in by: those that rules name, those that the hook is on, and where
    /// servers see the addresses of clients all that packets from elsewhere come in by.
    ///
    /// The hook stays where it is when no rule names the interface any more, or it has another name: connections may be open that came
    /// in there, and their packets must not be routed on. A routing rule knows it by the name that it has now.
    fn passed(&self, policy: &Rules<'_>) -> Result<BTreeSet<Arc<str>>, ProxyError> {
        let mut passed = named(policy.roles.gateway);
        let hooked = self.interceptor.gateway_interfaces();
        passed.extend(hooked.filter_map(socket::interface_name).map(Arc::from));
        if Shown::are_wanted(policy.roles.gateway.into(), policy.groups) {
            passed.extend(outer().map_err(ProxyError::Interfaces)?);
        }
        Ok(passed)
    }

    /// Whether connections may have passed through by way of the relay.
    #[must_use]
    pub fn has_gates(&self) -> bool {
        !self.gates.listeners.is_empty()
    }

    /// Attaches to interfaces by which servers answer that have appeared, and follows those that get other names.
    pub fn follow_interfaces(&mut self, policy: &Rules<'_>) {
        if !self.has_gates() {
            return;
        }
        let followed = self.passed(policy).and_then(|interfaces| {
            if interfaces != self.gates.interfaces {
                self.deliver(interfaces)?;
            }
            self.hook_transits()?;
            let live = &self.shared.live;
            Ok(self.interceptor.follow_gateway(|| trails(live))?)
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
        // The hook has room for no more; workers beyond have none.
        for _ in 0..workers.min(GATES) {
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

/// The interfaces that rules name.
fn named(gateway: &[Gateway]) -> BTreeSet<Arc<str>> {
    let names = gateway.iter().flat_map(|rule| &rule.interface);
    names.map(|name| name.as_str().into()).collect()
}

/// Between whom packets of open connections go. A server that sees the address of its client answers to that.
fn trails(live: &Live) -> Vec<Trail> {
    let open = live.find(|open| open.begun.role == Role::Gateway);
    let trails = open.iter().flat_map(|open| {
        let peer = open.reached.get().and_then(|reached| reached.peer);
        let servers = [Some(open.begun.orig_dst), peer].into_iter().flatten();
        servers.map(|server| (open.begun.client.ip(), server))
    });
    trails.collect()
}

fn gate(address: SocketAddr) -> Result<TcpListener, ProxyError> {
    socket::gate(address, BACKLOG).map_err(|source| ProxyError::Listen { address, source })
}
