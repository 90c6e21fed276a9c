//! What is left once the demonstration is over, looked for where it would be.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::intercept::survey::Objects;

/// What there was.
#[derive(Debug)]
pub(super) struct Traces {
    /// Programs and links.
    pub(super) objects: Objects,
    /// The network namespace.
    pub(super) namespace: u64,
    /// Directory of the cgroup.
    pub(super) cgroup: PathBuf,
}

/// The kernel frees links and programs a moment after their last file was closed.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);

impl Traces {
    /// What is still there, as sentences. Waits for the kernel to have tidied up.
    pub(super) fn left(&self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.left_now();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            thread::sleep(PAUSE);
        }
    }

    fn left_now(&self) -> Vec<String> {
        let mut left = Vec::new();
        let loaded = self.objects.still_loaded();
        if !loaded.is_empty() {
            left.push(format!(
                "programs {:?} and links {:?} are still loaded",
                loaded.programs, loaded.links
            ));
        }
        if self.cgroup.exists() {
            left.push(format!(
                "the cgroup {} is still there",
                self.cgroup.display()
            ));
        }
        if let Some(holder) = holder_of(self.namespace) {
            left.push(format!("the network namespace is still held by {holder}"));
        }
        left
    }
}

/// A thread that is in a network namespace, or a file that keeps it.
fn holder_of(namespace: u64) -> Option<String> {
    let name = PathBuf::from(format!("net:[{namespace}]"));
    let holds = |link: &Path| fs::read_link(link).is_ok_and(|target| target == name);
    for process in entries(Path::new("/proc")) {
        let in_it = entries(&process.join("task")).map(|task| task.join("ns/net"));
        let files = entries(&process.join("fd"));
        if let Some(link) = in_it.chain(files).find(|link| holds(link)) {
            return Some(link.display().to_string());
        }
    }
    None
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(Result::ok).map(|entry| entry.path())
}
