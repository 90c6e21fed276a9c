//! Makes a container as a [`Spec`] says, and ends as its first process does.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "the test sees a panic of this program as its own failure"
)]

use std::{
    env,
    ffi::CString,
    fs::{self, File},
    os::fd::AsFd,
    path::Path,
    process,
};

use culvert_tests::container::{HOST_CGROUPS, Spec, View};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl::{set_no_new_privs, set_pdeathsig},
        resource::{RLIM_INFINITY, Resource, setrlimit},
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, chdir, chroot, execv, fork, getpid, pivot_root},
};

fn main() {
    let spec = env::args().nth(1).expect("a container as JSON");
    let spec: Spec = serde_json::from_str(&spec).expect("a container");
    set_pdeathsig(Signal::SIGKILL).expect("to die with the test");
    if let Some(pid) = spec.processes_of {
        let namespace = File::open(format!("/proc/{pid}/ns/pid")).expect("a process namespace");
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWPID).expect("to enter it");
    } else {
        unshare(CloneFlags::CLONE_NEWPID).expect("a process namespace");
    }
    // SAFETY: this process has one thread.
    match unsafe { fork() }.expect("a process") {
        ForkResult::Child => {
            set_pdeathsig(Signal::SIGKILL).expect("to die with the runtime");
            contain(&spec);
            become_command(&spec.command);
        }
        ForkResult::Parent { child } => {
            // Whole or not at all.
            let draft = spec.pid_file.with_extension("new");
            fs::write(&draft, child.to_string()).expect("to write a file");
            fs::rename(draft, &spec.pid_file).expect("to write a file");
            match waitpid(child, None).expect("the end of the container") {
                WaitStatus::Exited(_, code) => process::exit(code),
                WaitStatus::Signaled(_, signal, _) => {
                    kill(getpid(), signal).expect("to end by the same signal");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn contain(spec: &Spec) {
    fs::write(&spec.cgroup, "0").expect("to enter the cgroup");
    let mut apart = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    if spec.view != View::Host {
        apart |= CloneFlags::CLONE_NEWCGROUP;
    }
    unshare(apart).expect("namespaces");
    let root = &*spec.root;
    set(Path::new("/"), MsFlags::MS_PRIVATE | MsFlags::MS_REC);
    bind(root, root);
    let fixed = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    make("proc", &root.join("proc"), MsFlags::empty());
    make("sysfs", &root.join("sys"), fixed);
    let cgroups = root.join("sys/fs/cgroup");
    make("cgroup2", &cgroups, fixed);
    if spec.view == View::Mounted {
        let place = root.join(HOST_CGROUPS.trim_start_matches('/'));
        bind(&spec.hierarchy, &place);
        set(&place, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | fixed);
    }
    for (of_host, place) in &spec.mounts {
        let place = root.join(place.trim_start_matches('/'));
        bind(of_host, &place);
        set(
            &place,
            MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
        );
    }
    if let Some(place) = &spec.writable {
        let place = root.join(place.trim_start_matches('/'));
        make("tmpfs", &place, MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
    }
    set(
        root,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
    );
    chdir(root).expect("to enter the root");
    leave_host();
    chdir("/").expect("to enter the root");
    if spec.user_namespace {
        unshare(CloneFlags::CLONE_NEWUSER).expect("a user namespace");
        fs::write("/proc/self/setgroups", "deny").expect("to map groups");
        fs::write("/proc/self/uid_map", "0 0 1").expect("to map users");
        fs::write("/proc/self/gid_map", "0 0 1").expect("to map groups");
    }
    // What engines are told by `ulimits`, for kernels that count maps; who may not needs not, on newer ones.
    _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    keep(&spec.capabilities);
    set_no_new_privs().expect("to gain nothing");
}

/// The working directory becomes the root. The first root of a machine that runs from memory cannot be exchanged, only hidden.
fn leave_host() {
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).expect("to leave the host's files"),
        Err(Errno::EINVAL) => {
            let none = None::<&str>;
            mount(Some("."), "/", none, MsFlags::MS_MOVE, none).expect("to hide the root");
            chroot(".").expect("to change the root");
        }
        Err(error) => panic!("cannot change the root: {error}"),
    }
}

/// What root has after an `exec` is what it is bound to.
fn keep(capabilities: &[u8]) {
    for number in (0..64u8).filter(|number| !capabilities.contains(number)) {
        // SAFETY: a number, which the kernel keeps; no memory of ours.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number)) };
        match Errno::result(dropped) {
            // One that this kernel does not know.
            Ok(_) | Err(Errno::EINVAL) => {}
            Err(error) => panic!("cannot give up capability {number}: {error}"),
        }
    }
}

fn become_command(command: &[String]) -> ! {
    let command: Vec<_> = command
        .iter()
        .map(|part| CString::new(part.as_str()).expect("an argument"))
        .collect();
    let program = command.first().expect("a command");
    let Err(error) = execv(program, &command);
    panic!("cannot run {program:?}: {error}");
}

fn make(kind: &str, place: &Path, flags: MsFlags) {
    mount(Some(kind), place, Some(kind), flags, None::<&str>)
        .unwrap_or_else(|error| panic!("cannot mount {kind} at {}: {error}", place.display()));
}

fn bind(of_host: &Path, place: &Path) {
    let flags = MsFlags::MS_BIND;
    mount(Some(of_host), place, None::<&str>, flags, None::<&str>)
        .unwrap_or_else(|error| panic!("cannot mount {}: {error}", of_host.display()));
}

fn set(place: &Path, flags: MsFlags) {
    mount(None::<&str>, place, None::<&str>, flags, None::<&str>)
        .unwrap_or_else(|error| panic!("cannot change {}: {error}", place.display()));
}
