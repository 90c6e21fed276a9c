//! What is in the binary besides culvert: every crate, its licence, and the licence's words, as Cargo has them on this machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::command;

/// The crates whose dependencies end up in the binary.
const ROOTS: [&str; 2] = ["proxy-userspace", "proxy-ebpf"];
/// How files with a licence in them begin.
const LICENCES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];

/// Everything that the binary is made of.
pub(super) struct Bom {
    parts: Vec<Part>,
    /// Of `parts`, by their purls: what each uses.
    uses: BTreeMap<String, BTreeSet<String>>,
}

/// A crate, or a library that is linked.
struct Part {
    name: String,
    version: String,
    purl: String,
    licence: String,
    source: Option<String>,
    sha256: Option<String>,
    /// Where its licence is found.
    folder: Option<PathBuf>,
}

impl Bom {
    /// Asks Cargo, which has fetched everything when culvert was built.
    pub(super) fn of(root: &Path) -> Result<Self> {
        let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        let metadata = command::read(command::cargo(root).args([
            "metadata",
            "--offline",
            "--locked",
            "--format-version=1",
            "--filter-platform",
            &target,
        ]))?;
        let metadata: Value =
            serde_json::from_str(&metadata).context("output of cargo metadata")?;
        let lock = root.join("Cargo.lock");
        let lock = fs::read_to_string(&lock).with_context(|| lock.display().to_string())?;
        let mut bom = Self::read(&metadata, &checksums(&lock)?)?;
        bom.parts.extend(linked(root)?);
        Ok(bom)
    }

    fn read(metadata: &Value, checksums: &BTreeMap<(String, String), String>) -> Result<Self> {
        let packages: BTreeMap<&str, &Value> = list(metadata, "/packages")
            .filter_map(|package| Some((text(package, "id")?, package)))
            .collect();
        let nodes: BTreeMap<&str, &Value> = list(metadata, "/resolve/nodes")
            .filter_map(|node| Some((text(node, "id")?, node)))
            .collect();
        let name = |id: &str| packages.get(id).and_then(|package| text(package, "name"));
        let mut open: Vec<&str> = nodes
            .keys()
            .copied()
            .filter(|id| name(id).is_some_and(|name| ROOTS.contains(&name)))
            .collect();
        if open.len() != ROOTS.len() {
            bail!("cargo metadata does not know all of {}", ROOTS.join(", "));
        }
        let mut reached: BTreeSet<&str> = open.iter().copied().collect();
        let mut bom = Self {
            parts: Vec::new(),
            uses: BTreeMap::new(),
        };
        while let Some(id) = open.pop() {
            let package = packages.get(id).with_context(|| id.to_owned())?;
            let uses: Vec<&str> = nodes.get(id).map(|node| used(node)).unwrap_or_default();
            let purls = uses.iter().filter_map(|id| purl(packages.get(id)?));
            if let Some(purl) = purl(package) {
                bom.uses.insert(purl, purls.collect());
            }
            open.extend(uses.into_iter().filter(|used| reached.insert(used)));
            // Our own crates are what this is the list of.
            if text(package, "source").is_some() {
                bom.parts.push(Part::read(package, checksums)?);
            }
        }
        bom.parts.sort_by(|one, other| one.purl.cmp(&other.purl));
        Ok(bom)
    }

    /// As a document of `CycloneDX`.
    pub(super) fn cyclonedx(&self, version: &str) -> Result<String> {
        let components: Vec<_> = self.parts.iter().map(Part::component).collect();
        let uses = self.uses.iter().map(
            |(purl, uses)| json!({ "ref": purl, "dependsOn": uses.iter().collect::<Vec<_>>() }),
        );
        let document = json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": {
                "type": "application",
                "bom-ref": "culvert",
                "name": "culvert",
                "version": version,
                "licenses": [{ "expression": "MIT OR Apache-2.0" }],
            } },
            "components": components,
            "dependencies": uses.collect::<Vec<_>>(),
        });
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }

    /// A list of all parts, and the words of their licences, each once.
    pub(super) fn licences(&self) -> Result<String> {
        const HEADING: &str = "culvert is licensed under MIT or Apache-2.0, its eBPF programs under MIT or GPL-2.0. It contains what is listed here.\n";
        let line = "-".repeat(78);
        let mut said = vec![HEADING.to_owned()];
        let mut words: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for part in &self.parts {
            let name = format!("{} {}", part.name, part.version);
            said.push(format!("{name}: {}", part.licence));
            for text in part.licence_texts()? {
                words.entry(text).or_default().push(name.clone());
            }
        }
        for (text, parts) in words {
            said.push(format!("\n{line}\n{}\n{line}\n\n{text}", parts.join(", ")));
        }
        Ok(said.join("\n"))
    }

    /// Their names.
    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<&str> {
        self.parts.iter().map(|part| part.name.as_str()).collect()
    }
}

impl Part {
    fn read(package: &Value, checksums: &BTreeMap<(String, String), String>) -> Result<Self> {
        let say = |key| text(package, key).map(str::to_owned);
        let name = say("name").context("a package without a name")?;
        let version = say("version").with_context(|| name.clone())?;
        let licence = say("license")
            .with_context(|| format!("{name} {version} does not say its licence"))?
            // As it was written before SPDX expressions.
            .replace('/', " OR ");
        let manifest = say("manifest_path").map(PathBuf::from);
        Ok(Self {
            purl: purl(package).with_context(|| name.clone())?,
            licence,
            source: say("repository"),
            sha256: checksums.get(&(name.clone(), version.clone())).cloned(),
            folder: manifest.and_then(|manifest| manifest.parent().map(Path::to_owned)),
            name,
            version,
        })
    }

    fn component(&self) -> Value {
        let hashes = self
            .sha256
            .iter()
            .map(|sum| json!({ "alg": "SHA-256", "content": sum }));
        let sources = self
            .source
            .iter()
            .map(|url| json!({ "type": "vcs", "url": url }));
        json!({
            "type": "library",
            "bom-ref": self.purl,
            "name": self.name,
            "version": self.version,
            "purl": self.purl,
            "licenses": [{ "expression": self.licence }],
            "hashes": hashes.collect::<Vec<_>>(),
            "externalReferences": sources.collect::<Vec<_>>(),
        })
    }

    /// What the files say that come with it.
    fn licence_texts(&self) -> Result<BTreeSet<String>> {
        let Some(folder) = &self.folder else {
            return Ok(BTreeSet::new());
        };
        let mut texts = BTreeSet::new();
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let file = entry?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let name = name.to_uppercase();
            let is_licence = LICENCES.iter().any(|known| name.starts_with(known));
            if is_licence && file.is_file() {
                let text = fs::read(&file).with_context(|| file.display().to_string())?;
                let text = String::from_utf8_lossy(&text);
                // Copies of a licence differ in the spaces at the ends of lines.
                let lines: Vec<_> = text.trim().lines().map(str::trim_end).collect();
                texts.insert(lines.join("\n") + "\n");
            }
        }
        Ok(texts)
    }
}

/// What is linked besides crates: Rust's own library, and the C library, since the binary is static.
fn linked(root: &Path) -> Result<Vec<Part>> {
    // Both are of one tool chain, and have its version.
    let cargo = command::read(command::cargo(root).arg("--version"))?;
    let part = |name: &str, version: &str, licence: &str| Part {
        purl: format!("pkg:generic/{name}@{version}"),
        name: name.to_owned(),
        version: version.to_owned(),
        licence: licence.to_owned(),
        source: None,
        sha256: None,
        folder: None,
    };
    let rust = cargo.split(' ').nth(1).context("output of cargo")?;
    let mut parts = vec![part("rust-std", rust, "MIT OR Apache-2.0")];
    let libc = command::read(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    if let Some((name, version)) = libc.trim().split_once(' ') {
        parts.push(part(name, version, "LGPL-2.1-or-later"));
    }
    Ok(parts)
}

/// The SHA-256 of each crate by name and version.
fn checksums(lock: &str) -> Result<BTreeMap<(String, String), String>> {
    let lock: toml::Table = toml::from_str(lock).context("Cargo.lock")?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let sums = packages.into_iter().flatten().filter_map(|package| {
        let say = |key| Some(package.get(key)?.as_str()?.to_owned());
        Some(((say("name")?, say("version")?), say("checksum")?))
    });
    Ok(sums.collect())
}

/// What a node of the graph uses when it runs, or while it is compiled by a macro.
fn used(node: &Value) -> Vec<&str> {
    let is_normal = |dependency: &&Value| {
        list(dependency, "/dep_kinds").any(|kind| kind.get("kind").is_some_and(Value::is_null))
    };
    list(node, "/deps")
        .filter(is_normal)
        .filter_map(|dependency| text(dependency, "pkg"))
        .collect()
}

fn purl(package: &Value) -> Option<String> {
    let (name, version) = (text(package, "name")?, text(package, "version")?);
    Some(format!("pkg:cargo/{name}@{version}"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}
