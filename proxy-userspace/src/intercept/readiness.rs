//! Whether what was attached is where it was attached to, and whether the hooks hold the relay for alive: looked at where the
//! kernel keeps it, so that it is also known when somebody else has taken a program off.

use std::{fs::File, os::fd::AsFd as _, path::Path, time::Duration};

use proxy_common::names;

use super::{InterceptError, Interceptor, guarding::GUARDS, id_of, survey};
use crate::{clock, socket};

impl Interceptor {
    /// What keeps connections from being captured, in words; nothing when they are.
    #[must_use]
    pub fn obstacles(&self, cgroup: &Path, guarded: bool, arrivals: bool) -> Vec<String> {
        let mut found = Vec::new();
        match File::open(cgroup) {
            Err(error) => found.push(format!(
                "the cgroup {} cannot be opened: {error}",
                cgroup.display()
            )),
            Ok(directory) => {
                let guards = GUARDS.into_iter().zip(survey::HOOKS).filter(|_| guarded);
                let hooks = survey::HOOKS.into_iter().map(|hook| (hook.program, hook));
                for (program, hook) in hooks.chain(guards) {
                    let attached = survey::attached(directory.as_fd(), hook);
                    if !attached.is_ok_and(|ids| self.is_among(program, &ids)) {
                        found.push(format!(
                            "the program {program} is not attached to {}",
                            cgroup.display()
                        ));
                    }
                }
            }
        }
        if arrivals {
            let attached = survey::attached_to_namespace();
            if !attached.is_ok_and(|ids| self.is_among(names::REVERSE, &ids)) {
                found.push(format!(
                    "the program {} is not attached to this network namespace",
                    names::REVERSE
                ));
            }
        }
        for (number, program) in self.gateway.missing(&self.ebpf) {
            let name = socket::interface_name(number).unwrap_or_else(|| number.to_string());
            found.push(format!(
                "the program {program} is not attached to the interface {name}"
            ));
        }
        found
    }

    fn is_among(&self, program: &str, ids: &[u32]) -> bool {
        id_of(&self.ebpf, program).is_some_and(|id| ids.contains(&id))
    }

    /// For how long the relay has given no sign of life, if that is long enough for the hooks to hold it for hung.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn silence(&self) -> Result<Option<Duration>, InterceptError> {
        let silence = clock::monotonic().saturating_sub(self.heartbeat()?.last()?);
        let timeout = Duration::from_nanos(self.relays.own()?.heartbeat_timeout);
        Ok((silence >= timeout).then_some(silence))
    }
}
