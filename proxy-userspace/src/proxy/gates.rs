//! The listeners for what passes through, and the interfaces that it comes in by.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use super::{BACKLOG, Proxy, ProxyError, Rules};
use crate::{
    intercept::{InterceptError, guard},
    socket,
};

impl Proxy {
    /// Opens the listeners once there are rules for what passes through, and notes their interfaces.
    pub(super) fn provide_gates(&mut self, policy: &Rules<'_>) -> Result<(), ProxyError> {
        let gateway = policy.roles.gateway;
        let named = gateway.iter().flat_map(|rule| &rule.interface);
        self.interfaces = named
            .filter_map(|name| *policy.names.interfaces.get(name)?)
            .collect();
        if gateway.is_empty() {
            return Ok(());
        }
        if self.gates.is_empty() {
            let opened = self.open_gates()?;
            self.supervisor.open(opened);
        }
        Ok(self.interceptor.prepare_gateway(MARK, &self.gates)?)
    }

    /// Attaches the hook on what passes through where the rules in force want it, and nowhere else.
    pub(super) fn hook_transits(&mut self) -> Result<(), ProxyError> {
        if self.own_cgroup.is_some() {
            self.interceptor.attach_gateway(&self.interfaces)?;
            if self.guards_transits {
                let place = guard::place().map_err(InterceptError::from)?;
                self.interceptor.attach_gateway_guard(&place)?;
            }
        }
        Ok(())
    }

    /// Listeners for each worker. Without IPv6 in this namespace there are none of it; the hook then applies the fail mode.
    fn open_gates(&mut self) -> Result<Vec<Vec<TcpListener>>, ProxyError> {
        let mut opened = Vec::with_capacity(self.workers);
        for _ in 0..self.workers {
            let mut gates = vec![gate((Ipv4Addr::LOCALHOST, 0).into())?];
            gates.extend(
                gate((Ipv6Addr::LOCALHOST, 0).into())
                    .inspect_err(|error| tracing::info!(%error, "no IPv6 listener"))
                    .ok(),
            );
            for gate in &gates {
                self.gates
                    .push(gate.try_clone().map_err(ProxyError::Worker)?);
            }
            opened.push(gates);
        }
        Ok(opened)
    }
}

/// What has packets delivered to this host.
const MARK: u32 = 0x6375_6c00;

fn gate(address: SocketAddr) -> Result<TcpListener, ProxyError> {
    socket::gate(address, BACKLOG).map_err(|source| ProxyError::Listen { address, source })
}
