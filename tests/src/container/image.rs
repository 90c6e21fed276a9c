//! An image with one program that can wait.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::process::run;

/// What it is called.
pub(super) const IMAGE: &str = "culvert.test/box:1";
/// What runs in a container that is to do nothing.
pub(super) const WAIT: [&str; 3] = ["/bin/busybox", "sleep", "100000"];

/// Makes its file system below a directory, as an archive.
pub(super) fn files(directory: &Path) -> PathBuf {
    let root = directory.join("box");
    for place in ["bin", "usr/lib"] {
        fs::create_dir_all(root.join(place)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .unwrap_or_else(|error| panic!("cannot copy busybox (Debian's busybox-static): {error}"));
    symlink("busybox", root.join("bin/sh")).expect("a link");
    let archive = directory.join("layer.tar");
    let [root, written] = [&root, &archive].map(|path| path.display().to_string());
    run("tar", &["-C", &root, "-cf", &written, "."]);
    archive
}

/// Makes it below a directory, in the form that `docker save` has.
pub(super) fn saved(directory: &Path) -> PathBuf {
    let layer = files(directory).display().to_string();
    let sum = run("sha256sum", &[&layer]);
    let sum = sum.split(' ').next().expect("a sum");
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": WAIT },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
        "history": [{ "created_by": "tests" }],
    });
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [IMAGE],
        "Layers": ["layer.tar"],
    }]);
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(directory.join(name), content.to_string()).expect("a file");
    }
    let archive = directory.join("image.tar");
    let [directory, written] = [directory, &archive].map(|path| path.display().to_string());
    let parts = ["config.json", "manifest.json", "layer.tar"];
    run(
        "tar",
        &[&["-C", &*directory, "-cf", &*written], &parts[..]].concat(),
    );
    archive
}
