//! Signs of life in a set of directories, by inotify; by the clock where inotify has no room left.
//!
//! inotify works on cgroupfs for `mkdir` and `rmdir`, which pass through the VFS (verified on Linux 6.18). What it
//! does not do there is to tell that a watched directory itself went: the watch would stay for ever, so every
//! [`Arming`] drops those that were not asked for again.

use std::{collections::HashSet, io, path::Path, thread, time::Duration};

use inotify::{Inotify, WatchDescriptor, WatchMask};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

/// How often to look without inotify.
const POLL: Duration = Duration::from_secs(1);

/// Room for many events of the longest name (`NAME_MAX`); what does not fit is read next.
const BUFFER: usize = 4096;

/// The watched directories.
#[derive(Debug)]
pub(super) struct Notices {
    inotify: Option<AsyncFd<Inotify>>,
    armed: HashSet<WatchDescriptor>,
    /// Some directory could not be watched, so the clock has to do.
    blind: bool,
}

impl Notices {
    /// Watches nothing yet.
    pub(super) fn new() -> Self {
        let inotify = Inotify::init().and_then(|inotify| {
            // SAFETY: `Inotify` keeps its one descriptor open until it is dropped, which the `AsyncFd` does.
            Ok(unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?)
        });
        let mut notices = Self {
            inotify: None,
            armed: HashSet::new(),
            blind: false,
        };
        match inotify {
            Ok(inotify) => notices.inotify = Some(inotify),
            Err(error) => notices.go_blind(&error),
        }
        notices
    }

    /// Returns when something may have happened, and at once again until [`Notices::clear`].
    pub(super) async fn wait(&self) {
        let told = async {
            match &self.inotify {
                Some(inotify) => match inotify.readable().await {
                    Ok(_still_ready) => {}
                    Err(error) => {
                        tracing::warn!(%error, "inotify cannot be waited for");
                        sleep(POLL).await;
                    }
                },
                None => std::future::pending().await,
            }
        };
        let late = async {
            if self.blind {
                sleep(POLL).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = told => {}
            () = late => {}
        }
    }

    /// Forgets what was told so far.
    pub(super) fn clear(&mut self) {
        let Some(inotify) = &mut self.inotify else {
            return;
        };
        let mut buffer = [0; BUFFER];
        // Which event it was does not matter, and neither does a lost one: everything is compared anyway.
        while inotify
            .try_io_mut(Interest::READABLE, |inotify| {
                inotify.read_events(&mut buffer).map(drop)
            })
            .is_ok()
        {}
    }

    /// Starts to replace the set of watched directories.
    pub(super) fn arm(&mut self) -> Arming<'_> {
        Arming {
            notices: self,
            wanted: HashSet::new(),
        }
    }

    fn go_blind(&mut self, error: &io::Error) {
        if !self.blind {
            tracing::warn!(
                %error,
                "inotify has no room, so names of rules are looked up every second; \
                 raise fs.inotify.max_user_watches and max_user_instances by sysctl"
            );
        }
        self.blind = true;
    }
}

/// Closing waits until the kernel is through with the watches (`fsnotify_destroy_group()` in `fs/notify/group.c`): seconds on a busy
/// machine, in which the thread of a daemon has better things to do, such as its heartbeat.
impl Drop for Notices {
    fn drop(&mut self) {
        if let Some(inotify) = self.inotify.take().map(AsyncFd::into_inner) {
            let closing = thread::Builder::new().name("closing".to_owned());
            // Where there is no room for a thread it is closed here.
            _ = closing.spawn(move || drop(inotify));
        }
    }
}

#[cfg(test)]
impl Notices {
    pub(super) fn armed_count(&self) -> usize {
        self.armed.len()
    }

    /// As on a machine whose inotify instances are used up.
    pub(super) fn blinded() -> Self {
        Self {
            inotify: None,
            armed: HashSet::new(),
            blind: true,
        }
    }
}

/// A new set of directories in the making.
pub(super) struct Arming<'n> {
    notices: &'n mut Notices,
    wanted: HashSet<WatchDescriptor>,
}

impl Arming<'_> {
    /// Watches a directory from now on. One that is gone already is fine: its parent was armed before.
    pub(super) fn add(&mut self, dir: &Path) {
        let Some(inotify) = &self.notices.inotify else {
            return;
        };
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::ONLYDIR;
        // The same directory has the same descriptor, however often it is added.
        match inotify.get_ref().watches().add(dir, mask) {
            Ok(descriptor) => {
                self.wanted.insert(descriptor);
            }
            Err(error) if gone(&error) => {}
            Err(error) => self.notices.go_blind(&error),
        }
    }

    /// Stops watching what was not added again.
    pub(super) fn finish(self) {
        let old = std::mem::replace(&mut self.notices.armed, self.wanted);
        let Some(inotify) = &self.notices.inotify else {
            return;
        };
        for descriptor in old {
            if !self.notices.armed.contains(&descriptor) {
                // It may be gone already with its directory.
                let _gone = inotify.get_ref().watches().remove(descriptor);
            }
        }
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
