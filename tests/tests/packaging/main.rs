//! What is shipped for containers: read strictly, so that a key that nobody knows fails here rather than being ignored there, and then
//! started as it says, by hand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod schemas;

use std::{collections::BTreeMap, fs, process::Command};

use culvert_tests::{
    Sandbox,
    app::{Result, Route},
    container::{CONFIG, Container, HOST_CGROUPS, Pod, View, capabilities, capability},
    eventually,
    kernel::{refusal, take_off},
    peer::Server,
    process::{attempt, culvert_binary},
    sandbox::SERVER_V4,
};
use nix::sys::signal::Signal;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

const RELAYED: Result<Route> = Ok(Route::Relayed);
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../xtask/packaging/container/");

fn read(file: &str) -> String {
    fs::read_to_string(format!("{FOLDER}{file}")).expect(file)
}

/// The documents of a manifest, by kind.
fn documents(file: &str) -> BTreeMap<String, Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(&read(file)).expect(file);
    let kind = |document: &Value| document["kind"].as_str().expect("a kind").to_owned();
    documents.into_iter().map(|it| (kind(&it), it)).collect()
}

fn strictly<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value:#}"))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodSpec {
    automount_service_account_token: bool,
    #[serde(default)]
    host_network: bool,
    #[serde(default, rename = "hostPID")]
    host_pid: bool,
    #[serde(default)]
    init_containers: Vec<Contained>,
    containers: Vec<Contained>,
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "that they can be read is what is tested")]
struct Contained {
    name: String,
    image: String,
    #[serde(default)]
    args: Vec<String>,
    restart_policy: Option<String>,
    startup_probe: Option<Probe>,
    readiness_probe: Option<Probe>,
    security_context: SecurityContext,
    resources: Option<Resources>,
    #[serde(default)]
    volume_mounts: Vec<VolumeMount>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "that they can be read is what is tested")]
struct Probe {
    exec: Exec,
    period_seconds: u32,
    timeout_seconds: Option<u32>,
    failure_threshold: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exec {
    command: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SecurityContext {
    run_as_user: Option<u32>,
    #[serde(default)]
    read_only_root_filesystem: bool,
    allow_privilege_escalation: bool,
    capabilities: Capabilities,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Capabilities {
    drop: Vec<String>,
    #[serde(default)]
    add: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that they can be read is what is tested")]
struct Resources {
    requests: BTreeMap<String, String>,
    limits: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeMount {
    name: String,
    mount_path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Volume {
    name: String,
    config_map: Option<BTreeMap<String, String>>,
    host_path: Option<HostPath>,
    empty_dir: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that they can be read is what is tested")]
struct HostPath {
    path: String,
    r#type: String,
}

/// The number of a capability as engines call it.
fn number(name: &str) -> u8 {
    match name {
        "BPF" => capability::BPF,
        "NET_ADMIN" => capability::NET_ADMIN,
        "PERFMON" => capability::PERFMON,
        "SYS_ADMIN" => capability::SYS_ADMIN,
        other => panic!("a capability that no README names: {other}"),
    }
}

/// Makes a container as a manifest says.
fn apply(container: &mut Container<'_>, spec: &PodSpec, culvert: &Contained) {
    let context = &culvert.security_context;
    assert!(context.read_only_root_filesystem && !context.allow_privilege_escalation);
    assert_eq!(context.run_as_user, Some(0));
    assert_eq!(context.capabilities.drop, ["ALL"]);
    let added = context.capabilities.add.iter();
    container.spec.capabilities = added.map(|name| number(name)).collect();
    container.spec.command = vec!["/program".to_owned()];
    container.spec.command.extend_from_slice(&culvert.args);
    container.spec.writable = None;
    container.spec.view = View::Own;
    for mount in &culvert.volume_mounts {
        let mut volumes = spec.volumes.iter();
        let volume = volumes.find(|volume| volume.name == mount.name);
        let volume = volume.expect("a volume of this name");
        if let Some(host) = volume.host_path.as_ref().filter(|_| mount.read_only) {
            assert_eq!(
                (&*host.path, &*mount.mount_path),
                ("/sys/fs/cgroup", HOST_CGROUPS)
            );
            container.spec.view = View::Mounted;
        } else if volume.empty_dir.is_some() {
            container.spec.writable = Some(mount.mount_path.clone());
        } else if volume.config_map.is_some() {
            assert_eq!(format!("{}/culvert.toml", mount.mount_path), CONFIG);
        }
    }
}

/// Whether a probe succeeds, which is run in the network of the pod.
fn succeeds(sandbox: &Sandbox, probe: &[String]) -> bool {
    let (program, arguments) = probe.split_first().unwrap();
    assert_eq!(program, "/culvert");
    attempt(sandbox.outsider(culvert_binary()).args(arguments))
        .status
        .success()
}

fn await_probe(sandbox: &Sandbox, probe: &[String]) {
    eventually("a probe that succeeds", || {
        succeeds(sandbox, probe).then_some(())
    });
}

#[test]
fn the_manifest_of_a_sidecar() {
    let manifest = documents("kubernetes-sidecar.yaml");
    assert_eq!(manifest.keys().collect::<Vec<_>>(), ["ConfigMap", "Pod"]);
    assert_eq!(manifest["Pod"]["apiVersion"], "v1");
    let spec: PodSpec = strictly(&manifest["Pod"]["spec"]);
    assert!(!spec.automount_service_account_token && !spec.host_network && !spec.host_pid);
    let culvert = &spec.init_containers[0];
    assert_eq!(culvert.restart_policy.as_deref(), Some("Always"));
    // Nothing of the host can be written to.
    let of_host = spec.volumes.iter().filter(|it| it.host_path.is_some());
    for volume in of_host {
        let mut mounts = culvert.volume_mounts.iter();
        let mount = mounts.find(|mount| mount.name == volume.name).unwrap();
        assert!(mount.read_only, "{}", mount.mount_path);
    }
    let probe = &culvert.startup_probe.as_ref().unwrap().exec.command;
    let rules = manifest["ConfigMap"]["data"]["culvert.toml"]
        .as_str()
        .unwrap();

    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let pod = Pod::new(&sandbox);
    let mut container = pod.sidecar("culvert", rules);
    apply(&mut container, &spec, culvert);
    assert!(!succeeds(&sandbox, probe));
    let sidecar = container.start();
    await_probe(&sandbox, probe);
    assert_eq!(capabilities(sidecar.pid()), capability::SIDECAR);
    let app = pod.app("app");
    let app = app.start_app();
    assert_eq!(app.probe(mirror.address()), RELAYED);
    sidecar.end_by(Signal::SIGKILL);
    assert_eq!(app.probe(mirror.address()), Err(refusal()));
}

#[test]
fn the_manifest_of_a_daemon_set() {
    let manifest = documents("kubernetes-daemonset.yaml");
    let set = &manifest["DaemonSet"];
    assert_eq!(set["apiVersion"], "apps/v1");
    let template = &set["spec"]["template"];
    assert_eq!(
        set["spec"]["selector"]["matchLabels"],
        template["metadata"]["labels"]
    );
    let spec: PodSpec = strictly(&template["spec"]);
    assert!(!spec.automount_service_account_token && spec.host_network && spec.host_pid);
    let culvert = &spec.containers[0];
    let rules = manifest["ConfigMap"]["data"]["culvert.toml"]
        .as_str()
        .unwrap();

    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 8000)));
    let pod = Pod::new(&sandbox);
    // A test must not attach to the root.
    let own = format!("[daemon]\ncgroup = \"{}\"\n", sandbox.cgroup().name());
    let mut container = pod.sidecar("culvert", &rules.replacen("[daemon]\n", &own, 1));
    apply(&mut container, &spec, culvert);
    let sidecar = container.start();
    sidecar.await_ready();
    let app = pod.app("app");
    assert_eq!(app.start_app().probe(mirror.address()), RELAYED);
    // The probe is run in the container, whose program has another name here.
    let probe = &culvert.readiness_probe.as_ref().unwrap().exec.command;
    assert_eq!(probe[0], "/culvert");
    let asks = || {
        let mut ask = Command::new("nsenter");
        ask.args(["--mount", "--net", "--root", "--target"]);
        ask.arg(sidecar.pid().to_string()).arg("/program");
        attempt(ask.args(&probe[1..]))
    };
    assert!(asks().status.success(), "{:?}", asks());
    take_off(sidecar.pid(), "reverse");
    assert_eq!(asks().status.code(), Some(1), "{:?}", asks());
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Compose {
    services: BTreeMap<String, Service>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    image: String,
    #[serde(default)]
    command: Vec<String>,
    restart: Option<String>,
    network_mode: Option<String>,
    cgroup_parent: Option<String>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    cap_drop: Vec<String>,
    #[serde(default)]
    cap_add: Vec<String>,
    #[serde(default)]
    security_opt: Vec<String>,
    #[serde(default)]
    tmpfs: Vec<String>,
    #[serde(default)]
    volumes: Vec<String>,
    healthcheck: Option<HealthCheck>,
    #[serde(default)]
    depends_on: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that they can be read is what is tested")]
struct HealthCheck {
    test: Vec<String>,
    interval: String,
    timeout: String,
    retries: u32,
}

#[test]
fn the_compose_file() {
    let compose: Compose = serde_saphyr::from_str(&read("compose.yaml")).unwrap();
    let [app, culvert, network] = ["app", "culvert", "network"].map(|it| &compose.services[it]);
    assert!(!network.image.is_empty() && network.restart.is_some());
    for service in [app, culvert] {
        assert_eq!(service.network_mode.as_deref(), Some("service:network"));
        assert_eq!(service.cgroup_parent.as_deref(), Some("culvertapp.slice"));
    }
    assert_eq!(app.depends_on["culvert"]["condition"], "service_healthy");
    assert!(culvert.read_only && culvert.cap_drop == ["ALL"]);
    assert_eq!(culvert.security_opt, ["no-new-privileges:true"]);
    let mounts = culvert
        .volumes
        .iter()
        .map(|volume| volume.split(':').collect());
    let mounts: Vec<Vec<_>> = mounts.collect();
    assert_eq!(mounts[0], ["./culvert.toml", CONFIG, "ro"]);
    assert_eq!(mounts[1], ["/sys/fs/cgroup", HOST_CGROUPS, "ro"]);
    let (cmd, probe) = culvert
        .healthcheck
        .as_ref()
        .unwrap()
        .test
        .split_first()
        .unwrap();
    assert_eq!(cmd, "CMD");

    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let pod = Pod::new(&sandbox);
    let rules = read("culvert.toml").replace("culvertapp.slice", pod.cgroup());
    let mut container = pod.sidecar("culvert", &rules);
    container.spec.capabilities = culvert.cap_add.iter().map(|name| number(name)).collect();
    container.spec.command = vec!["/program".to_owned()];
    container.spec.command.extend_from_slice(&culvert.command);
    container.spec.writable = culvert.tmpfs.first().cloned();
    let _sidecar = container.start();
    await_probe(&sandbox, probe);
    let app = pod.app("app");
    assert_eq!(app.start_app().probe(mirror.address()), RELAYED);
}

/// The image has what the manifests expect.
#[test]
fn the_recipe_of_the_image() {
    let recipe = read("Containerfile");
    let lines: Vec<_> = recipe
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    assert_eq!(
        lines[..3],
        [
            "FROM scratch",
            "COPY culvert /culvert",
            "ENTRYPOINT [\"/culvert\"]"
        ]
    );
    let command: Vec<String> =
        serde_json::from_str(lines[3].strip_prefix("CMD ").unwrap()).unwrap();
    assert_eq!(command, ["sidecar", "--config", CONFIG]);
    let (_, check) = lines[4].split_once(" CMD ").unwrap();
    let check: Vec<String> = serde_json::from_str(check).unwrap();
    assert_eq!(check[..2], ["/culvert", "ready"]);
    assert_eq!(lines.len(), 5);
}
