//! Making a machine of a kernel: file systems, modules, loopback; and switching it off.

use std::{
    fs,
    path::Path,
    process::{Command, exit},
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
    sys::{utsname::uname, wait::wait},
    time::{ClockId, clock_gettime},
};

use crate::{Cgroups, Plan};

/// Mounts what every program expects, has another process do the work, buries those whose parents are gone, and switches the
/// machine off when the work is done.
pub(crate) fn be_first_process(work: &mut Command) -> ! {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("bpf", "/sys/fs/bpf"),
        ("securityfs", "/sys/kernel/security"),
    ] {
        make(Path::new(place));
        mount_at(kind, place, None);
    }
    let worker = work.spawn().expect("a process that does the work");
    let worker = worker.id().cast_signed();
    loop {
        match wait() {
            Ok(ended) if ended.pid().is_some_and(|pid| pid.as_raw() == worker) => break,
            Err(Errno::ECHILD) => break,
            _ => {}
        }
    }
    // SAFETY: the call takes a number and touches no memory of ours.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    // The kernel panics when its first process ends, which ends the machine as well.
    exit(1)
}

/// Mounts control groups, loads modules and brings loopback up.
pub(crate) fn set_up(plan: &Plan) {
    mount_cgroups(plan.setting.cgroups);
    // The kernel has it and knows it, only nobody can read it: culvert cannot tell that from a kernel that was built without.
    if !plan.setting.has_types {
        mount_at("tmpfs", "/sys/kernel/btf", None);
    }
    for module in &plan.modules {
        load(module);
    }
    let up = Command::new("/bin/ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(
        up.is_ok_and(|status| status.success()),
        "loopback is not up"
    );
}

fn mount_cgroups(layout: Cgroups) {
    const PLACE: &str = "/sys/fs/cgroup";
    match layout {
        Cgroups::Pure => mount_at("cgroup2", PLACE, None),
        Cgroups::Hybrid => {
            mount_at("tmpfs", PLACE, None);
            // As systemd does it: version 1 with a hierarchy for each controller, and version 2 beside them.
            for (kind, name, controllers) in [
                ("cgroup", "net_cls,net_prio", Some("net_cls,net_prio")),
                ("cgroup", "pids", Some("pids")),
                ("cgroup2", "unified", None),
            ] {
                let place = format!("{PLACE}/{name}");
                make(Path::new(&place));
                mount_at(kind, &place, controllers);
            }
        }
        Cgroups::Private => {
            mount_at("cgroup2", PLACE, None);
            // As a container's runtime does it. Whoever is started from here on is in it.
            let container = format!("{PLACE}/container");
            make(Path::new(&container));
            fs::write(format!("{container}/cgroup.procs"), "0").expect("to enter a cgroup");
            unshare(CloneFlags::CLONE_NEWCGROUP).expect("a cgroup namespace");
            umount(PLACE).expect("to unmount cgroups");
            mount_at("cgroup2", PLACE, None);
        }
    }
}

/// What the kernel calls itself.
pub(crate) fn release() -> String {
    let name = uname().expect("the kernel's name");
    name.release().to_string_lossy().into_owned()
}

/// For how long it is up.
pub(crate) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the time");
    Duration::from(now)
}

/// What the kernel tells the time by: an emulated one can be slow to read.
pub(crate) fn clock() -> String {
    let file = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let name = fs::read_to_string(file).expect("the name of the clock");
    name.trim().to_owned()
}

fn make(place: &Path) {
    // There already, in file systems that do not let anybody make folders.
    let _exists = fs::create_dir_all(place);
}

fn mount_at(kind: &str, place: &str, options: Option<&str>) {
    mount(Some(kind), place, Some(kind), MsFlags::empty(), options)
        .unwrap_or_else(|error| panic!("cannot mount {kind} at {place}: {error}"));
}

fn load(module: &str) {
    let bytes = fs::read(format!("/modules/{module}")).expect("a module's file");
    // SAFETY: the kernel reads so many bytes, and a string that ends with 0; it keeps neither pointer.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_init_module,
            bytes.as_ptr(),
            bytes.len(),
            c"".as_ptr(),
        )
    };
    Errno::result(loaded).unwrap_or_else(|error| panic!("cannot load {module}: {error}"));
}
