//! Guards on the hooks: what keeps rules with `on_relay_failure = "refuse"` in force after a kill.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::programs::{CgroupSockAddr, cgroup_sock_addr::CgroupSockAddrLink};
use proxy_common::names;

use super::{InterceptError, Interceptor, arrivals, error::load_error, guard, guard::Guard};

/// The pinned programs of the `connect` hooks.
pub(super) const GUARDS: [&str; 2] = [names::GUARD4, names::GUARD6];

impl Interceptor {
    /// Attaches the guard to a cgroup and pins it, so that rules with `on_relay_failure = "refuse"` hold even
    /// after `SIGKILL`. To be called after [`Interceptor::attach`]: programs of one cgroup run in that order.
    ///
    /// # Errors
    /// When there is no place to pin, or the kernel refuses a program.
    pub fn attach_guard(
        &mut self,
        cgroup: BorrowedFd<'_>,
        place: &Path,
    ) -> Result<(), InterceptError> {
        for name in GUARDS {
            if !self.guard(place)?.has(name) {
                let link = self.attach_guard_program(name, cgroup)?;
                let link = guard::duplicate(name, link)?;
                self.guard(place)?.pin(name, link.as_fd())?;
            }
        }
        Ok(())
    }

    /// As [`Interceptor::attach_guard`], for what arrives.
    ///
    /// # Errors
    /// As [`Interceptor::attach_guard`].
    pub fn attach_arrivals_guard(&mut self, place: &Path) -> Result<(), InterceptError> {
        if !self.guard(place)?.has(names::REVERSE_GUARD) {
            let mut guard = self.guard.take();
            let pinned = guard
                .as_mut()
                .map_or(Ok(()), |guard| arrivals::pin_guard(&mut self.ebpf, guard));
            self.guard = guard;
            pinned?;
        }
        Ok(())
    }

    /// Removes the parts of the guard that rules of a role need which are not wanted.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn reduce_guard(
        &mut self,
        forward: bool,
        reverse: bool,
        gateway: bool,
    ) -> Result<(), InterceptError> {
        if !gateway {
            self.gateway.remove_guards();
        }
        let Some(guard) = &mut self.guard else {
            return Ok(());
        };
        if !forward {
            guard.unpin(&GUARDS)?;
        }
        if !reverse {
            guard.unpin(&[names::REVERSE_GUARD])?;
        }
        if !gateway {
            guard.unpin(&guard.begin_with(names::GATEWAY_GUARD))?;
        }
        if guard.is_empty() {
            return self.remove_pins();
        }
        Ok(())
    }

    /// As [`Interceptor::attach_guard`], for what passes through, by the interfaces that the hook on that is attached to. To be called
    /// after [`Interceptor::attach_gateway`]: programs of one interface run in that order.
    ///
    /// # Errors
    /// As [`Interceptor::attach_guard`].
    pub fn attach_gateway_guard(&mut self) -> Result<(), InterceptError> {
        if self.ingress.ends_with_process() {
            self.guard(&guard::place()?)?;
        }
        let (ebpf, ingress) = (&mut self.ebpf, &mut self.ingress);
        self.gateway.guard(ebpf, ingress, self.guard.as_mut())
    }

    fn guard(&mut self, place: &Path) -> Result<&mut Guard, InterceptError> {
        let guard = match self.guard.take() {
            Some(guard) => guard,
            None => Guard::create(place.to_owned())?,
        };
        Ok(self.guard.insert(guard))
    }

    /// Removes the guard, if there is one.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_guard(&mut self) -> Result<(), InterceptError> {
        self.gateway.remove_guards();
        self.remove_pins()
    }

    fn remove_pins(&mut self) -> Result<(), InterceptError> {
        match self.guard.take() {
            Some(guard) => Ok(guard.remove()?),
            None => Ok(()),
        }
    }

    pub(super) fn attach_guard_program(
        &mut self,
        name: &'static str,
        cgroup: BorrowedFd<'_>,
    ) -> Result<CgroupSockAddrLink, InterceptError> {
        let program: &mut CgroupSockAddr = self.program(name)?;
        if program.fd().is_err() {
            program.load().map_err(load_error(name))?;
        }
        self.attach_connect(name, cgroup)
    }
}
