//! Routing rules that have packets delivered to this host although no address of it is theirs.
//!
//! A relay that shows servers the addresses of clients gets answers to those addresses, and a gateway takes connections to
//! addresses of others. Where such a packet goes is decided by routing alone, so it takes a rule that selects them and a
//! routing table that says "this host" to whatever is looked up in it. Both outlive the process that made them, which nothing
//! else of ours does. So each [`Delivery`] has a table of its own out of [`TABLES`], all that it makes carries [`PROTOCOL`],
//! and a lock which the kernel takes back when the process ends says who still needs a table (`Claim`). Whatever is found
//! with both tags and without a lock was left by somebody who was killed.
//!
//! What is left does little harm until then: it is about packets with a mark that nobody gives any more, or about those of a
//! loopback address that go to other hosts, which no packet may.
//!
//! Needs kernel 4.17, which knows tags and ports in rules.

mod claim;
mod conflict;
mod entry;
mod kernel;
mod place;

use std::{collections::BTreeSet, io, net::SocketAddr, ops::RangeInclusive, sync::Arc};

use thiserror::Error;

use self::{
    claim::Claim,
    entry::{Family, Route, Rule},
    kernel::Kernel,
};

pub use self::place::{Place, Places};

/// The tag of rules and routes (`FRA_PROTOCOL`, `rtm_protocol`), which nobody else is known to use.
pub const PROTOCOL: u8 = 67;

/// Numbers of routing tables, which are the marks of packets, too: `cul` in ASCII, and one byte.
pub const TABLES: RangeInclusive<u32> = 0x6375_6c00..=0x6375_6cff;

/// The place of our rules: behind that of the table of local addresses, which is asked first and knows who is really here.
pub const PRIORITY: u32 = 1;

/// Packets that are to be delivered to this host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// Those that carry the mark of the [`Delivery`] and came in by an interface, which may appear later.
    ///
    /// A rule that names the interface is not asked where the kernel wonders whether the source of a packet is plausible.
    /// Otherwise it would be where `src_valid_mark` is set, as wg-quick(8) sets it, and the kernel would then drop them all: that
    /// a source of others' is "this host" is no plausible answer (`__fib_validate_source()` in `net/ipv4/fib_frontend.c`).
    Marked {
        /// Its name; `lo` for packets that this host sends.
        interface: Arc<str>,
    },
    /// Those that a TCP service of this host sends from its address and port, whomever they go to.
    Replies {
        /// Where the service listens: a loopback address, from which packets cannot reach anybody else anyway.
        from: SocketAddr,
    },
}

/// Why packets cannot be delivered, or what was left cannot be removed.
#[derive(Debug, Error)]
pub enum DeliveryError {
    /// The kernel did not do it.
    #[error("cannot {operation}")]
    Kernel {
        /// What was tried, as a command where there is one.
        operation: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// Somebody else's rule is in the way.
    #[error(transparent)]
    Conflict(Conflict),
    /// All of [`TABLES`] are taken.
    #[error(
        "all {count} routing tables that culvert uses are taken by daemons in this network namespace",
        count = TABLES.count()
    )]
    NoTable,
}

/// Somebody else's rule is in the way.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the routing rule `{rule}` of another owner {why}; remove it, or move it (`ip rule`)")]
pub struct Conflict {
    /// As `ip rule` shows it.
    pub rule: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Rules and routes of this process. They are removed when it is dropped.
#[derive(Debug)]
pub struct Delivery {
    claim: Claim,
    kernel: Kernel,
    wants: BTreeSet<Want>,
    /// Families whose table says "this host".
    families: Vec<Family>,
}

impl Delivery {
    /// Claims a table, and has packets delivered in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel refuses, or a rule of somebody else's is in the way; nothing is left then.
    pub fn new(wants: &[Want]) -> Result<Self, DeliveryError> {
        let mut kernel = Kernel::open()?;
        let claim = Claim::any()?;
        // Whoever had the number before may have left something.
        sweep(&mut kernel, claim.table())?;
        let mut delivery = Self {
            claim,
            kernel,
            wants: BTreeSet::new(),
            families: Vec::new(),
        };
        delivery.change(wants)?;
        Ok(delivery)
    }

    /// Has other packets delivered from now on; those wanted before and now are delivered all the time.
    ///
    /// # Errors
    /// When the kernel refuses, or a rule of somebody else's is in the way; nothing has changed then.
    pub fn change(&mut self, wants: &[Want]) -> Result<(), DeliveryError> {
        let wants: BTreeSet<_> = wants.iter().cloned().collect();
        let conflicts = conflict::find(&mut self.kernel, self.claim.table(), &wants)?;
        if let Some(first) = conflicts.into_iter().next() {
            return Err(DeliveryError::Conflict(first));
        }
        let new: Vec<_> = wants.difference(&self.wants).cloned().collect();
        let old: Vec<_> = self.wants.difference(&wants).cloned().collect();
        let added = new.iter().try_for_each(|want| {
            self.wants.insert(want.clone());
            self.add(want)
        });
        if let Err(error) = added {
            self.discard(&new);
            return Err(error);
        }
        self.discard(&old);
        Ok(())
    }

    /// What packets have to carry for [`Want::Marked`].
    #[must_use]
    pub fn mark(&self) -> u32 {
        self.claim.table()
    }

    fn add(&mut self, want: &Want) -> Result<(), DeliveryError> {
        for &family in want.families() {
            let rule = Rule::of(want, family, self.claim.table());
            // The rule comes first and goes last: before the route it finds an empty table, which decides nothing, and it shows
            // that there is one.
            if !self.kernel.add_rule(&rule)? {
                tracing::info!(rule = %rule, "the kernel has no such family of addresses");
                continue;
            }
            if self.families.contains(&family) {
                continue;
            }
            let route = Route::of(family, self.claim.table());
            match self.kernel.add_route(route) {
                Ok(()) => self.families.push(family),
                // Without IPv6 nothing arrives by it.
                Err(error) if family == Family::V6 && want.families().len() > 1 => {
                    tracing::info!(%error, "no IPv6 here");
                    self.kernel.remove_rule(&rule)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes back what wants were given, as far as they were.
    fn discard(&mut self, wants: &[Want]) {
        for want in wants {
            if !self.wants.remove(want) {
                continue;
            }
            for &family in want.families() {
                let rule = Rule::of(want, family, self.claim.table());
                if let Err(error) = self.kernel.remove_rule(&rule) {
                    report(&error);
                }
            }
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Err(error) = sweep(&mut self.kernel, self.claim.table()) {
            report(&error);
        }
    }
}

fn report(error: &DeliveryError) {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "a routing rule or route is left; `culvert detach` removes it"
    );
}

/// What has packets delivered, as commands, where the daemon is the only one.
#[must_use]
pub fn planned(wants: &[Want]) -> Vec<String> {
    let table = *TABLES.start();
    let mut shown: Vec<String> = Vec::new();
    let commands = wants.iter().flat_map(|want| {
        let of_family = |family: &Family| {
            let rule = Rule::of(want, *family, table).command();
            [rule, Route::of(*family, table).command()]
        };
        want.families().iter().flat_map(of_family)
    });
    for command in commands {
        if !shown.contains(&command) {
            shown.push(command);
        }
    }
    shown
}

/// What would keep packets from being delivered in the network namespace of this thread, and [`Delivery::new`] would say.
///
/// # Errors
/// When the kernel does not tell its rules, or there is no table left.
pub fn conflicts(wants: &[Want]) -> Result<Vec<Conflict>, DeliveryError> {
    // Held meanwhile: nobody else begins with that table.
    let claim = Claim::any()?;
    let wants = wants.iter().cloned().collect();
    conflict::find(&mut Kernel::open()?, claim.table(), &wants)
}

/// The tables of processes that are gone, in the network namespace of this thread.
///
/// # Errors
/// When the kernel does not tell its rules.
pub fn stale() -> Result<Vec<u32>, DeliveryError> {
    let mut stale = Vec::new();
    for table in tables(&mut Kernel::open()?)? {
        if Claim::of(table)?.is_some() {
            stale.push(table);
        }
    }
    Ok(stale)
}

/// Removes what processes that are gone have left in the network namespace of this thread, and returns of how many.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_stale() -> Result<usize, DeliveryError> {
    let mut kernel = Kernel::open()?;
    let mut count = 0;
    for table in tables(&mut kernel)? {
        // Held meanwhile: nobody else begins with that table.
        if let Some(claim) = Claim::of(table)? {
            sweep(&mut kernel, claim.table())?;
            count += 1;
        }
    }
    Ok(count)
}

/// The tables that rules of ours name.
fn tables(kernel: &mut Kernel) -> Result<BTreeSet<u32>, DeliveryError> {
    let mut tables = BTreeSet::new();
    for family in Family::ALL {
        tables.extend(kernel.rules(family)?.iter().filter_map(Rule::own_table));
    }
    Ok(tables)
}

/// Removes rules and routes of one of our tables.
fn sweep(kernel: &mut Kernel, table: u32) -> Result<(), DeliveryError> {
    for family in Family::ALL {
        kernel.remove_route(Route::of(family, table))?;
        for rule in kernel.rules(family)? {
            if rule.own_table() == Some(table) {
                kernel.remove_rule(&rule)?;
            }
        }
    }
    Ok(())
}
