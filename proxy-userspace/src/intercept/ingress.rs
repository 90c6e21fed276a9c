//! Programs on the ingress of interfaces.
//!
//! Where the kernel has tcx (6.6) a link holds a program there, which ends with this process; pinned, it outlives it. Elsewhere, or
//! where the configuration wants it, the program is a filter of `tc`, which outlives the process in any case: see `filters`.
//! In either way programs of others run before and after ours: none of ours ends the chain, unless it drops the packet.

mod filters;
mod listing;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use self::filters::{Filter, Filters};
use super::syscall;
use crate::rule::IngressHook;

pub use self::filters::{FilterError, remove_stale, stale};

/// Attaches programs to the ingress of interfaces.
pub(super) enum Ingress {
    Links,
    Filters(Filters),
}

/// A program on the ingress of an interface. Dropping it detaches.
pub(super) struct Attachment {
    link: Option<OwnedFd>,
    _filter: Option<Filter>,
}

impl Attachment {
    /// The link that holds it, which can be pinned; a filter has none.
    pub(super) fn link(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(AsFd::as_fd)
    }
}

/// Whether programs are attached by links, as a configuration and this kernel ask for.
#[must_use]
pub fn is_by_links(hook: IngressHook) -> bool {
    hook == IngressHook::Auto && syscall::has_tcx()
}

impl Ingress {
    /// The way that a configuration and this kernel ask for.
    pub(super) fn by(hook: IngressHook) -> Self {
        if is_by_links(hook) {
            Self::Links
        } else {
            Self::Filters(Filters::default())
        }
    }

    /// Whether what is attached ends with this process, unless it is pinned.
    pub(super) const fn ends_with_process(&self) -> bool {
        matches!(self, Self::Links)
    }

    /// Attaches a program, behind those of ours that are there.
    pub(super) fn attach(
        &mut self,
        program: BorrowedFd<'_>,
        name: &'static str,
        interface: u32,
    ) -> io::Result<Attachment> {
        match self {
            Self::Links => Ok(Attachment {
                link: Some(syscall::create_interface_link(program, interface)?),
                _filter: None,
            }),
            Self::Filters(filters) => Ok(Attachment {
                link: None,
                _filter: Some(filters.add(program, name, interface)?),
            }),
        }
    }
}
