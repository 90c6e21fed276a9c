//! containerd itself, with its side for Kubernetes.

use std::{fs, path::PathBuf};

use super::{
    cri::{
        ContainerConfig, ContainerMetadata, CreateContainer, Id, Image, ImageKnown, ImageStatus,
        LinuxPod, Mount, Nothing, PodConfig, PodMetadata, RunPod, call,
    },
    image::{IMAGE, saved},
    place::{Place, await_file, shown},
};
use crate::{App, Sandbox, eventually, process::Running};

/// Where it is asked.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// The network of pods: a bridge, and addresses behind it.
const NETWORK: &str = r#"{
  "cniVersion": "0.4.0", "name": "pods",
  "plugins": [{
    "type": "bridge", "bridge": "cni0", "isGateway": true,
    "ipam": { "type": "host-local", "subnet": "10.88.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }] }
  }]
}"#;

/// containerd, whose socket is where it always is.
#[derive(Debug)]
pub struct Containerd<'a> {
    // First: what runs at a place ends before that is looked over.
    daemon: Running,
    place: Place<'a>,
}

impl<'a> Containerd<'a> {
    /// Starts one that knows one image, and no pod yet.
    pub fn start(sandbox: &'a Sandbox) -> Self {
        let place = Place::new(sandbox);
        let file = |name: &str| sandbox.directory().join(name);
        let networks = file("net.d");
        fs::create_dir(&networks).expect("a directory");
        fs::write(networks.join("pods.conflist"), NETWORK).expect("a file");
        let config = file("containerd.toml");
        let text = format!(
            r#"
            version = 2
            [plugins."io.containerd.grpc.v1.cri"]
            sandbox_image = "{IMAGE}"
            # Lower than the test's own a score may not be where root has not all capabilities.
            restrict_oom_score_adj = true
            disable_apparmor = true
            [plugins."io.containerd.grpc.v1.cri".cni]
            bin_dir = "/usr/lib/cni"
            conf_dir = "{}"
            "#,
            networks.display()
        );
        fs::write(&config, text).expect("a file");
        let mut command = place.command("containerd");
        command
            .args(["--log-level", "warn", "--config"])
            .arg(config);
        let daemon = place.start(&mut command);
        await_file(sandbox, SOCKET);
        let image = saved(sandbox.directory()).display().to_string();
        place.run(
            "ctr",
            ["--namespace", "k8s.io", "images", "import", &*image],
        );
        let containerd = Self { daemon, place };
        containerd.await_image();
        containerd
    }

    /// Its side for Kubernetes hears of an image a moment later.
    fn await_image(&self) {
        let question = ImageStatus {
            image: Some(Image {
                image: IMAGE.to_owned(),
            }),
        };
        eventually("an image", || {
            let known = call(&self.socket(), "ImageService/ImageStatus", &question);
            let known: ImageKnown = known.unwrap_or_else(|error| panic!("{error}"));
            known.image.map(drop)
        });
    }

    fn socket(&self) -> PathBuf {
        format!("/proc/{}/root{SOCKET}", self.daemon.pid()).into()
    }

    fn tell(&self, method: &str, id: &str) {
        let id = Id { id: id.to_owned() };
        let method = format!("RuntimeService/{method}");
        let done: Result<Nothing, _> = call(&self.socket(), &method, &id);
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Makes a pod with a network of its own.
    pub fn pod(&self, namespace: &str, name: &str) -> Pod<'_, 'a> {
        let uid = super::id();
        let config = PodConfig {
            metadata: Some(PodMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: namespace.to_owned(),
            }),
            linux: Some(LinuxPod {
                cgroup_parent: self.place.parent(),
            }),
        };
        let question = RunPod {
            config: Some(config.clone()),
        };
        let made: Id = call(&self.socket(), "RuntimeService/RunPodSandbox", &question)
            .unwrap_or_else(|error| panic!("{error}"));
        Pod {
            runtime: self,
            config,
            id: made.id,
        }
    }
}

/// A pod, removed with its containers when dropped.
#[derive(Debug)]
pub struct Pod<'b, 'a> {
    runtime: &'b Containerd<'a>,
    config: PodConfig,
    id: String,
}

impl Pod<'_, '_> {
    /// Runs a container that waits, and returns its id. After another of its name it is the next attempt.
    pub fn run(&self, name: &str, attempt: u32) -> String {
        let mounts = shown().into_iter().map(|(of_host, place)| Mount {
            container_path: place.to_owned(),
            host_path: of_host.display().to_string(),
            readonly: true,
        });
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt,
            }),
            image: Some(Image {
                image: IMAGE.to_owned(),
            }),
            mounts: mounts.collect(),
            linux: Some(Nothing {}),
        };
        let question = CreateContainer {
            pod: self.id.clone(),
            config: Some(config),
            pod_config: Some(self.config.clone()),
        };
        let made: Id = call(
            &self.runtime.socket(),
            "RuntimeService/CreateContainer",
            &question,
        )
        .unwrap_or_else(|error| panic!("{error}"));
        self.runtime.tell("StartContainer", &made.id);
        made.id
    }

    /// Ends a container, and leaves the runtime knowing it.
    pub fn stop(&self, id: &str) {
        self.runtime.tell("StopContainer", id);
    }

    /// An app in a container.
    pub fn app(&self, id: &str) -> App {
        let mut command = self.runtime.place.command("ctr");
        command
            .args(["--namespace", "k8s.io", "tasks", "exec"])
            .args(["--exec-id", &super::id(), id]);
        Place::app(command)
    }
}

impl Drop for Pod<'_, '_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.runtime.tell("StopPodSandbox", &self.id);
            self.runtime.tell("RemovePodSandbox", &self.id);
        }
    }
}
