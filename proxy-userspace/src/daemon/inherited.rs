//! Files that whoever started this process had open, and that it has no use for.

use std::{
    fs,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
};

/// Those that were open at the start, but for standard input, output and error.
pub(super) struct Inherited(Vec<(RawFd, File)>);

/// Which file it is: device and inode number.
type File = (u64, u64);

impl Inherited {
    /// To be called before this process opens anything that it keeps. Nobody hands it sockets: it opens its own.
    pub(super) fn find() -> Self {
        let listed = fs::read_dir("/proc/self/fd").into_iter().flatten();
        let numbers = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        // The directory itself is closed before it is looked which of them are open.
        let numbers: Vec<RawFd> = numbers.filter(|number| *number > 2).collect();
        let open = numbers.into_iter();
        Self(
            open.filter_map(|number| Some((number, file(number)?)))
                .collect(),
        )
    }

    /// Closes them.
    pub(super) fn close(self) {
        for (number, before) in self.0 {
            if file(number) == Some(before) {
                // SAFETY: it was open before anything here had a descriptor, and still is the same file, so that the number is
                // nobody's here.
                drop(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
}

fn file(number: RawFd) -> Option<File> {
    let metadata = fs::metadata(format!("/proc/self/fd/{number}")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
