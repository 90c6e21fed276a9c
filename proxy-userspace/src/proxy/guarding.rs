//! What keeps rules with `on_relay_failure = "refuse"` in force when the daemon is gone, and whether all is in force now.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use super::{GuardNeeds, Proxy, ProxyError, open};
use crate::intercept::{InterceptError, guard};

/// By what a guard outlives the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuardedBy {
    /// Pins in a bpffs, which a daemon that ends removes.
    #[default]
    Pins,
    /// The cgroup itself, as long as it is there: a container that ends is started again.
    Cgroup,
}

impl Proxy {
    /// Puts in place, or removes, what keeps rules with `on_relay_failure = "refuse"` in force after a kill.
    ///
    /// # Errors
    /// When there is no place to pin, or the kernel refuses.
    pub fn guard(&mut self, cgroup: &Path, needs: GuardNeeds) -> Result<(), ProxyError> {
        if self.guarded_by == GuardedBy::Cgroup {
            return self.stand_guard(cgroup, needs);
        }
        if needs.forward {
            let place = guard::place().map_err(InterceptError::from)?;
            let cgroup = open(cgroup)?;
            self.interceptor.attach_guard(cgroup.as_fd(), &place)?;
        }
        if needs.reverse {
            let place = guard::place().map_err(InterceptError::from)?;
            self.interceptor.attach_arrivals_guard(&place)?;
        }
        self.gates.is_guarded = needs.gateway;
        self.hook_transits()?;
        let GuardNeeds {
            forward,
            reverse,
            gateway,
        } = needs;
        Ok(self.interceptor.reduce_guard(forward, reverse, gateway)?)
    }

    fn stand_guard(&mut self, cgroup: &Path, needs: GuardNeeds) -> Result<(), ProxyError> {
        if needs.forward {
            let cgroup = open(cgroup)?;
            self.interceptor.attach_standing_guard(cgroup.as_fd())?;
        } else {
            self.interceptor.remove_standing_guard();
        }
        Ok(())
    }

    /// Like [`Proxy::guard`], for as long as somebody holds what this returns.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lend_guard(&mut self, cgroup: &Path) -> Result<Vec<OwnedFd>, ProxyError> {
        let cgroup = open(cgroup)?;
        Ok(self.interceptor.lend_guard(cgroup.as_fd())?)
    }

    /// What keeps connections of a cgroup from being captured, in words.
    #[must_use]
    pub fn obstacles(&self, cgroup: &Path, needs: GuardNeeds) -> Vec<String> {
        let mut found = self
            .interceptor
            .obstacles(cgroup, needs.forward, self.takes_arrivals);
        match self.interceptor.silence() {
            Ok(None) => {}
            Ok(Some(silence)) => found.push(format!(
                "the relay has given no sign of life for {} ms",
                silence.as_millis()
            )),
            Err(error) => found.push(error.to_string()),
        }
        found.extend(self.spaces.obstacles());
        if self.generation == 0 {
            found.push("no rules are in force".to_owned());
        }
        found
    }
}
