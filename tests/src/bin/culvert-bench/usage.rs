//! What a run takes of the machine, as the kernel accounts for it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use culvert_tests::{Sandbox, cgroup::Cgroup};

const PAGE: u64 = 4096;

/// Processor time so far.
pub(crate) struct Cpu {
    relay: Duration,
    all: Duration,
    kernel_threads: BTreeMap<PathBuf, Duration>,
}

/// Processor time between two looks.
#[derive(Clone, Copy)]
pub(crate) struct Spent {
    /// Of the proxy's processes, with all their threads.
    pub(crate) relay: Duration,
    /// Of client, proxy and server, and of the kernel's own threads: the sockmap path does its work in those.
    pub(crate) all: Duration,
}

impl Cpu {
    pub(crate) fn now(sandbox: &Sandbox) -> Result<Self> {
        Ok(Self {
            relay: of_cgroup(sandbox.daemon_cgroup())?,
            all: of_cgroup(sandbox.cgroup())?,
            kernel_threads: kernel_threads()?,
        })
    }

    pub(crate) fn since(&self, before: &Self) -> Spent {
        // One by one: a thread that ends takes its time with it.
        let threads = self.kernel_threads.iter().map(|(thread, time)| {
            let before = before.kernel_threads.get(thread).copied();
            time.saturating_sub(before.unwrap_or_default())
        });
        Spent {
            relay: self.relay.saturating_sub(before.relay),
            all: self.all.saturating_sub(before.all) + threads.sum::<Duration>(),
        }
    }
}

/// There in every cgroup, with or without the controller, cgroups below included.
fn of_cgroup(cgroup: &Cgroup) -> Result<Duration> {
    let path = cgroup.path().join("cpu.stat");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let number = value(&text, "usage_usec").context("no usage_usec in cpu.stat")?;
    Ok(Duration::from_micros(number))
}

/// All that the kernel's thread of threads has started.
fn kernel_threads() -> Result<BTreeMap<PathBuf, Duration>> {
    const PARENT: &str = "2";
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let path = entry?.path();
        // One that has ended in the meantime has nothing to tell.
        if parent(&path).is_some_and(|parent| parent == PARENT)
            && let Ok(text) = fs::read_to_string(path.join("schedstat"))
            && let Some(time) = text.split(' ').next().and_then(|time| time.parse().ok())
        {
            threads.insert(path, Duration::from_nanos(time));
        }
    }
    Ok(threads)
}

fn parent(process: &Path) -> Option<String> {
    let text = fs::read_to_string(process.join("stat")).ok()?;
    // The name in parentheses may contain anything; state and parent follow it.
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1).map(str::to_owned)
}

/// Memory in use now.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// Of the proxy's processes, what they share counted once.
    pub(crate) relay: u64,
    /// Of the kernel: its objects, stacks and page tables, and what TCP holds in buffers.
    pub(crate) kernel: u64,
}

impl Memory {
    pub(crate) fn now(sandbox: &Sandbox) -> Result<Self> {
        let mut relay = 0;
        for process in sandbox.daemon_cgroup().processes() {
            let path = format!("/proc/{process}/smaps_rollup");
            let text = fs::read_to_string(&path).context(path)?;
            relay += kib(&text, "Pss:")?;
        }
        let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        let mut kernel = tcp_pages()? * PAGE;
        for key in ["Slab:", "KernelStack:", "PageTables:"] {
            kernel += kib(&text, key)?;
        }
        Ok(Self { relay, kernel })
    }
}

fn kib(text: &str, key: &str) -> Result<u64> {
    let number = value(text, key).with_context(|| format!("no {key}"))?;
    Ok(number * 1024)
}

/// The number in the line that begins so.
fn value(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// Pages of all TCP sockets' buffers.
fn tcp_pages() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/sockstat").context("/proc/net/sockstat")?;
    let pages = text.lines().find_map(|line| {
        let rest = line.strip_prefix("TCP:")?;
        rest.split_once(" mem ")?.1.trim().parse().ok()
    });
    pages.context("no TCP memory in sockstat")
}

/// Bytes that wait in the queues of the sandbox's TCP sockets.
pub(crate) fn queued(sandbox: &Sandbox) -> Result<u64> {
    let text = sandbox.within(|| fs::read_to_string("/proc/thread-self/net/tcp"))?;
    let queues = text.lines().skip(1).filter_map(|line| {
        let (sending, receiving) = line.split_ascii_whitespace().nth(4)?.split_once(':')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(number(sending)? + number(receiving)?)
    });
    Ok(queues.sum())
}
