//! Which file an executable is, in the kernel's own terms.
//!
//! A rule names a path, the hook compares device and inode of the running program. Those are not what `stat`
//! shows everywhere: btrfs and overlayfs answer with numbers of their own, while a program in the kernel reads
//! `inode->i_sb->s_dev` and `inode->i_ino`. `/proc/self/fdinfo` shows the latter of an open file (`ino:`, Linux
//! 5.14) together with its mount, and the mount table shows the former of that mount.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

/// A file as the kernel tells it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExeId {
    /// `s_dev` of the file system: the major number above 20 bits of minor number.
    pub dev: u64,
    /// `i_ino` in that file system.
    pub ino: u64,
}

/// The identity of the file that executing `path` would run; symbolic links are followed.
///
/// For a script that is the script, whose interpreter is what runs.
///
/// # Errors
/// That of opening the path, or [`io::ErrorKind::InvalidInput`] when it is no regular file.
pub fn exe_identity(path: &Path) -> io::Result<ExeId> {
    // O_PATH needs no right to read the file and does not stop anybody from writing it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let shown = Shown::of(&file)?;
    let dev = shown.mount.and_then(device_of_mount);
    Ok(ExeId {
        // A mount outside our mount namespace is not in the table.
        dev: dev.unwrap_or_else(|| kernel_dev(libc::major(meta.dev()), libc::minor(meta.dev()))),
        ino: shown.ino.unwrap_or_else(|| meta.ino()),
    })
}

/// What `/proc/self/fdinfo` shows of an open file.
#[derive(Debug, Default, PartialEq)]
struct Shown {
    mount: Option<u32>,
    ino: Option<u64>,
}

impl Shown {
    fn of(file: &File) -> io::Result<Self> {
        let table = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        Ok(Self::parse(&table))
    }

    fn parse(table: &str) -> Self {
        let field = |name: &str| {
            let line = table.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        Self {
            mount: field("mnt_id:").and_then(|id| id.try_into().ok()),
            ino: field("ino:"),
        }
    }
}

fn device_of_mount(id: u32) -> Option<u64> {
    device_in(&fs::read("/proc/self/mountinfo").ok()?, id)
}

/// Third column of the mount's line: `major:minor` of the superblock, not of `stat`.
fn device_in(table: &[u8], id: u32) -> Option<u64> {
    table.split(|byte| *byte == b'\n').find_map(|line| {
        let mut columns = line.split(|byte| *byte == b' ').map(str::from_utf8);
        let mut column = || columns.next()?.ok();
        if column()?.parse() != Ok(id) {
            return None;
        }
        let (major, minor) = column().and(column())?.split_once(':')?;
        Some(kernel_dev(major.parse().ok()?, minor.parse().ok()?))
    })
}

/// `MKDEV` of `include/linux/kdev_t.h`.
fn kernel_dev(major: u32, minor: u32) -> u64 {
    (u64::from(major) << 20) | u64::from(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_the_one_of_the_mount_in_kernel_encoding() {
        let table =
            b"29 1 0:26 / /\xff rw - tmpfs x rw\n41 31 254:17 / / rw,relatime - ext4 /dev/vda rw\n";
        assert_eq!(device_in(table, 41), Some(0x0fe0_0011));
        assert_eq!(device_in(table, 29), Some(26));
        assert_eq!(device_in(table, 4), None);
    }

    #[test]
    fn an_old_kernel_shows_no_inode() {
        let old = Shown::parse("pos:\t0\nflags:\t012000000\nmnt_id:\t29\n");
        assert_eq!((old.mount, old.ino), (Some(29), None));
        let new = Shown::parse("pos:\t0\nmnt_id:\t29\nino:\t247857\n");
        assert_eq!(new.ino, Some(247_857));
    }

    #[test]
    fn it_is_what_the_kernel_shows_of_the_running_program() {
        let path = std::env::current_exe().unwrap();
        let id = exe_identity(&path).unwrap();
        assert_eq!(exe_identity(Path::new("/proc/self/exe")).unwrap(), id);
        // From the memory map of this very process: "start-end perms offset major:minor inode path".
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps
            .lines()
            .find(|line| line.ends_with(path.to_str().unwrap()))
            .unwrap();
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let (major, minor) = columns[3].split_once(':').unwrap();
        let hex = |text| u32::from_str_radix(text, 16).unwrap();
        assert_eq!(id.dev, kernel_dev(hex(major), hex(minor)));
        assert_eq!(id.ino, columns[4].parse::<u64>().unwrap());
    }

    #[test]
    fn a_renamed_copy_over_it_is_another_file_and_a_link_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (exe, new) = (dir.path().join("exe"), dir.path().join("new"));
        fs::write(&exe, "1").unwrap();
        fs::write(&new, "2").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&exe, &link).unwrap();
        let before = exe_identity(&exe).unwrap();
        assert_eq!(exe_identity(&link).unwrap(), before);
        fs::rename(&new, &exe).unwrap();
        assert_ne!(exe_identity(&exe).unwrap(), before);
    }

    #[test]
    fn directories_and_missing_files_have_none() {
        let missing = exe_identity(Path::new("/nonexistent/exe")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let directory = exe_identity(Path::new("/")).unwrap_err();
        assert_eq!(directory.kind(), io::ErrorKind::InvalidInput);
    }
}
