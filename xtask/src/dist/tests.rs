//! Packages are installed and taken away by the real dpkg, in a copy-on-write view of this system in which every trace shows.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Output,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;

use super::*;

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.to_owned()
}

/// A program that stands for culvert where only packing is tested.
fn program(folder: &Path) -> PathBuf {
    let program = folder.join("program");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    program
}

/// Packs a program into a folder, as some version.
fn packed(folder: &Path, binary: &Path, version: &str) -> Vec<PathBuf> {
    let edition = Edition {
        release: Release {
            version: version.to_owned(),
            changes: Vec::new(),
        },
        machine: env::consts::ARCH,
        epoch: 1_767_225_600,
    };
    let bom = Bom::of(&root()).unwrap();
    let contents = Contents::collect(&root(), binary, &edition, &bom).unwrap();
    vec![
        tarball(folder, &contents, &edition, Effort::Least).unwrap(),
        debian::package(folder, &contents, &edition, &root(), Effort::Least).unwrap(),
    ]
}

#[test]
fn the_same_commit_makes_the_same_packages() {
    let folder = TempDir::new().unwrap();
    let binary = program(folder.path());
    let read = || {
        let packages = packed(folder.path(), &binary, "1.0");
        packages
            .iter()
            .map(|file| fs::read(file).unwrap())
            .collect()
    };
    let first: Vec<Vec<u8>> = read();
    assert!(first == read(), "they differ");
    let mut left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let machine = debian_machine(env::consts::ARCH).unwrap();
    let tarball = format!("culvert-1.0-{}-linux.tar.gz", env::consts::ARCH);
    assert_eq!(
        left,
        [
            tarball,
            format!("culvert_1.0_{machine}.deb"),
            "program".to_owned()
        ]
    );
}

#[test]
fn what_is_in_the_binary_is_listed_with_its_licences() {
    let bom = Bom::of(&root()).unwrap();
    let names = bom.names();
    // Of user space, of the kernel's programs, of neither, and not at all.
    for name in ["tokio", "rustls", "aya", "aya-ebpf", "glibc", "rust-std"] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
    for name in [
        "proxy-userspace",
        "criterion",
        "vt100",
        "clap_mangen",
        "cpio",
    ] {
        assert!(!names.contains(&name), "{name}");
    }
    let document: serde_json::Value = serde_json::from_str(&bom.cyclonedx("1.0").unwrap()).unwrap();
    let components = document["components"].as_array().unwrap();
    assert_eq!(components.len(), names.len());
    let mut known: Vec<_> = components
        .iter()
        .map(|one| one["purl"].as_str().unwrap())
        .collect();
    for one in components
        .iter()
        .filter(|one| one["purl"].as_str().unwrap().starts_with("pkg:cargo"))
    {
        assert_eq!(
            one["hashes"][0]["content"].as_str().unwrap().len(),
            64,
            "{one}"
        );
        assert!(
            !one["licenses"][0]["expression"]
                .as_str()
                .unwrap()
                .contains('/'),
            "{one}"
        );
    }
    known.extend([
        "pkg:cargo/proxy-userspace@0.1.0",
        "pkg:cargo/proxy-ebpf@0.1.0",
        "pkg:cargo/proxy-common@0.1.0",
    ]);
    for edge in document["dependencies"].as_array().unwrap() {
        let uses = edge["dependsOn"].as_array().unwrap();
        for used in uses.iter().chain([&edge["ref"]]) {
            assert!(
                known.contains(&used.as_str().unwrap()),
                "{used} is no component"
            );
        }
    }
    let licences = bom.licences().unwrap();
    assert!(
        licences.contains("Copyright (c) Tokio Contributors") && licences.contains("ring 0."),
        "{licences:.2000}"
    );
}

#[test]
fn every_command_has_a_page_and_is_completed() {
    let pages = pages::manual("1.0").unwrap();
    let names: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
    for name in [
        "culvert.8",
        "culvert-run.8",
        "culvert-explain.8",
        "culvert-top.8",
    ] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
    let text = |name: &str| {
        let (_, page) = pages.iter().find(|(page, _)| page == name).unwrap();
        String::from_utf8(page.clone()).unwrap()
    };
    assert!(text("culvert-run.8").contains("/etc/culvert/culvert.toml"));
    // What culvert calls itself with is nobody else's business.
    assert!(names.iter().all(|name| !name.contains("__")) && !text("culvert.8").contains("reap"));
    for shell in [
        clap_complete::Shell::Bash,
        clap_complete::Shell::Fish,
        clap_complete::Shell::Zsh,
    ] {
        let (name, script) = pages::completions(shell);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("upstreams"), "{name}");
    }
}

/// This system, with files of its own in which every change is, and a network of its own.
struct System {
    folder: TempDir,
}

impl System {
    /// For the thread that calls it, and the programs it starts.
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("to be root");
        let none = None::<&str>;
        let private = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        mount(none, "/", none, private, none).unwrap();
        mount(
            Some("tmpfs"),
            folder.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        let system = Self { folder };
        for name in ["upper", "work", "root"] {
            fs::create_dir(system.folder.path().join(name)).unwrap();
        }
        let layer = |name: &str| system.folder.path().join(name).display().to_string();
        let layers = format!(
            "lowerdir=/,upperdir={},workdir={}",
            layer("upper"),
            layer("work")
        );
        mount(
            Some("overlay"),
            &*layer("root"),
            Some("overlay"),
            MsFlags::empty(),
            Some(&*layers),
        )
        .unwrap();
        for name in ["proc", "dev"] {
            let there = system.at(name);
            mount(
                Some(&*format!("/{name}")),
                &there,
                none,
                MsFlags::MS_BIND,
                none,
            )
            .unwrap();
        }
        mount(
            Some("tmpfs"),
            &system.at("run"),
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        system
    }

    /// A place in it.
    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join("root").join(path)
    }

    fn attempt(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("chroot");
        command.arg(self.at("")).arg(program).args(arguments);
        command.output().unwrap()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.attempt(program, arguments);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        said
    }

    fn dpkg(&self, arguments: &[&str]) -> String {
        self.run("dpkg", &[&["--no-triggers"], arguments].concat())
    }

    /// What is other than in this system, dpkg's own notes aside.
    fn traces(&self) -> Vec<String> {
        let upper = self.folder.path().join("upper");
        let mut found = Vec::new();
        let mut open = vec![upper.clone()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let place = Path::new("/").join(path.strip_prefix(&upper).unwrap());
                let is_folder = fs::symlink_metadata(&path).unwrap().is_dir();
                let is_noted = [
                    "/var/lib/dpkg",
                    "/var/log/dpkg.log",
                    "/var/log/alternatives.log",
                ];
                if is_noted.iter().any(|noted| place.starts_with(noted)) {
                    continue;
                }
                if !is_folder || !place.exists() {
                    found.push(place.display().to_string());
                }
                if is_folder {
                    open.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

/// In a thread of its own, which keeps its namespaces.
fn with_system(work: impl FnOnce(&System) + Send) {
    thread::scope(|scope| {
        let worked = scope.spawn(|| {
            let system = System::new();
            work(&system);
        });
        worked.join().unwrap();
    });
}

/// The binary under test, where there is one.
fn culvert(folder: &Path) -> PathBuf {
    env::var_os(crate::test::BINARY).map_or_else(|| program(folder), PathBuf::from)
}

#[test]
fn a_package_comes_is_upgraded_and_goes_without_a_trace() {
    let folder = TempDir::new().unwrap();
    let binary = culvert(folder.path());
    let [_, old] = &*packed(folder.path(), &binary, "1.0~unreleased") else {
        panic!()
    };
    let [_, new] = &*packed(folder.path(), &binary, "1.0") else {
        panic!()
    };
    with_system(|system| {
        let install = |package: &Path| {
            let there = system.at("run/culvert.deb");
            fs::copy(package, there).unwrap();
            system.dpkg(&["--install", "/run/culvert.deb"])
        };
        assert_eq!(system.traces(), [""; 0], "it was installed before");
        install(old);
        assert!(system.run("dpkg", &["--verify", "culvert"]).is_empty());
        if env::var_os(crate::test::BINARY).is_some() {
            assert!(
                system
                    .run("culvert", &["--version"])
                    .starts_with("culvert ")
            );
            let said = system.run("culvert", &["check", "/etc/culvert/culvert.toml"]);
            assert!(said.contains("there is no rule"), "{said}");
            let example = "/usr/share/doc/culvert/examples/culvert.toml";
            assert!(system.at(example.trim_start_matches('/')).exists());
        }
        let enabled = "etc/systemd/system/multi-user.target.wants/culvert.service";
        assert!(
            fs::symlink_metadata(system.at(enabled)).is_err(),
            "nobody has enabled it"
        );
        let config = system.at("etc/culvert/culvert.toml");
        let mode =
            |path: &str| fs::metadata(system.at(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            [mode("etc/culvert"), mode("etc/culvert/culvert.toml")],
            [0o750, 0o600]
        );
        let owner = fs::metadata(&config).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (0, 0));

        // What an administrator does with it.
        let own = "[daemon]\nworkers = 3\n";
        fs::write(&config, own).unwrap();
        let secret = system.at("etc/culvert/corp.password");
        fs::write(&secret, "secret\n").unwrap();
        fs::create_dir_all(system.at("var/log/culvert")).unwrap();
        fs::write(system.at("var/log/culvert/access.json"), "{}\n").unwrap();
        fs::create_dir_all(system.at(enabled).parent().unwrap()).unwrap();
        symlink(
            "/usr/lib/systemd/system/culvert.service",
            system.at(enabled),
        )
        .unwrap();

        install(new);
        assert_eq!(fs::read_to_string(&config).unwrap(), own);
        let version = system.run(
            "dpkg-query",
            &["--show", "--showformat=${Version}", "culvert"],
        );
        assert_eq!(version, "1.0");

        system.dpkg(&["--remove", "culvert"]);
        assert!(!system.at("usr/bin/culvert").exists());
        assert_eq!(fs::read_to_string(&config).unwrap(), own);

        system.dpkg(&["--purge", "culvert"]);
        assert_eq!(
            system.traces(),
            ["/etc/culvert", "/etc/culvert/corp.password"]
        );
        fs::remove_dir_all(system.at("etc/culvert")).unwrap();
        assert_eq!(system.traces(), [""; 0]);
    });
}

#[test]
fn without_secrets_a_purge_leaves_no_folder() {
    let folder = TempDir::new().unwrap();
    let [_, package] = &*packed(folder.path(), &program(folder.path()), "1.0") else {
        panic!()
    };
    with_system(|system| {
        fs::copy(package, system.at("run/culvert.deb")).unwrap();
        system.dpkg(&["--install", "/run/culvert.deb"]);
        assert!(!system.traces().is_empty());
        system.dpkg(&["--purge", "culvert"]);
        assert_eq!(system.traces(), [""; 0]);
    });
}

#[test]
fn systemd_finds_no_fault_with_the_unit_and_little_exposure() {
    // Of ten; what is left is what culvert is for, and that it runs as root, who owns /sys/fs/bpf.
    const EXPOSURE: &str = "40";
    let folder = TempDir::new().unwrap();
    let [_, package] = &*packed(folder.path(), &program(folder.path()), "1.0") else {
        panic!()
    };
    with_system(|system| {
        fs::copy(package, system.at("run/culvert.deb")).unwrap();
        system.dpkg(&["--install", "/run/culvert.deb"]);
        let unit = "/usr/lib/systemd/system/culvert.service";
        let said = system.run("systemd-analyze", &["verify", "--man=no", unit]);
        assert!(!said.contains("culvert"), "{said}");
        let said = system.run(
            "systemd-analyze",
            &[
                "security",
                "--offline=yes",
                "--no-pager",
                &format!("--threshold={EXPOSURE}"),
                unit,
            ],
        );
        assert!(said.contains("Overall exposure level"), "{said}");
        // It can fail.
        let more = "etc/systemd/system/culvert.service.d/more.conf";
        fs::create_dir_all(system.at(more).parent().unwrap()).unwrap();
        fs::copy(
            root().join("xtask/packaging/takeover.conf"),
            system.at(more),
        )
        .unwrap();
        let said = system.run("systemd-analyze", &["verify", "--man=no", unit]);
        assert!(!said.contains("culvert"), "{said}");
        fs::write(
            system.at(more),
            "[Service]\nExecStart=/usr/bin/nothing\nNoSuchKey=1\n",
        )
        .unwrap();
        let said = system.attempt("systemd-analyze", &["verify", "--man=no", unit]);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("NoSuchKey"), "{said}");
    });
}

/// A cgroup below which everything is killed in the end.
struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields[2] == "cgroup2")
            .expect("cgroup v2");
        let name = format!("culvert-boot-{}", std::process::id());
        let path = Path::new(mount[1]).join(name);
        fs::create_dir(&path).unwrap();
        Self { path }
    }

    fn remove(folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                Self::remove(&entry.path());
            }
        }
        // What is killed takes a moment to be gone.
        for _ in 0..100 {
            if fs::remove_dir(folder).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        eprintln!("{} is left", folder.display());
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        fs::write(self.path.join("cgroup.kill"), "1").unwrap();
        Self::remove(&self.path);
    }
}

#[test]
fn the_service_works_under_systemd_with_all_that_the_unit_forbids() {
    const SYSTEMD: &str = "/lib/systemd/systemd";
    // A test that is skipped looks as if it had passed.
    let binary = env::var_os(crate::test::BINARY)
        .expect("a binary to be installed: run this by `sudo cargo xtask test`");
    assert!(Path::new(SYSTEMD).exists(), "apt-get install systemd");
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let packages = packed(folder.path(), Path::new(&binary), "1.0");
    fs::rename(&packages[1], at("package.deb")).unwrap();
    fs::create_dir(at("view")).unwrap();
    fs::write(at("probe.sh"), include_str!("tests/probe.sh")).unwrap();
    fs::write(at("boot.sh"), include_str!("tests/boot.sh")).unwrap();

    let cgroup = Cgroup::new();
    let enter = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child sh {} {}",
        cgroup.path.display(),
        at("boot.sh").display(),
        folder.path().display()
    );
    let log = fs::File::create(at("boot")).unwrap();
    let mut systemd = Command::new("sh")
        .args(["-c", &enter])
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_mins(4);
    while !at("done").exists() && Instant::now() < deadline {
        if systemd.try_wait().unwrap().is_some() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    drop(cgroup);
    systemd.wait().unwrap();
    let read = |name: &str| fs::read_to_string(at(name)).unwrap_or_default();
    let said = read("said");
    assert!(
        said.ends_with("passed\n"),
        "{}\n{said}\n{}",
        read("boot"),
        read("log")
    );
}
