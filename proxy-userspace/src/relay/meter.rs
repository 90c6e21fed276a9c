//! Reads what the kernel moves of a connection, for whoever looks: the relay, which rests meanwhile, is not woken for it.
//!
//! Nobody looks, and nothing is done. The relay counts as well, now and then and at the end; since both only ever take the
//! larger number, neither has to know of the other.

use std::sync::{Arc, Weak, atomic::Ordering::Relaxed};

use proxy_common::LaneKey;

use super::{
    Progress, Redirect,
    replies::{self, Replies},
    shortcut::Shortcuts,
};

/// Where the kernel's own numbers of a connection are. What holds them open is the relay's, and is only borrowed for a look.
pub(super) enum Meter {
    /// It redirects from socket to socket.
    Redirects {
        up: Weak<dyn Redirect>,
        down: Weak<dyn Redirect>,
    },
    /// The app's own socket sends past the relay.
    Lane {
        kernel: Arc<dyn Shortcuts>,
        app: LaneKey,
        replies: Option<Weak<dyn Replies>>,
    },
}

impl Meter {
    /// Brings the progress up to date.
    pub(super) fn read(&self, progress: &Progress) {
        match self {
            Self::Redirects { up, down } => {
                for (redirect, counted) in [
                    (up, &progress.redirected_up),
                    (down, &progress.redirected_down),
                ] {
                    if let Some(redirect) = redirect.upgrade() {
                        counted.fetch_max(redirect.redirected(), Relaxed);
                    }
                }
            }
            Self::Lane {
                kernel,
                app,
                replies,
            } => {
                // A lane that is closed has no entry, and was counted when it closed.
                if let Ok(sent) = kernel.sent(*app) {
                    progress.set_shortcut(&sent);
                }
                if let Some(replies) = replies.as_ref().and_then(Weak::upgrade) {
                    replies::report(&*replies, progress);
                }
            }
        }
    }
}
