//! Programs on the ingress of interfaces.
//!
//! Where the kernel has tcx (6.6) a link holds a program there, which ends with this process; pinned, it outlives it. Elsewhere, or
//! where the configuration wants it, the program is a filter of `tc`, which outlives the process in any case: see `filters`.
//! In either way programs of others run before and after ours: none of ours ends the chain, unless it drops the packet.

mod filters;
mod listing;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use self::filters::{Filter, Filters};
use super::syscall;
use crate::rule::IngressHook;

pub use self::filters::{FilterError, remove_stale, stale};

/// Attaches programs to the ingress of interfaces.
pub(super) struct Ingress {
    by: By,
    /// How many programs were attached to each.
    attached: BTreeMap<u32, u32>,
}

enum By {
    Links,
    Filters(Filters),
}

/// A program on the ingress of an interface. Dropping it detaches.
pub(super) struct Attachment {
    link: Option<OwnedFd>,
    filter: Option<Filter>,
    /// Which one of its interface it is.
    number: u32,
}

impl Attachment {
    /// By what it is attached, as people call it.
    pub(super) const fn kind(&self) -> &'static str {
        if self.link.is_some() { "tcx" } else { "clsact" }
    }

    /// Whether it still is on its interface, as the program of this number.
    pub(super) fn is_there(&self, interface: u32, program: u32) -> bool {
        match &self.filter {
            Some(filter) => filter.is_there().unwrap_or(false),
            None => syscall::on_ingress(interface).is_ok_and(|ids| ids.contains(&program)),
        }
    }

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
        let by = if is_by_links(hook) {
            By::Links
        } else {
            By::Filters(Filters::default())
        };
        Self {
            by,
            attached: BTreeMap::new(),
        }
    }

    /// Whether what is attached ends with this process, unless it is pinned.
    pub(super) const fn ends_with_process(&self) -> bool {
        matches!(self.by, By::Links)
    }

    /// Attaches a program, behind those of ours that are there.
    pub(super) fn attach(
        &mut self,
        program: BorrowedFd<'_>,
        name: &'static str,
        interface: u32,
    ) -> io::Result<Attachment> {
        let (link, filter) = match &mut self.by {
            By::Links => {
                let link = syscall::create_interface_link(program, interface)?;
                (Some(link), None)
            }
            By::Filters(filters) => (None, Some(filters.add(program, name, interface)?)),
        };
        let number = self.attached.entry(interface).or_default();
        *number += 1;
        Ok(Attachment {
            link,
            filter,
            number: *number,
        })
    }

    /// Whether none was attached behind one.
    pub(super) fn is_last(&self, interface: u32, attachment: &Attachment) -> bool {
        self.attached.get(&interface) == Some(&attachment.number)
    }
}
