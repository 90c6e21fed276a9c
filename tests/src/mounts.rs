//! A mount namespace of the test's own, so that pins and run-time files of one test's daemons are not those of another's:
//! each daemon that starts removes what dead ones have left.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::Path,
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// A mount namespace with an empty `/run` and no BPF file system of the host's.
#[derive(Debug)]
pub struct Mounts {
    file: File,
}

impl Mounts {
    /// Makes one. It stays while it is held, whatever becomes of the processes in it.
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("cannot make a mount namespace");
            // What is mounted on the host later appears here, what is mounted here stays here.
            mount_at("/", None, MsFlags::MS_SLAVE | MsFlags::MS_REC);
            mount_at("/run", Some("tmpfs"), MsFlags::empty());
            if Path::new("/sys/fs/bpf").exists() {
                mount_at("/sys/fs/bpf", Some("tmpfs"), MsFlags::empty());
            }
            File::open("/proc/thread-self/ns/mnt").expect("cannot open the namespace just made")
        })
        .join()
        .expect("the thread that makes a mount namespace");
        Self { file }
    }

    /// Mounts a BPF file system where most systems have it; without this there is none, as in many containers.
    pub fn mount_bpffs(&self) {
        self.within(|| mount_at("/sys/fs/bpf", Some("bpf"), MsFlags::empty()));
    }

    /// Has a file of the test's stand where one of the host's does.
    pub fn replace(&self, path: &str, with: &Path) {
        self.within(|| {
            mount(
                Some(with),
                path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .unwrap_or_else(|error| panic!("cannot mount {} at {path}: {error}", with.display()));
        });
    }

    /// Has programs write to places of their own where they think that they write to the machine's: what they keep in `/var/lib`, which
    /// is empty for them, and what they add to other directories, whose files they see.
    pub fn keep_apart(&self) {
        self.within(|| {
            mount_at("/var/lib", Some("tmpfs"), MsFlags::empty());
            for place in ["/etc", "/opt"] {
                // `/run` is of this namespace alone.
                let own = Path::new("/run/apart").join(place.trim_start_matches('/'));
                let [upper, work] = ["upper", "work"].map(|part| own.join(part));
                for directory in [&upper, &work] {
                    fs::create_dir_all(directory).expect("a directory");
                }
                let options = format!(
                    "lowerdir={place},upperdir={},workdir={}",
                    upper.display(),
                    work.display()
                );
                let kind = Some("overlay");
                mount(kind, place, kind, MsFlags::empty(), Some(&*options))
                    .unwrap_or_else(|error| panic!("cannot cover {place}: {error}"));
            }
        });
    }

    /// Moves the calling process into it; it must have one thread, as a child between fork and exec does.
    ///
    /// # Errors
    /// That of `setns`.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(self.file.as_fd(), CloneFlags::CLONE_NEWNS)?)
    }

    /// Runs a closure in it, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // A thread may change its mounts only once it has a working directory of its own.
                unshare(CloneFlags::CLONE_FS).expect("cannot unshare the working directory");
                self.enter().expect("cannot enter the mount namespace");
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Default for Mounts {
    fn default() -> Self {
        Self::new()
    }
}

fn mount_at(path: &str, kind: Option<&str>, flags: MsFlags) {
    mount(kind, path, kind, flags, None::<&str>)
        .unwrap_or_else(|error| panic!("cannot mount {kind:?} at {path}: {error}"));
}
