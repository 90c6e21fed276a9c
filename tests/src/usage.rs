//! What processes use of the machine, and what it lets them use.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{SysconfVar, sysconf},
};

/// CPU time that a process has used, user and system.
pub fn cpu_time(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its times");
    // Fields 14 and 15, counted from behind the name, which may hold anything.
    let (_, fields) = text.rsplit_once(')').expect("a name");
    let times = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = times
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).expect("the length of a tick");
    let per_second = per_second.and_then(|ticks| u64::try_from(ticks).ok());
    Duration::from_millis(ticks * 1000 / per_second.expect("the length of a tick"))
}

/// Looks that a process which has nothing to do does not turn in circles.
pub fn assert_rests(pid: u32) {
    let (before, begun) = (cpu_time(pid), Instant::now());
    // Time must pass for this one: a process that spins uses all of it.
    thread::sleep(Duration::from_secs(1));
    let used = cpu_time(pid).saturating_sub(before);
    let passed = begun.elapsed();
    assert!(used < passed / 4, "it used {used:?} of {passed:?} waiting");
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.expect("VmRSS").trim().trim_end_matches(" kB");
    1024 * kib.parse::<u64>().expect("a number")
}

/// Files that a process has open.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its files")
        .count()
}

/// The kinds of files that a process has open, as links in `/proc` call them (`pipe`, `socket`, `net` for a network namespace), and
/// how many of each.
pub fn files_by_kind(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for file in fs::read_dir(format!("/proc/{pid}/fd")).expect("its files") {
        // One that is closed meanwhile is none.
        let Ok(link) = fs::read_link(file.expect("a file").path()) else {
            continue;
        };
        let link = link.to_string_lossy();
        let kind = link.split_once(":[").map_or("other", |(kind, _)| kind);
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

/// As many connections as are wanted, or as this machine lets one daemon have, if fewer. It has two files for each, and others.
pub fn affordable(wanted: u32, other_files: u64) -> u32 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    let enough = hard.max(u64::from(2 * wanted) + other_files);
    // To raise the hard limit takes a privilege that a container may lack.
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, enough, enough).is_ok() {
        enough
    } else {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the limit of open files");
        hard
    };
    let count = (limit - other_files) / 2;
    let count = u32::try_from(count).unwrap_or(wanted).min(wanted);
    if count < wanted {
        println!("the limit of {limit} open files allows {count} connections and not {wanted}");
    }
    count
}
