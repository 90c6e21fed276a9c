//! The guard without a pin, first of all that of a sidecar: what keeps `on_relay_failure = "refuse"` in force where nothing can be pinned.
//!
//! A pin needs a bpffs that outlives the container. The older way of attaching to a cgroup (`BPF_PROG_ATTACH`, kernel 4.10) needs
//! nothing: the kernel keeps the program there until somebody takes it off or the cgroup is removed, which is when the pod ends.
//! Programs attached either way run in the order they came in, so a guard that somebody left refuses before the hooks of the next
//! sidecar are asked. That one finds it at its start, which takes `CAP_SYS_ADMIN`, and takes it off once its own is in place.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::programs::{CgroupSockAddr, ProgramFd, ProgramInfo, loaded_programs};
use proxy_common::names;

use super::{
    InterceptError, Interceptor, guard,
    guarding::GUARDS,
    load_error,
    survey::{self, HOOKS, Hook},
    syscall,
};
use crate::cgroup::walk;

/// Guards attached to a cgroup, to be taken off again.
#[derive(Debug)]
pub struct Standing {
    cgroup: OwnedFd,
    programs: Vec<Program>,
}

#[derive(Debug)]
struct Program {
    id: u32,
    name: &'static str,
    hook: Hook,
    file: ProgramFd,
}

impl Standing {
    /// What sidecars that are gone have left on a cgroup: one name is nobody's, on both hooks they are ours. Without `CAP_SYS_ADMIN` nothing is found.
    ///
    /// # Errors
    /// When the cgroup cannot be looked at.
    pub fn find(cgroup: BorrowedFd<'_>) -> io::Result<Self> {
        let mut programs = Vec::new();
        for hook in HOOKS.into_iter().filter(|hook| hook.decides()) {
            let attached = survey::attached(cgroup, hook)?;
            if attached.is_empty() {
                continue;
            }
            let guards = guards()
                .into_iter()
                .filter(|(id, ..)| attached.contains(id));
            programs.extend(guards.map(|(id, name, file)| Program {
                id,
                name,
                hook,
                file,
            }));
        }
        if !GUARDS
            .iter()
            .all(|name| programs.iter().any(|it| it.name == *name))
        {
            programs.clear();
        }
        Ok(Self {
            cgroup: cgroup.try_clone_to_owned()?,
            programs,
        })
    }

    /// Takes them off, and returns whether there were any. What is held by a link is nobody's to take off, and stays.
    #[must_use]
    pub fn remove(self) -> bool {
        let detach = |it: &Program| {
            let (program, cgroup) = (it.file.as_fd(), self.cgroup.as_fd());
            syscall::detach_program(program, cgroup, it.hook.attach_type())
        };
        let removed = self.programs.iter().map(detach);
        removed.flatten().count() > 0
    }
}

/// Takes off what sidecars that are gone have left on the cgroups below a directory, and returns on how many there was something.
///
/// # Errors
/// When there is no such cgroup.
pub fn remove_stale(top: &Path) -> io::Result<usize> {
    File::open(top)?;
    let held = survey::holders();
    if guards().iter().all(|(id, ..)| held.contains_key(id)) {
        return Ok(0);
    }
    let mut count = 0;
    walk(top, &mut |directory| {
        let found = File::open(directory).and_then(|cgroup| Standing::find(cgroup.as_fd()));
        if let Ok(mut stale) = found {
            // Who lives needs his.
            stale.programs.retain(|it| !held.contains_key(&it.id));
            count += usize::from(stale.remove());
        }
        true
    });
    Ok(count)
}

/// Every program that is called like a guard.
fn guards() -> Vec<(u32, &'static str, ProgramFd)> {
    let loaded = loaded_programs().filter_map(Result::ok);
    let guard = |program: ProgramInfo| {
        let called = program.name_as_str()?;
        let name = *GUARDS.iter().find(|name| **name == called)?;
        Some((program.id(), name, program.fd().ok()?))
    };
    loaded.filter_map(guard).collect()
}

impl Interceptor {
    /// As [`Interceptor::attach_guard`], without a pin: it stands in the cgroup until [`Interceptor::remove_standing_guard`], whatever
    /// becomes of this process.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub fn attach_standing_guard(&mut self, cgroup: BorrowedFd<'_>) -> Result<(), InterceptError> {
        if self.standing.is_some() {
            return Ok(());
        }
        let own = cgroup.try_clone_to_owned();
        let own = own.map_err(|source| InterceptError::Stand {
            program: names::GUARD4,
            source,
        })?;
        let mut standing = Standing {
            cgroup: own,
            programs: Vec::new(),
        };
        for (name, hook) in GUARDS.into_iter().zip(HOOKS) {
            match self.stand(name, hook, cgroup) {
                Ok(program) => standing.programs.push(program),
                Err(error) => {
                    _ = standing.remove();
                    return Err(error);
                }
            }
        }
        self.standing = Some(standing);
        Ok(())
    }

    fn stand(
        &mut self,
        name: &'static str,
        hook: Hook,
        cgroup: BorrowedFd<'_>,
    ) -> Result<Program, InterceptError> {
        let program: &mut CgroupSockAddr = self.program(name)?;
        if program.fd().is_err() {
            program.load().map_err(load_error(name))?;
        }
        let id = program.info().map_err(load_error(name))?.id();
        let file = program.fd().map_err(load_error(name))?.try_clone();
        let stand = |file: ProgramFd| {
            syscall::attach_program(file.as_fd(), cgroup, hook.attach_type())?;
            Ok(Program {
                id,
                name,
                hook,
                file,
            })
        };
        let stood = file.and_then(stand);
        stood.map_err(|source| InterceptError::Stand {
            program: name,
            source,
        })
    }

    /// Takes the guard off that stands in the cgroup, if there is one.
    pub fn remove_standing_guard(&mut self) {
        if let Some(standing) = self.standing.take() {
            _ = standing.remove();
        }
    }

    /// Attaches the guard to a cgroup without pinning it: it holds as long as somebody holds what this returns.
    ///
    /// # Errors
    /// When the kernel refuses a program, or does not tell its link.
    pub fn lend_guard(&mut self, cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, InterceptError> {
        let mut lent = Vec::new();
        for name in GUARDS {
            let link = self.attach_guard_program(name, cgroup)?;
            lent.push(guard::duplicate(name, link)?);
        }
        Ok(lent)
    }
}
