//! Who connected: executable and cgroup of a process id, from `/proc`.
//!
//! For records and logs, and to notice a proxy that is sent to itself; which connections are intercepted is decided in
//! the kernel. A process can be gone before it is asked for and its id can be in use again, so every answer is optional
//! and never an error.
//! Each worker owns one [`Processes`], so nothing here is shared or locked.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read},
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use procfs::process::{Process as ProcDir, Stat};

use crate::cgroup;

pub mod exe;
pub(crate) mod listening;
mod server;

/// How long an answer is used again. A busy client opens many connections within this time.
const TTL: Duration = Duration::from_secs(1);

/// How many processes are remembered; beyond it the expired ones go, or all when none is.
const CAPACITY: usize = 1024;

/// Inode number of the initial PID namespace (`PROC_PID_INIT_INO` of `include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Whether process ids are the same here as in eBPF programs.
fn has_same_ids() -> bool {
    fs::metadata("/proc/self/ns/pid")
        .is_ok_and(|namespace| namespace.ino() == INITIAL_PID_NAMESPACE)
}

/// This process, as eBPF programs see it; 0 where it does not know.
#[must_use]
pub fn own() -> u32 {
    if has_same_ids() {
        std::process::id()
    } else {
        0
    }
}

/// What is known about a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id, in the PID namespace of the daemon.
    pub pid: u32,
    /// Its executable, as the kernel names it: ` (deleted)` is appended after an upgrade.
    pub exe: Option<PathBuf>,
    /// Its cgroup, as a path in the hierarchy.
    pub cgroup: Option<PathBuf>,
}

/// Whom a process belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What the kernel calls the process.
    pub comm: String,
    /// Its real user id.
    pub uid: u32,
    /// Its real group id.
    pub gid: u32,
}

/// Whom a process belongs to.
///
/// # Errors
/// When it is gone, or may not be looked at.
pub fn owner(pid: u32) -> io::Result<Owner> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    let status = ProcDir::new(pid).and_then(|dir| dir.status());
    let status = status.map_err(io::Error::other)?;
    Ok(Owner {
        comm: status.name,
        uid: status.ruid,
        gid: status.rgid,
    })
}

/// A process and all that descend from it, as far as their parents have not ended.
#[must_use]
pub(crate) fn with_descendants(pid: u32) -> Vec<u32> {
    let all = procfs::process::all_processes().into_iter().flatten();
    let parents: Vec<_> = all
        .filter_map(|process| process.ok()?.stat().ok())
        .filter_map(|stat| {
            Some((
                u32::try_from(stat.pid).ok()?,
                u32::try_from(stat.ppid).ok()?,
            ))
        })
        .collect();
    let mut found = vec![pid];
    let mut looked = 0;
    while let Some(parent) = found.get(looked).copied() {
        let children = parents.iter().filter(|(_, above)| *above == parent);
        found.extend(children.map(|(child, _)| *child));
        looked += 1;
    }
    found
}

/// What was answered within the last second.
#[derive(Debug)]
pub struct Processes {
    known: HashMap<u32, Known>,
    /// Whether the ids the kernel reports are those of our `/proc`.
    same_ids: bool,
}

#[derive(Debug)]
struct Known {
    process: Arc<Process>,
    identity: Identity,
    asked: Instant,
    /// Whether it accepts connections at an address, as far as that was asked.
    serves: Vec<(SocketAddr, bool)>,
}

/// What tells a process from a later one of the same id, and from itself before `execve`.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    /// In clock ticks since boot.
    start_time: u64,
    comm: String,
}

impl Default for Processes {
    fn default() -> Self {
        Self::new()
    }
}

impl Processes {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            known: HashMap::new(),
            same_ids: has_same_ids(),
        }
    }

    /// What is known about the process with an id of the initial PID namespace, as eBPF programs see it; `None`
    /// when it is gone, or when the daemon lives in another PID namespace, where the id means another process.
    ///
    /// `connect_ns` is when the kernel saw it, in nanoseconds of `CLOCK_MONOTONIC`: a process that started later
    /// is another one that got the id since, and is not answered.
    pub fn get(&mut self, pid: u32, connect_ns: u64) -> Option<Arc<Process>> {
        if !self.same_ids {
            return None;
        }
        let dir = ProcDir::new(i32::try_from(pid).ok()?).ok()?;
        let stat = dir.stat().ok()?;
        if started_after(&stat, connect_ns)? {
            return None;
        }
        let identity = Identity {
            start_time: stat.starttime,
            comm: stat.comm,
        };
        let now = Instant::now();
        if let Some(known) = self.known.get(&pid)
            && known.identity == identity
            && now.duration_since(known.asked) < TTL
        {
            return Some(Arc::clone(&known.process));
        }
        let process = Arc::new(read(pid, &dir));
        self.make_room(now);
        self.known.insert(
            pid,
            Known {
                process: Arc::clone(&process),
                identity,
                asked: now,
                serves: Vec::new(),
            },
        );
        Some(process)
    }

    /// Whether a process that was just answered accepts connections at an address of this host.
    pub fn serves(&mut self, process: &Process, address: SocketAddr) -> bool {
        let Some(known) = self.known.get_mut(&process.pid) else {
            return false;
        };
        let answered = known.serves.iter().find(|(at, _)| *at == address);
        if let Some((_, serves)) = answered {
            return *serves;
        }
        let serves = i32::try_from(process.pid)
            .ok()
            .and_then(|pid| ProcDir::new(pid).ok())
            .is_some_and(|dir| server::serves(&dir, address));
        known.serves.push((address, serves));
        serves
    }

    fn make_room(&mut self, now: Instant) {
        if self.known.len() < CAPACITY {
            return;
        }
        self.known
            .retain(|_, known| now.duration_since(known.asked) < TTL);
        if self.known.len() >= CAPACITY {
            self.known.clear();
        }
    }
}

/// All of it through one open `/proc/PID`, which stays that of the process it was opened for.
fn read(pid: u32, dir: &ProcDir) -> Process {
    let cgroup = || {
        let mut table = Vec::new();
        dir.open_relative("cgroup")
            .ok()?
            .read_to_end(&mut table)
            .ok()?;
        cgroup::v2_path(&table)
    };
    Process {
        pid,
        exe: dir.exe().ok(),
        cgroup: cgroup(),
    }
}

/// Start times are rounded down to a clock tick, so a process is never taken for later than it is.
fn started_after(stat: &Stat, monotonic_ns: u64) -> Option<bool> {
    // Start times count from boot, suspended time included (proc_pid_stat(5)); the monotonic clock leaves that out.
    let now = |clock| clock_gettime(clock).ok().map(Duration::from);
    let suspended = now(ClockId::CLOCK_BOOTTIME)?.saturating_sub(now(ClockId::CLOCK_MONOTONIC)?);
    let connected = Duration::from_nanos(monotonic_ns) + suspended;
    let ticks_per_second = procfs::ticks_per_second().max(1);
    let started = Duration::from_millis(stat.starttime.saturating_mul(1000) / ticks_per_second);
    Some(started > connected)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// As in the initial PID namespace, wherever the tests run.
    fn processes() -> Processes {
        Processes {
            same_ids: true,
            ..Processes::new()
        }
    }

    fn now() -> Duration {
        clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
    }

    fn ns(time: Duration) -> u64 {
        time.as_nanos().try_into().unwrap()
    }

    #[test]
    fn this_process_is_known_by_its_executable_and_cgroup() {
        let mut processes = processes();
        let pid = std::process::id();
        let me = processes.get(pid, ns(now())).unwrap();
        assert_eq!(me.exe.as_deref(), std::env::current_exe().ok().as_deref());
        assert_eq!(me.cgroup, cgroup::Cgroup2::of_process(pid).ok());
        let again = processes.get(pid, ns(now())).unwrap();
        assert!(Arc::ptr_eq(&me, &again), "the second answer is remembered");
    }

    #[test]
    fn a_process_that_is_gone_is_not_answered_from_memory() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let mut processes = processes();
        assert!(processes.get(child.id(), ns(now())).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(processes.get(child.id(), ns(now())).is_none());
        assert!(processes.get(u32::MAX, ns(now())).is_none());
    }

    #[test]
    fn a_process_that_started_after_the_connection_is_another_one() {
        let connected = now().checked_sub(Duration::from_millis(20)).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let mut processes = processes();
        assert!(processes.get(child.id(), ns(connected)).is_none());
        assert!(processes.get(child.id(), ns(now())).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn execve_makes_a_new_answer_at_once() {
        // `read` keeps the shell from calling execve before it was looked at.
        let mut child = Command::new("sh")
            .args(["-c", "read line; exec sleep 60"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut processes = processes();
        let shell = processes.get(child.id(), ns(now())).unwrap();
        drop(child.stdin.take());
        let deadline = Instant::now() + Duration::from_millis(900);
        let sleep = loop {
            let now = processes.get(child.id(), ns(now())).unwrap();
            if now.exe != shell.exe {
                break now;
            }
            assert!(Instant::now() < deadline, "still {shell:?}");
        };
        assert!(
            sleep
                .exe
                .as_ref()
                .unwrap()
                .to_str()
                .unwrap()
                .contains("sleep")
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn in_another_pid_namespace_nobody_is_mistaken_for_somebody() {
        let mut processes = Processes {
            same_ids: false,
            ..Processes::new()
        };
        assert_eq!(processes.get(std::process::id(), ns(now())), None);
    }

    #[test]
    fn memory_is_bounded() {
        let me = processes().get(std::process::id(), ns(now())).unwrap();
        let mut full = processes();
        // Beyond the highest id a kernel gives out (4,194,304), so that none is this process.
        for pid in (5_000_000..).take(CAPACITY) {
            full.known.insert(
                pid,
                Known {
                    process: Arc::clone(&me),
                    identity: Identity {
                        start_time: 0,
                        comm: String::new(),
                    },
                    asked: Instant::now(),
                    serves: Vec::new(),
                },
            );
        }
        full.get(std::process::id(), ns(now())).unwrap();
        assert!(full.known.len() <= CAPACITY);
    }
}
