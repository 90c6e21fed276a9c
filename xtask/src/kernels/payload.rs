//! What runs in a guest: `culvert`, the test programs, and the few programs of this machine that they start.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    archive::Kernel,
    folder::Folder,
    guests::{self, Guest, Test},
    initramfs::Initramfs,
    modules,
};
use crate::{command, progress, workspace::Workspace};

/// The first process of a guest, all tests, and what these start.
const INIT: &str = "culvert-guest";
const TESTS: &str = "kernels";
const APP: &str = "culvert-test-app";
const RUNTIME: &str = "culvert-test-runtime";

/// Accounts that tests name.
const ACCOUNTS: [(&str, &str); 3] = [
    (
        "/etc/passwd",
        "root:x:0:0::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
    ),
    ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n"),
];

/// What all guests have.
pub(super) struct Payload {
    initramfs: Vec<u8>,
}

impl Payload {
    /// Builds the test programs and packs everything.
    pub(super) fn build(workspace: &Workspace, culvert: &Path) -> Result<Self> {
        progress::step("building the tests (from scratch usually two to four minutes)");
        let built = test_programs(workspace)?;
        let folder = Folder::make()?;
        let mut initramfs = Initramfs::default();
        for place in ["/dev", "/proc", "/sys", "/tmp", "/run"] {
            initramfs.folder(place)?;
        }
        let mut add = |path: &str, program: &Path| -> Result<()> {
            initramfs.copy(path, &stripped(program, &folder)?)
        };
        add("/bin/culvert", culvert)?;
        for (name, program) in &built {
            let path = match &**name {
                INIT => "/init".to_owned(),
                name => format!("/tests/{name}"),
            };
            add(&path, program)?;
        }
        let mut libraries = BTreeSet::new();
        for name in guests::PROGRAMS {
            let program =
                command::find(name).with_context(|| format!("there is no {name} in PATH"))?;
            initramfs.copy(&format!("/bin/{name}"), &program)?;
            libraries.extend(libraries_of(&program)?);
        }
        for library in libraries {
            initramfs.copy(&library, Path::new(&library))?;
        }
        for (path, text) in ACCOUNTS {
            initramfs.program(path, text.as_bytes())?;
        }
        Ok(Self {
            initramfs: initramfs.finish()?,
        })
    }

    /// The file that a guest boots with: what all have, its kernel's modules, and what it is to do.
    pub(super) fn for_guest(
        &self,
        guest: &Guest,
        kernel: &Kernel,
        tests: &[&Test],
    ) -> Result<Vec<u8>> {
        let mut own = Initramfs::default();
        let modules = modules::with_dependencies(kernel, &guests::modules(&kernel.release))?;
        for module in &modules {
            own.program(&format!("/modules/{}", module.name), &module.bytes)?;
        }
        let tests = tests.iter().filter(|test| test.runs_on(&kernel.release));
        let plan = json!({
            "modules": modules.iter().map(|module| &module.name).collect::<Vec<_>>(),
            "setting": guest.setting(),
            "tests": tests.map(|test| test.name).collect::<Vec<_>>(),
        });
        own.program("/plan.json", plan.to_string().as_bytes())?;
        Ok([&*self.initramfs, &own.finish()?].concat())
    }
}

/// The programs of `culvert-tests` that guests run, by name.
fn test_programs(workspace: &Workspace) -> Result<Vec<(String, PathBuf)>> {
    const EXPECTED: [&str; 4] = [INIT, TESTS, APP, RUNTIME];
    let mut cargo = command::cargo(&workspace.root);
    cargo
        .args(["test", "--no-run", "--package", "culvert-tests"])
        .args(["--test", TESTS])
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped());
    let mut child = cargo.spawn().with_context(|| command::line(&cargo))?;
    let messages = child
        .stdout
        .take()
        .context("cargo has no standard output")?;
    let mut built = Vec::new();
    for message in BufReader::new(messages).lines() {
        built.extend(executable(&message.context("output of cargo test")?));
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} ({status})", command::line(&cargo));
    }
    built.retain(|(name, _)| EXPECTED.contains(&&**name));
    if built.len() != EXPECTED.len() {
        let names: Vec<_> = built.iter().map(|(name, _)| &**name).collect();
        bail!(
            "cargo test reports of {} only {}",
            EXPECTED.join(", "),
            names.join(", ")
        );
    }
    Ok(built)
}

/// The program that one of Cargo's JSON messages reports: the name of its target, and its path.
fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let name = message.pointer("/target/name")?.as_str()?;
    Some((name.to_owned(), message.get("executable")?.as_str()?.into()))
}

/// A copy without what is for debuggers, which is most of it.
fn stripped(program: &Path, folder: &Folder) -> Result<PathBuf> {
    let copy = folder.file(
        &program
            .file_name()
            .context("a program without a name")?
            .to_string_lossy(),
    );
    command::read(Command::new("strip").arg("-o").args([&copy, program]))?;
    Ok(copy)
}

/// The shared libraries of a program, its loader included.
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let listed = command::read(Command::new("ldd").arg(program))?;
    let words = listed.split_ascii_whitespace();
    Ok(words
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect())
}
