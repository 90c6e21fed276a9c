//! What a daemon needs of the machine, now and all the time.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use culvert_tests::{
    Culvert, Sandbox,
    eventually::in_time,
    kernel::Objects,
    usage::{files_by_kind, resident},
};
use proxy_common::names;

use super::farm::ENDPOINTS;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// How much more memory it may have in the last quarter than in the second: an allocator gives back what it likes.
const GROWN: u64 = 32 << 20;
/// Files of the pipes that the relay's threads keep for later, at most.
const PIPES: usize = WORKERS * 64 * 2;
/// Connections that checks of endpoints may have open.
const CHECKS: usize = 6;
/// How many more files and entries it may have at the busiest of the last quarter than at that of the second.
const BUSIER: f64 = 1.5;
/// The relay's threads.
pub(super) const WORKERS: usize = 2;
/// The one container with a network of its own is in one, and the one before it may not be over.
const NAMESPACES: usize = 8;

/// How many entries tables may have at any time that are written anew when a container or an endpoint comes or goes. The table before
/// stays beside the one in force, for a hook that had just found it, so that it tells what was there two changes ago, not what was
/// there at first.
fn bound(name: &str) -> Option<usize> {
    let of_each = match name {
        // The interface of the rule for what passes through, and the cgroup of the container that a rule names.
        names::MEMBERS => 2,
        names::SEATS => ENDPOINTS,
        _ => return None,
    };
    Some(2 * of_each)
}

/// At one moment.
#[derive(Clone, Debug, Default)]
struct Look {
    resident: u64,
    pipes: usize,
    /// Network namespaces that it holds by a file.
    namespaces: usize,
    /// Other files.
    files: usize,
    threads: usize,
    programs: usize,
    maps: usize,
    links: usize,
    /// Cgroups below the sandbox's.
    cgroups: usize,
    /// Entries of tables, by their names.
    entries: BTreeMap<String, usize>,
}

/// From the beginning on.
pub(super) struct Vitals<'a> {
    sandbox: &'a Sandbox,
    looks: Vec<Look>,
    next: Instant,
}

impl<'a> Vitals<'a> {
    pub(super) fn new(sandbox: &'a Sandbox, culvert: &Culvert<'_>) -> Self {
        Self {
            sandbox,
            looks: vec![Look::at(sandbox, culvert)],
            next: Instant::now() + PERIOD,
        }
    }

    /// Looks, if it is time.
    pub(super) fn look(&mut self, culvert: &Culvert<'_>) {
        if Instant::now() >= self.next {
            self.looks.push(Look::at(self.sandbox, culvert));
            self.next = Instant::now() + PERIOD;
        }
    }

    /// Panics when there was more and more of anything, or is more now, when there is nothing to do, than at first.
    pub(super) fn assert_flat(&self, culvert: &Culvert<'_>) {
        let first = &self.looks[0];
        // Some things go a moment after the connection that they were for.
        let mut left = String::new();
        let is_as_before = in_time(|| {
            let now = Look::at(self.sandbox, culvert);
            left = format!("{:?}", now.rest());
            now.is_at_rest_as(first).then_some(())
        });
        assert!(
            is_as_before.is_some(),
            "there is {left}, and was {:?}\n{self}",
            first.rest()
        );
        let now = Look::at(self.sandbox, culvert);
        println!("at first: {first:?}\nat last: {now:?}");
        assert!(now.resident < first.resident + GROWN, "{self}");
        assert!(now.pipes <= first.pipes + PIPES, "{self}");

        let (early, late) = (self.most(1), self.most(3));
        assert!(late.resident < early.resident + GROWN, "{self}");
        assert!(late.threads <= early.threads + 1, "{self}");
        for look in &self.looks {
            let fixed = |look: &Look| (look.programs, look.maps, look.links);
            assert_eq!(fixed(look), fixed(first), "{self}");
            assert!(look.pipes <= first.pipes + PIPES, "{self}");
            assert!(look.namespaces <= first.namespaces + NAMESPACES, "{self}");
            for (name, count) in &look.entries {
                let most = bound(name).unwrap_or(usize::MAX);
                assert!(*count <= most, "{count} of {name}, {most} at most\n{self}");
            }
        }
        let numbers = |look: &Look| {
            let mut numbers = look.entries.clone();
            numbers.insert("files".to_owned(), look.files);
            numbers.insert("cgroups".to_owned(), look.cgroups);
            numbers
        };
        let before = numbers(&early);
        for (what, count) in numbers(&late) {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let most = before.get(&what).copied().unwrap_or(0) as f64 * BUSIER + 100.0;
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let is_as_ever = count as f64 <= most;
            assert!(is_as_ever, "{what}: {count}, before {most}\n{self}");
        }
    }

    /// The most of a quarter.
    fn most(&self, quarter: usize) -> Look {
        let length = self.looks.len() / 4;
        let looks = self.looks.iter().skip(quarter * length).take(length.max(1));
        looks.cloned().reduce(Look::most).unwrap_or_default()
    }
}

impl Display for Vitals<'_> {
    /// The most of each tenth of the time.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for looks in self.looks.chunks(self.looks.len().div_ceil(10)) {
            let most = looks.iter().cloned().reduce(Look::most);
            writeln!(formatter, "{:?}", most.unwrap_or_default())?;
        }
        Ok(())
    }
}

impl Look {
    fn at(sandbox: &Sandbox, culvert: &Culvert<'_>) -> Self {
        let pid = culvert.pid();
        let Objects {
            programs,
            maps,
            links,
        } = Objects::of(pid);
        let mut files = files_by_kind(pid);
        let mut entries = culvert.maps().census();
        // These fade by themselves, whatever becomes of the connection, and there are as many as there may be.
        for fading in [names::TRACES, names::RELAYED] {
            entries.remove(fading);
        }
        // Endpoints are checked all the time, each by a connection.
        let own = entries.entry(names::OWN.to_owned()).or_default();
        *own = own.saturating_sub(CHECKS);
        Self {
            resident: resident(pid),
            pipes: files.remove("pipe").unwrap_or(0),
            namespaces: files.remove("net").unwrap_or(0),
            files: files.values().sum(),
            threads: fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(),
            programs: programs.len(),
            maps: maps.len(),
            links: links.len(),
            cgroups: cgroups(sandbox.cgroup().path()),
            entries,
        }
    }

    /// What is as at first when there is nothing to do.
    fn rest(&self) -> (usize, [usize; 4], &BTreeMap<String, usize>) {
        let fixed = [self.programs, self.maps, self.links, self.cgroups];
        (self.namespaces, fixed, &self.entries)
    }

    /// Whether there is no more than at first; of what rules and endpoints come to, no more than there may be.
    fn is_at_rest_as(&self, first: &Self) -> bool {
        let fits = |(name, count): (&String, &usize)| {
            let most = first.entries.get(name).copied().unwrap_or(0);
            *count <= bound(name).unwrap_or(most)
        };
        let (namespaces, fixed, entries) = self.rest();
        (namespaces, fixed) == (first.namespaces, first.rest().1)
            && self.files <= first.files + CHECKS
            && entries.iter().all(fits)
    }

    fn most(mut self, other: Self) -> Self {
        for (name, count) in other.entries {
            let most = self.entries.entry(name).or_default();
            *most = count.max(*most);
        }
        Self {
            resident: self.resident.max(other.resident),
            pipes: self.pipes.max(other.pipes),
            namespaces: self.namespaces.max(other.namespaces),
            files: self.files.max(other.files),
            threads: self.threads.max(other.threads),
            programs: self.programs.max(other.programs),
            maps: self.maps.max(other.maps),
            links: self.links.max(other.links),
            cgroups: self.cgroups.max(other.cgroups),
            entries: self.entries,
        }
    }
}

fn cgroups(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.map(|entry| 1 + cgroups(&entry.path())).sum()
}
