//! Whether the machine is what it is to be: what passes on one that is not says nothing.

use std::{collections::BTreeSet, fs, path::Path};

use culvert_tests::kernel::{has_ipv6, is_confidential, tells_types};
use nix::sys::resource::{Resource, getrlimit};

use crate::{Cgroups, Setting};

/// Looks, and panics if it is not.
pub(crate) fn verify(wanted: &Setting) {
    let (locked_memory, _) = getrlimit(Resource::RLIMIT_MEMLOCK).expect("a limit");
    let found = Setting {
        cgroups: cgroups(),
        has_ipv6: has_ipv6(),
        has_types: tells_types(),
        is_confidential: is_confidential(),
        locked_memory: wanted.locked_memory.map(|_| locked_memory),
    };
    assert_eq!(*wanted, found, "the machine is not as it should be");
}

/// How control groups are mounted.
fn cgroups() -> Cgroups {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let kinds: BTreeSet<_> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(2))
        .collect();
    assert!(kinds.contains("cgroup2"), "{mounts}");
    if kinds.contains("cgroup") {
        return Cgroups::Hybrid;
    }
    // Every cgroup but the root of all has this file.
    if Path::new("/sys/fs/cgroup/cgroup.events").exists() {
        let own = fs::read_to_string("/proc/self/cgroup").expect("the own cgroup");
        assert_eq!(own, "0::/\n", "it sees what is above");
        return Cgroups::Private;
    }
    Cgroups::Pure
}
