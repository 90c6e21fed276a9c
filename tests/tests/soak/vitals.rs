//! What a daemon needs of the machine, now and all the time.

use std::{
    fmt::{self, Display},
    fs,
    time::{Duration, Instant},
};

use culvert_tests::{
    Culvert,
    kernel::Objects,
    usage::{open_files, resident},
};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// How much more memory it may have in the last quarter than in the second: an allocator gives back what it likes.
const GROWN: u64 = 32 << 20;
/// Files of the pipes that the relay's threads keep for later, at most.
const PIPES: usize = WORKERS * 64 * 2;
/// The relay's threads.
pub(super) const WORKERS: usize = 2;

/// At one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Look {
    resident: u64,
    files: usize,
    threads: usize,
    programs: usize,
    maps: usize,
    links: usize,
    /// Entries of maps that connections have.
    entries: usize,
}

/// From the beginning on.
pub(super) struct Vitals {
    looks: Vec<Look>,
    next: Instant,
}

impl Vitals {
    pub(super) fn new(culvert: &Culvert<'_>) -> Self {
        Self {
            looks: vec![Look::at(culvert)],
            next: Instant::now() + PERIOD,
        }
    }

    /// Looks, if it is time.
    pub(super) fn look(&mut self, culvert: &Culvert<'_>) {
        if Instant::now() >= self.next {
            self.looks.push(Look::at(culvert));
            self.next = Instant::now() + PERIOD;
        }
    }

    /// Panics when there was more and more of anything, or is more now, when there is nothing to do, than at first.
    pub(super) fn assert_flat(&self, culvert: &Culvert<'_>) {
        let now = Look::at(culvert);
        println!("at first: {:?}\nat last: {now:?}", self.looks[0]);
        let most = |quarter: usize| {
            let length = self.looks.len() / 4;
            let looks = self.looks.iter().skip(quarter * length).take(length.max(1));
            looks.copied().reduce(Look::most).unwrap_or_default()
        };
        let (early, late) = (most(1), most(3));
        assert!(late.resident < early.resident + GROWN, "{self}");
        assert!(late.threads <= early.threads + 1, "{self}");
        let first = self.looks[0];
        assert!(now.resident < first.resident + GROWN, "{self}");
        assert!(now.files <= first.files + PIPES, "{self}");
        assert_eq!(
            (now.programs, now.maps, now.links, now.entries),
            (first.programs, first.maps, first.links, 0),
            "{self}"
        );
    }
}

impl Display for Vitals {
    /// The most of each tenth of the time.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for looks in self.looks.chunks(self.looks.len().div_ceil(10)) {
            let most = looks.iter().copied().reduce(Look::most);
            writeln!(formatter, "{:?}", most.unwrap_or_default())?;
        }
        Ok(())
    }
}

impl Look {
    fn at(culvert: &Culvert<'_>) -> Self {
        let pid = culvert.pid();
        let Objects {
            programs,
            maps,
            links,
        } = Objects::of(pid);
        let tables = culvert.maps();
        Self {
            resident: resident(pid),
            files: open_files(pid),
            threads: fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(),
            programs: programs.len(),
            maps: maps.len(),
            links: links.len(),
            entries: tables.records().len() + tables.own().len() + tables.lanes().len(),
        }
    }

    fn most(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            files: self.files.max(other.files),
            threads: self.threads.max(other.threads),
            programs: self.programs.max(other.programs),
            maps: self.maps.max(other.maps),
            links: self.links.max(other.links),
            entries: self.entries.max(other.entries),
        }
    }
}
