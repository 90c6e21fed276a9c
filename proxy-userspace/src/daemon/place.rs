//! A cgroup is served by one daemon: nobody else is there, or gives it up.

use std::{
    fs::{File, TryLockError},
    future::pending,
    io,
    os::fd::AsFd as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use crate::{
    intercept::{Predecessor, survey},
    privileges,
    proxy::GuardedBy,
    service::Service,
};

/// How long a predecessor may take to detach, and another daemon to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long programs may stay after the process that held them.
const LINGERING: Duration = Duration::from_secs(2);
/// How often is looked.
const POLL: Duration = Duration::from_millis(5);

/// Our place at a cgroup.
pub(super) struct Place {
    /// Locked while a daemon begins there. Gone when we serve.
    claim: Option<File>,
    predecessor: Option<AsyncFd<Predecessor>>,
}

impl Place {
    /// Makes sure that nobody else serves a cgroup, or begins to, or finds whose place is taken.
    ///
    /// Two daemons on one cgroup that do not know of each other would take each other's connections for an app's, round and
    /// round. (One on a cgroup below the other's is fine: it is outside of what it serves.)
    pub(super) fn claim(cgroup: &Path, takeover: bool, guarded_by: GuardedBy) -> Result<Self> {
        if takeover {
            privileges::require_all(&[privileges::TAKE_OVER])?;
        }
        // That there is no such cgroup is told where it is attached to.
        let Ok(directory) = File::open(cgroup) else {
            return Ok(Self {
                claim: None,
                predecessor: None,
            });
        };
        await_turn(&directory, cgroup);
        let predecessor = if takeover {
            Predecessor::find(directory.as_fd())?
        } else if guarded_by == GuardedBy::Cgroup {
            refuse_a_second_sidecar(&directory)?;
            None
        } else {
            refuse_a_second(&directory, cgroup)?;
            None
        };
        match &predecessor {
            Some(found) => tracing::info!(pid = found.pid(), "taking over"),
            None if takeover => {
                tracing::info!("no culvert serves the cgroup; nothing to take over");
            }
            None => {}
        }
        let predecessor = predecessor
            .map(watch)
            .transpose()
            .context("cannot watch the process that is to be taken over from")?;
        Ok(Self {
            claim: Some(directory),
            predecessor,
        })
    }

    /// Who serves the cgroup, until it has ended.
    pub(super) fn predecessor(&self) -> Option<&Predecessor> {
        self.predecessor.as_ref().map(AsyncFd::get_ref)
    }

    /// Has the predecessor end, and returns, when it takes no more connections, whether there was one. We serve meanwhile.
    pub(super) async fn relieve(&mut self, service: &mut Service) -> Result<bool> {
        // Whoever comes next finds us.
        let claim = self.claim.take();
        let (Some(cgroup), Some(predecessor)) = (claim, &mut self.predecessor) else {
            return Ok(false);
        };
        let predecessor = predecessor.get_mut();
        predecessor.relieve()?;
        let deadline = Instant::now() + PATIENCE;
        let detached = async {
            while !predecessor.has_detached(cgroup.as_fd()) && Instant::now() < deadline {
                sleep(POLL).await;
            }
        };
        tokio::select! {
            never = service.run() => match never {},
            () = detached => {}
        }
        if !predecessor.has_detached(cgroup.as_fd()) {
            tracing::error!(
                pid = predecessor.pid(),
                "the culvert that was to be taken over from does not end, and goes on being asked first; kill it"
            );
        }
        Ok(true)
    }

    /// Returns, once, when the predecessor has ended. May be dropped and called again.
    pub(super) async fn vacated(&mut self) {
        let Some(predecessor) = &self.predecessor else {
            return pending().await;
        };
        if let Err(error) = predecessor.readable().await {
            tracing::warn!(%error, "cannot see the end of the culvert that was taken over from");
        }
        let pid = predecessor.get_ref().pid();
        self.predecessor = None;
        tracing::info!(pid, "the culvert that was taken over from has ended");
    }
}

/// Waits until no other daemon begins at a cgroup, and has others wait. Anybody may lock what he may read, so nobody is waited for
/// for ever.
fn await_turn(directory: &File, cgroup: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = directory.try_lock() {
        if matches!(error, TryLockError::Error(_)) || Instant::now() > deadline {
            tracing::warn!(%error, cgroup = %cgroup.display(), "cannot tell whether another culvert begins here, too");
            return;
        }
        thread::sleep(POLL);
    }
}

fn watch(predecessor: Predecessor) -> io::Result<AsyncFd<Predecessor>> {
    // SAFETY: a `Predecessor` keeps its one descriptor open until it is dropped, which the `AsyncFd` does.
    let watched = unsafe { AsyncFd::register_with_interest(predecessor, Interest::READABLE) };
    Ok(watched?)
}

fn refuse_a_second(directory: &File, cgroup: &Path) -> Result<()> {
    // Who cannot look finds out later.
    match survey::served_by(directory.as_fd()) {
        None => Ok(()),
        Some(pid) => anyhow::bail!(
            "process {pid} is a culvert that serves the cgroup {} already; take over from it (`--takeover`), end it first, or let \
             this one serve another cgroup (`cgroup` in [daemon])",
            cgroup.display()
        ),
    }
}

/// A sidecar sees neither whose programs there are nor the process that holds them. That there are some on every hook is enough: no
/// app of the pod can attach any, whatever else it may take or lock.
fn refuse_a_second_sidecar(directory: &File) -> Result<()> {
    // Those of one that was killed go a moment after it.
    let deadline = Instant::now() + LINGERING;
    while survey::has_every_hook(directory.as_fd()) {
        if Instant::now() > deadline {
            anyhow::bail!("another sidecar serves the same containers already; one is enough");
        }
        thread::sleep(POLL);
    }
    Ok(())
}
