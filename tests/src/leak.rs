//! What must not be left when a test is over, looked for by the ids and names of everything the test made.

use std::{path::Path, process::Command};

use crate::{
    eventually::in_time,
    kernel::{Objects, has_ipv6},
    mounts::Mounts,
    netns::Netns,
    process::{output, output_of},
};

/// Waits until the kernel has freed the objects, which it does some time after their last user ended.
///
/// Panics, naming them, when some stay.
pub fn check_objects(objects: &Objects) {
    let gone = in_time(|| objects.remaining().is_empty().then_some(()));
    assert!(
        gone.is_some(),
        "left in the kernel: {:?}",
        objects.remaining()
    );
}

/// Looks for routing rules and routes of culvert's, which carry a tag.
///
/// Panics, showing them, when there are any.
pub fn check_routing(netns: &Netns) {
    let families: &[&str] = if has_ipv6() { &["-4", "-6"] } else { &["-4"] };
    for family in families {
        let mut ip = Command::new("ip");
        ip.args([family, "-batch", "-"]);
        let shown = netns.within(|| output_of(&mut ip, "rule show\nroute show table all"));
        assert!(!shown.contains("proto 67"), "left in routing: {shown}");
    }
}

/// Looks for queueing disciplines that filters hang on; a test that makes one takes it away itself.
///
/// Panics, showing them, when there are any.
pub fn check_filters(netns: &Netns) {
    let shown = netns.within(|| output(Command::new("tc").args(["qdisc", "show"])));
    assert!(!shown.contains("clsact"), "left on an interface: {shown}");
}

/// Looks for pins and directories of culvert's.
///
/// Panics, naming them, when there are any.
pub fn check_files(mounts: &Mounts) {
    let left = mounts.within(|| {
        let places = ["/sys/fs/bpf/culvert", "/run/culvert"];
        places.map(Path::new).map(listing).concat()
    });
    assert!(left.is_empty(), "left in the file system: {left:?}");
}

fn listing(directory: &Path) -> Vec<String> {
    if !directory.exists() {
        return Vec::new();
    }
    let below = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .flat_map(|entry| listing(&entry.path()));
    let mut left: Vec<_> = below.collect();
    left.push(directory.display().to_string());
    left
}
