//! Docker itself.

use std::net::IpAddr;

use super::{
    image::{IMAGE, WAIT, files},
    place::{Place, await_file, volumes},
};
use crate::{App, Sandbox, process::Running};

/// Docker's daemon, whose socket is where it always is.
#[derive(Debug)]
pub struct Docker<'a> {
    // First: what runs at a place ends before that is looked over.
    _daemon: Running,
    place: Place<'a>,
}

impl<'a> Docker<'a> {
    /// Starts one that knows one image, and no container yet.
    pub fn start(sandbox: &'a Sandbox) -> Self {
        let place = Place::new(sandbox);
        let mut command = place.command("dockerd");
        command
            .args(["--cgroup-parent", &place.parent()])
            // That of systemd takes no path.
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            // Published ports are the kernel's business alone.
            .args(["--userland-proxy=false", "--log-level", "warn"]);
        let daemon = place.start(&mut command);
        await_file(sandbox, super::engine::DOCKER);
        let layer = files(sandbox.directory()).display().to_string();
        place.run("docker", ["import", &*layer, IMAGE]);
        Self {
            _daemon: daemon,
            place,
        }
    }

    /// Runs a container that waits, with a network of its own on the bridge, and returns its id.
    pub fn run(&self, name: &str, more: &[&str]) -> String {
        let volumes = volumes();
        let arguments = ["run", "--detach", "--name", name].into_iter();
        let arguments = arguments.chain(volumes.iter().map(String::as_str));
        let arguments = arguments.chain(more.iter().copied());
        self.place
            .run("docker", arguments.chain([IMAGE]).chain(WAIT))
    }

    /// Starts it again, with another process and another network.
    pub fn restart(&self, name: &str) {
        self.place.run("docker", ["restart", "--time", "0", name]);
    }

    /// Ends it, and forgets it.
    pub fn remove(&self, name: &str) {
        self.place.run("docker", ["rm", "--force", name]);
    }

    /// Its address on the bridge.
    pub fn address(&self, name: &str) -> IpAddr {
        let format = "{{.NetworkSettings.IPAddress}}";
        let shown = self
            .place
            .run("docker", ["inspect", "--format", format, name]);
        shown.parse().expect("an address")
    }

    /// An app in a container.
    pub fn app(&self, name: &str) -> App {
        let mut command = self.place.command("docker");
        command.args(["exec", "--interactive", name]);
        Place::app(command)
    }
}
