//! Programs as filters of `tc`, for kernels without tcx (before 6.6).
//!
//! A filter stays with its program when its process is killed. That is as good as a pin: what is left finds no listener and no heartbeat,
//! and applies the fail modes of its rules. So whoever comes later must know what was left. Each filter carries the name of its
//! program and of its [`Owner`], for whom a [`Lock`] says whether it is still there. The name also says whether the queueing
//! discipline is culvert's: it is removed with the last filter then.
//!
//! Filters run in the order of their priorities. Ours begin early, since those of others may end the chain, and leave the first
//! places to who wants to be first; each comes behind the ones that are there, as links do.

use std::{
    collections::{BTreeSet, HashSet},
    hash::{BuildHasher as _, RandomState},
    io,
    os::fd::BorrowedFd,
    sync::Arc,
};

use nix::{errno::Errno, net::if_::if_nameindex};
use thiserror::Error;

use super::listing::{self, Listed, Side};
use crate::{
    lock::Lock,
    netlink::{Conversation, is_one_of},
};

/// What every name begins with.
const PREFIX: &str = "culvert";
/// Ends the name of one whose queueing discipline is culvert's.
const MADE: &str = "clsact";
/// The first place.
const FIRST: u16 = 67;
/// The kernel gives those from here on to filters that ask for none.
const LAST: u16 = 0xbfff;
/// Others may take a place between asking and adding.
const TRIES: u32 = 8;

/// Filters of processes that are gone cannot be found or removed.
#[derive(Debug, Error)]
#[error("cannot {operation} filters of killed daemons (`tc filter show dev … ingress`)")]
pub struct FilterError {
    operation: &'static str,
    #[source]
    source: io::Error,
}

/// Adds filters. They belong to one process.
#[derive(Default)]
pub(in crate::intercept) struct Filters {
    owner: Option<Arc<Owner>>,
}

/// A process, as long as it is there.
#[derive(Debug)]
struct Owner {
    id: u64,
    _lock: Lock,
}

/// A filter of this process. Dropping it removes it.
pub(in crate::intercept) struct Filter {
    interface: u32,
    name: Name,
    /// Says that its owner is there.
    _owner: Arc<Owner>,
}

/// What a filter is called.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    program: String,
    owner: u64,
    /// Whether a culvert has made what it hangs on.
    has_made: bool,
}

impl Filter {
    /// Whether it is still there.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        let mut kernel = Conversation::open()?;
        let there = listing::filters(&mut kernel, self.interface, Side::Ingress)?;
        let mut names = there.iter().filter_map(Name::of);
        Ok(names.any(|name| name == self.name))
    }
}

impl Filters {
    /// Adds a program to the ingress of an interface, behind those of culvert's that are there.
    pub(super) fn add(
        &mut self,
        program: BorrowedFd<'_>,
        name: &str,
        interface: u32,
    ) -> io::Result<Filter> {
        let owner = match &self.owner {
            Some(owner) => Arc::clone(owner),
            None => Arc::clone(self.owner.insert(Arc::new(Owner::new()?))),
        };
        let mut kernel = Conversation::open()?;
        let is_new = listing::add_qdisc(&mut kernel, interface)?;
        let mut name = Name {
            program: name.to_owned(),
            owner: owner.id,
            has_made: is_new,
        };
        let mut failure = Errno::EEXIST.into();
        for _ in 0..TRIES {
            let there = listing::filters(&mut kernel, interface, Side::Ingress)?;
            name.has_made |= there.iter().filter_map(Name::of).any(|name| name.has_made);
            let place = free_place(&there).ok_or(Errno::ENOSPC)?;
            let shown = name.to_string();
            match listing::add(&mut kernel, interface, place, program, &shown) {
                Ok(()) => {
                    return Ok(Filter {
                        interface,
                        name,
                        _owner: owner,
                    });
                }
                // Of another kind or protocol than ours, or ours.
                Err(error) if is_one_of(&error, &[Errno::EEXIST, Errno::EINVAL]) => failure = error,
                Err(error) => {
                    failure = error;
                    break;
                }
            }
        }
        if is_new {
            listing::remove_qdisc(&mut kernel, interface)?;
        }
        Err(failure)
    }
}

impl Owner {
    fn new() -> io::Result<Self> {
        // Never the number of one that was killed: it would seem to be there.
        let id = RandomState::new().hash_one(std::process::id());
        let lock = lock(id)?.ok_or(io::ErrorKind::AddrInUse)?;
        Ok(Self { id, _lock: lock })
    }
}

/// `None` while it is there.
fn lock(owner: u64) -> io::Result<Option<Lock>> {
    Lock::take(&format!("{PREFIX}-filters-{owner:016x}"))
}

impl Drop for Filter {
    fn drop(&mut self) {
        let removed = Conversation::open()
            .and_then(|mut kernel| sweep(&mut kernel, self.interface, |name| *name == self.name));
        if let Err(error) = removed {
            let error: &dyn std::error::Error = &error;
            tracing::error!(
                error,
                filter = %self.name,
                "a filter is left; `culvert detach` removes it"
            );
        }
    }
}

impl Name {
    /// Of a filter of culvert's.
    fn of(filter: &Listed) -> Option<Self> {
        let mut parts = filter.name.as_deref()?.split('-');
        let begins = parts.next() == Some(PREFIX);
        let program = parts.next().filter(|_| begins)?;
        let owner = u64::from_str_radix(parts.next()?, 16).ok()?;
        let has_made = match parts.next() {
            None => false,
            Some(MADE) => true,
            Some(_) => return None,
        };
        Some(Self {
            program: program.to_owned(),
            owner,
            has_made,
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { program, owner, .. } = self;
        write!(formatter, "{PREFIX}-{program}-{owner:016x}")?;
        if self.has_made {
            write!(formatter, "-{MADE}")?;
        }
        Ok(())
    }
}

/// A place behind all of culvert's that nobody has.
fn free_place(there: &[Listed]) -> Option<u16> {
    let taken: HashSet<_> = there.iter().map(|filter| filter.priority).collect();
    let ours = there.iter().filter(|filter| Name::of(filter).is_some());
    let behind = ours.map(|filter| filter.priority).max();
    let from = behind.map_or(FIRST, |last| last.saturating_add(1));
    (from..=LAST)
        .chain(FIRST..from)
        .find(|place| !taken.contains(place))
}

/// Removes filters of culvert's from an interface, and with the last one what a culvert has made for them.
fn sweep(
    kernel: &mut Conversation,
    interface: u32,
    is_unwanted: impl Fn(&Name) -> bool,
) -> io::Result<()> {
    let mut had_made = false;
    for filter in listing::filters(kernel, interface, Side::Ingress)? {
        if let Some(name) = Name::of(&filter).filter(|name| is_unwanted(name)) {
            listing::remove(kernel, interface, &filter)?;
            had_made |= name.has_made;
        }
    }
    if !had_made {
        return Ok(());
    }
    for side in [Side::Ingress, Side::Egress] {
        if !listing::filters(kernel, interface, side)?.is_empty() {
            return Ok(());
        }
    }
    listing::remove_qdisc(kernel, interface)
}

/// The interfaces on which processes that are gone have left filters, by name, in the network namespace of this thread.
///
/// # Errors
/// When the kernel does not tell.
pub fn stale() -> Result<BTreeSet<String>, FilterError> {
    let listed = || {
        let mut kernel = Conversation::open()?;
        let mut found = BTreeSet::new();
        for (interface, name) in interfaces()? {
            if !gone(&owners(&mut kernel, interface)?)?.is_empty() {
                found.insert(name);
            }
        }
        Ok(found)
    };
    listed().map_err(|source| FilterError {
        operation: "list",
        source,
    })
}

/// Removes filters that processes which are gone have left in the network namespace of this thread, and returns of how many.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_stale() -> Result<usize, FilterError> {
    let removed = || {
        let mut kernel = Conversation::open()?;
        let mut owners_gone = BTreeSet::new();
        for (interface, _) in interfaces()? {
            let gone = gone(&owners(&mut kernel, interface)?)?;
            sweep(&mut kernel, interface, |name| gone.contains(&name.owner))?;
            owners_gone.extend(gone);
        }
        Ok(owners_gone.len())
    };
    removed().map_err(|source| FilterError {
        operation: "remove",
        source,
    })
}

/// Whose filters there are.
fn owners(kernel: &mut Conversation, interface: u32) -> io::Result<BTreeSet<u64>> {
    let filters = listing::filters(kernel, interface, Side::Ingress)?;
    Ok(filters
        .iter()
        .filter_map(Name::of)
        .map(|name| name.owner)
        .collect())
}

/// Which of them are gone. Nobody begins with one of their numbers meanwhile.
fn gone(owners: &BTreeSet<u64>) -> io::Result<BTreeSet<u64>> {
    let mut gone = BTreeSet::new();
    for owner in owners {
        if lock(*owner)?.is_some() {
            gone.insert(*owner);
        }
    }
    Ok(gone)
}

fn interfaces() -> io::Result<Vec<(u32, String)>> {
    let listed = if_nameindex()?;
    Ok(listed
        .iter()
        .map(|interface| {
            (
                interface.index(),
                interface.name().to_string_lossy().into_owned(),
            )
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(priority: u16, name: &str) -> Listed {
        Listed::for_tests(priority, name)
    }

    #[test]
    fn a_name_says_whose_it_is_and_others_are_not_taken_for_ours() {
        for has_made in [false, true] {
            let name = Name {
                program: "gateway_guard".to_owned(),
                owner: 0xab,
                has_made,
            };
            assert_eq!(Name::of(&listed(1, &name.to_string())), Some(name));
        }
        for other in [
            "culvert",
            "culvert-gateway",
            "culvert-gateway-xyz",
            "culvert-gateway-1-clsact2",
            "cil_from_netdev",
            "",
        ] {
            assert_eq!(Name::of(&listed(1, other)), None, "{other}");
        }
    }

    #[test]
    fn ours_come_behind_ours_and_take_nobodys_place() {
        let ours = "culvert-gateway-1";
        assert_eq!(free_place(&[]), Some(FIRST));
        assert_eq!(
            free_place(&[listed(1, "a"), listed(49152, "b")]),
            Some(FIRST)
        );
        assert_eq!(free_place(&[listed(FIRST, "a")]), Some(FIRST + 1));
        let there = [
            listed(FIRST + 4, ours),
            listed(FIRST + 5, "a"),
            listed(FIRST + 6, "b"),
        ];
        assert_eq!(free_place(&there), Some(FIRST + 7));
        assert_eq!(free_place(&[listed(LAST, ours)]), Some(FIRST));
    }
}
