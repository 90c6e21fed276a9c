//! Files stay short enough to be read in one sitting.

use std::path::Path;

use anyhow::{Result, bail};

use super::source::Source;
use crate::progress;

/// Folder and the number of lines, tests left out, at which a file fails.
const LIMITS: [(&str, usize); 5] = [
    ("proxy-common/src", 600),
    ("proxy-ebpf/src", 300),
    ("proxy-userspace/src", 600),
    ("tests", 600),
    ("xtask/src", 600),
];
/// From here on a file should be split when there is a reason.
const LONG: usize = 400;

/// Counts the lines of every file.
pub(super) fn check(root: &Path) -> Result<()> {
    let mut too_long = Vec::new();
    for (folder, limit) in LIMITS {
        for source in Source::below(&root.join(folder))? {
            let lines = if folder != "tests" && source.is_tests() {
                continue;
            } else {
                source.product().count()
            };
            let file = format!("{folder}/{}: {lines} lines", source.path.display());
            if lines > limit {
                too_long.push(format!("{file}, the limit is {limit}"));
            } else if lines > LONG {
                progress::step(&format!("{file}: getting long"));
            }
        }
    }
    if !too_long.is_empty() {
        bail!("{}", too_long.join("\n"));
    }
    Ok(())
}
