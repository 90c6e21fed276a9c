//! Podman itself.

use std::{fs, path::PathBuf};

use super::{
    image::{IMAGE, WAIT, files},
    place::{Place, await_file, volumes},
};
use crate::{
    App, Sandbox,
    process::{Running, output},
};

/// As many processes and files as any machine allows, and what does without systemd.
const SETTINGS: &str = r#"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
"#;

/// Podman, with what answers at its socket.
#[derive(Debug)]
pub struct Podman<'a> {
    // First: what runs at a place ends before that is looked over.
    _service: Running,
    settings: PathBuf,
    place: Place<'a>,
}

impl<'a> Podman<'a> {
    /// Starts one that knows one image, and no container yet.
    pub fn start(sandbox: &'a Sandbox) -> Self {
        let place = Place::new(sandbox);
        let settings = sandbox.directory().join("containers.conf");
        fs::write(&settings, SETTINGS).expect("a file");
        let mut command = place.command("podman");
        command
            .env("CONTAINERS_CONF", &settings)
            .args(["system", "service", "--time=0"]);
        let service = place.start(&mut command);
        await_file(sandbox, super::engine::PODMAN);
        let podman = Self {
            _service: service,
            settings,
            place,
        };
        let layer = files(sandbox.directory()).display().to_string();
        podman.tell(&["import", &*layer, IMAGE]);
        podman
    }

    fn tell(&self, arguments: &[&str]) -> String {
        let mut command = self.place.command("podman");
        command
            .env("CONTAINERS_CONF", &self.settings)
            .args(arguments);
        output(&mut command).trim_end().to_owned()
    }

    /// Runs a container that waits, with a network of its own on the bridge, and returns its id.
    pub fn run(&self, name: &str) -> String {
        let parent = self.place.parent();
        let volumes = volumes();
        let mut arguments = vec!["run", "--detach", "--name", name];
        arguments.extend(["--cgroup-parent", &*parent]);
        arguments.extend(volumes.iter().map(String::as_str));
        arguments.push(IMAGE);
        arguments.extend(WAIT);
        self.tell(&arguments)
    }

    /// Starts it again, with another process and another network.
    pub fn restart(&self, name: &str) {
        self.tell(&["restart", "--time", "0", name]);
    }

    /// Ends it, and forgets it.
    pub fn remove(&self, name: &str) {
        self.tell(&["rm", "--force", "--time", "0", name]);
    }

    /// An app in a container.
    pub fn app(&self, name: &str) -> App {
        let mut command = self.place.command("podman");
        command
            .env("CONTAINERS_CONF", &self.settings)
            .args(["exec", "--interactive", name]);
        Place::app(command)
    }
}
