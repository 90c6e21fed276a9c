//! Networks of containers.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use crate::{
    App, Sandbox,
    cgroup::Cgroup,
    netns::Netns,
    process::app_binary,
    sandbox::{SERVER_V4, command_at},
};

/// An id as a runtime makes them: no other container of the machine has it, nor its first digits.
pub fn id() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    format!("{number:04x}{:08x}{}", std::process::id(), "5a".repeat(26))
}

/// The network of a container, by a link of its own to the host; everything is reached through that.
pub fn network(sandbox: &Sandbox, number: u8) -> Arc<Netns> {
    let netns = Arc::new(Netns::new());
    let host = format!("10.9.{number}.1");
    sandbox.netns().link(
        &format!("box{number}"),
        &format!("{host}/24"),
        &netns,
        &format!("{}/24", inside(number)),
    );
    netns.ip(&format!("route add default via {host}"));
    netns
}

/// An app in a network that belongs to other users, as a user namespace has it, in the cgroup of a container. That has to stay as long.
pub fn app_of_other_users(sandbox: &Sandbox, id: &str) -> (Arc<Cgroup>, App) {
    let cgroup = Arc::new(sandbox.cgroup().child(&format!("docker-{id}.scope")));
    let mut command = command_at(&Arc::new(Netns::new()), &cgroup, "unshare");
    command.args(["--user", "--map-root-user", "--net", "sh", "-c"]);
    command.arg(format!(
        "ip link set lo up; ip addr add {SERVER_V4}/32 dev lo; exec {}",
        app_binary().display()
    ));
    let app = App::start(&mut command);
    (cgroup, app)
}

/// The address of the container in there.
pub fn inside(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 9, number, 2).into()
}
