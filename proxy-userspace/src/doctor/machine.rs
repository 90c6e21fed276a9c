//! What can be seen of the kernel and its set-up without privileges.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream},
    path::Path,
    time::Duration,
};

use nix::sys::{resource::RLIM_INFINITY, utsname::uname};

use super::check::Check;
use crate::{
    cgroup::{Cgroup2, CgroupError},
    privileges, proxy, socket,
};

/// The kernel, and what of it has to be mounted or switched on.
pub(super) fn kernel(cgroups: &Result<Cgroup2, CgroupError>) -> Vec<Check> {
    vec![
        version(),
        cgroup2(cgroups),
        type_information(Path::new("/sys/kernel/btf/vmlinux")),
        netns_cookie(),
        loopback(),
        ipv6(),
        switch(
            "io_uring",
            "/proc/sys/kernel/io_uring_disabled",
            |value| match value {
                "0" => "on; its connects are intercepted like all others",
                "1" => "on for privileged processes; its connects are intercepted like all others",
                _ => "off",
            },
        ),
        switch(
            "mptcp",
            "/proc/sys/net/mptcp/enabled",
            |value| match value {
                "1" => "on; intercepted connections fall back to TCP",
                _ => "off",
            },
        ),
    ]
}

/// Bounds of the system that are bounds of the daemon.
pub(super) fn limits() -> Vec<Check> {
    vec![open_files(), locked_memory(), backlog()]
}

fn version() -> Check {
    match uname() {
        Ok(name) => Check::ok(
            "kernel",
            format!(
                "{} {} {}",
                name.sysname().display(),
                name.release().display(),
                name.machine().display()
            ),
        ),
        Err(error) => Check::unchecked("kernel", error.to_string()),
    }
}

fn cgroup2(cgroups: &Result<Cgroup2, CgroupError>) -> Check {
    let cgroups = match cgroups {
        Ok(cgroups) => cgroups,
        Err(CgroupError::NotMounted) => {
            return Check::missing("cgroup2", "not mounted")
                .advice("as root: mkdir -p /mnt/cgroup2 && mount -t cgroup2 cgroup2 /mnt/cgroup2");
        }
        Err(error) => return Check::missing("cgroup2", error.to_string()),
    };
    let mount = cgroups.mount().display();
    if !cgroups.is_whole() {
        return Check::warning(
            "cgroup2",
            format!(
                "{mount} shows a part of the hierarchy only (a cgroup namespace, or a bind mount)"
            ),
        )
        .advice("to intercept beyond this container, start it with its host's cgroup namespace");
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let beside = if table.lines().any(|line| line.contains(" - cgroup ")) {
        ", beside version 1"
    } else {
        ""
    };
    Check::ok("cgroup2", format!("{mount}, the whole hierarchy{beside}"))
}

fn type_information(path: &Path) -> Check {
    let shown = path.display();
    match fs::File::open(path) {
        Ok(_) => Check::ok("btf", shown.to_string()),
        Err(error) => Check::warning("btf", format!("cannot read {shown}: {error}")).advice(
            "rules with `exe` or `pid` need a kernel built with CONFIG_DEBUG_INFO_BTF; select by `cgroup` or `uid` \
             instead. With `path = \"rewrite\"` refusals of endpoints are not seen: give such groups checks",
        ),
    }
}

fn netns_cookie() -> Check {
    let listener = socket::listener((Ipv4Addr::LOCALHOST, 0).into(), 1);
    match listener.and_then(|listener| socket::netns_cookie(&listener)) {
        Ok(cookie) => Check::ok(
            "netns_cookie",
            format!("{cookie} is this network namespace"),
        ),
        // `program_netns` says whether that works.
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Check::ok(
            "netns_cookie",
            "sockets do not tell their network namespace before kernel 5.14: a program does",
        ),
        Err(error) => Check::missing("netns_cookie", format!("no SO_NETNS_COOKIE: {error}")),
    }
}

fn loopback() -> Check {
    match reached(Ipv4Addr::LOCALHOST) {
        Ok(()) => Check::ok("loopback", "a listener on 127.0.0.1 is reached"),
        Err(error) => Check::missing(
            "loopback",
            format!("a listener on 127.0.0.1 is not reached: {error}"),
        )
        .advice("the relay listens there; as root: ip link set lo up"),
    }
}

fn ipv6() -> Check {
    match reached(Ipv6Addr::LOCALHOST) {
        Ok(()) => Check::ok("ipv6", "a listener on [::1] is reached"),
        Err(error) => Check::warning(
            "ipv6",
            format!("a listener on [::1] is not reached: {error}"),
        )
        .advice(
            "IPv6 connections get their rules' `on_relay_failure`; as root: sysctl net.ipv6.conf.lo.disable_ipv6=0",
        ),
    }
}

/// Listens on an address and connects to it.
fn reached(address: impl Into<IpAddr>) -> io::Result<()> {
    let listener = socket::listener((address.into(), 0).into(), 1)?;
    TcpStream::connect_timeout(&listener.local_addr()?, TIMEOUT).map(drop)
}

/// Far longer than a connect on this host takes.
const TIMEOUT: Duration = Duration::from_secs(1);

fn switch(id: &str, file: &str, meaning: impl Fn(&str) -> &'static str) -> Check {
    match fs::read_to_string(file) {
        Ok(value) => Check::ok(id, meaning(value.trim())),
        Err(_) => Check::ok(id, format!("this kernel has no {file}")),
    }
}

/// Connections that a daemon takes unless told otherwise (`max_connections`).
const USUAL_CONNECTIONS: usize = 65536;

fn open_files() -> Check {
    let Some((soft, hard)) = privileges::open_files() else {
        return Check::unchecked("open_files", "the limit cannot be read");
    };
    let connections = privileges::connections_of(hard);
    let found = format!("{soft}, at most {hard}: {connections} connections at a time");
    if connections >= USUAL_CONNECTIONS {
        return Check::ok("open_files", found);
    }
    Check::warning("open_files", found)
        .advice("for more, raise the hard limit: LimitNOFILE= in a unit, ulimit -Hn in a shell")
}

fn locked_memory() -> Check {
    match privileges::lift_locked_memory() {
        None => Check::ok("locked_memory", "this kernel counts no eBPF maps"),
        Some(RLIM_INFINITY) => Check::ok("locked_memory", "unlimited"),
        Some(bytes) => Check::warning(
            "locked_memory",
            format!("{} KiB, and this kernel counts eBPF maps", bytes >> 10),
        )
        .advice(privileges::MORE_LOCKED_MEMORY),
    }
}

fn backlog() -> Check {
    const FILE: &str = "/proc/sys/net/core/somaxconn";
    let most = fs::read_to_string(FILE).ok();
    let Some(most) = most.and_then(|text| text.trim().parse::<i32>().ok()) else {
        return Check::unchecked("somaxconn", format!("cannot read {FILE}"));
    };
    let wanted = proxy::BACKLOG;
    let found = format!("{most} connections may wait for each listener");
    if most >= wanted {
        return Check::ok("somaxconn", found);
    }
    Check::warning("somaxconn", found).advice(format!(
        "larger bursts are slow to connect; as root: sysctl net.core.somaxconn={wanted}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Status;

    #[test]
    fn without_cgroup2_it_is_missing_with_the_command_that_mounts_it() {
        let check = cgroup2(&Err(CgroupError::NotMounted));
        assert_eq!(check.status, Status::Missing);
        assert!(check.advice.unwrap().contains("mount -t cgroup2"));
    }

    #[test]
    fn a_kernel_without_type_information_can_still_proxy() {
        let check = type_information(Path::new("/nonexistent/btf"));
        assert_eq!(check.status, Status::Warning);
    }

    #[test]
    fn a_switch_that_a_kernel_does_not_have_is_no_problem() {
        let check = switch("x", "/nonexistent/switch", |_| "on");
        assert_eq!(check.status, Status::Ok);
    }
}
