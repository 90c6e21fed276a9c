//! Kernel modules that a guest loads, with those that they need, uncompressed.

use std::{
    fs,
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::archive::Kernel;

/// A module as `finit_module` takes it.
pub(super) struct Module {
    /// Its file name.
    pub(super) name: String,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// These modules of a kernel in an order in which they can be loaded. What is built in is left out.
pub(super) fn with_dependencies(kernel: &Kernel, names: &[&str]) -> Result<Vec<Module>> {
    // Not in every package; then all that is asked for must be a file.
    let built_in = fs::read_to_string(kernel.modules.join("modules.builtin")).unwrap_or_default();
    let mut found = Found {
        files: files(&kernel.modules.join("kernel"))?,
        built_in: built_in.lines().map(module_name).collect(),
        modules: Vec::new(),
    };
    for name in names {
        found
            .add(name)
            .with_context(|| format!("module {name} of kernel {}", kernel.release))?;
    }
    Ok(found.modules)
}

struct Found {
    files: Vec<PathBuf>,
    built_in: Vec<String>,
    modules: Vec<Module>,
}

impl Found {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = name.replace('-', "_");
        let file_name = format!("{name}.ko");
        if self.built_in.contains(&name) || self.modules.iter().any(|have| have.name == file_name) {
            return Ok(());
        }
        let is_it = |file: &&PathBuf| module_name(&file.to_string_lossy()) == name;
        let Some(file) = self.files.iter().find(is_it) else {
            bail!("there is neither a file {file_name} nor is it built in");
        };
        let bytes = read(file).with_context(|| file.display().to_string())?;
        for needed in dependencies(&bytes) {
            self.add(&needed)?;
        }
        self.modules.push(Module {
            name: file_name,
            bytes,
        });
        Ok(())
    }
}

/// `kernel/net/sched/cls_bpf.ko.xz` is `cls_bpf`; where a file name has a dash the kernel has an underscore.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split_once(".ko").map_or(file, |(name, _)| name);
    name.replace('-', "_")
}

/// Every file below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.append(&mut files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file)?;
    if file.extension().is_none_or(|extension| extension != "xz") {
        return Ok(bytes);
    }
    let mut module = Vec::new();
    lzma_rs::xz_decompress(&mut BufReader::new(&*bytes), &mut module)
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    Ok(module)
}

/// What a module says it needs, in its section `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else {
        return Vec::new();
    };
    let value = module.get(start + KEY.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=nfnetlink,libcrc32c\0name=nf_tables\0";
        assert_eq!(dependencies(module), ["nfnetlink", "libcrc32c"]);
        assert_eq!(
            dependencies(b"\0depends=\0name=veth\0"),
            Vec::<String>::new()
        );
        assert_eq!(dependencies(b"nothing"), Vec::<String>::new());
    }

    #[test]
    fn a_file_is_told_by_the_name_of_its_module() {
        assert_eq!(
            module_name("kernel/net/netfilter/nft_numgen.ko.xz"),
            "nft_numgen"
        );
        assert_eq!(
            module_name("kernel/crypto/crc32c-generic.ko"),
            "crc32c_generic"
        );
    }
}
