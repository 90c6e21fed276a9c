//! The files of a package, and where each stands: in a Debian system, and in a tarball that is unpacked somewhere.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap_complete::Shell;

use super::{Edition, bom::Bom, changelog, pages};

/// What is packed.
pub(super) struct Contents {
    items: Vec<Item>,
}

/// One file.
pub(super) struct Item {
    content: Content,
    mode: u32,
    debian: Option<PathBuf>,
    tarball: Option<PathBuf>,
}

enum Content {
    Text(Vec<u8>),
    Copy(PathBuf),
}

impl Item {
    /// Where it stands in a Debian system, from its root.
    pub(super) fn in_debian(&self) -> Option<&Path> {
        self.debian.as_deref()
    }

    /// Where it stands in a tarball.
    pub(super) fn in_tarball(&self) -> Option<&Path> {
        self.tarball.as_deref()
    }

    fn new(content: Content) -> Self {
        Self {
            content,
            mode: 0o644,
            debian: None,
            tarball: None,
        }
    }

    fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    fn debian(self, place: impl AsRef<Path>) -> Self {
        let debian = Some(place.as_ref().to_owned());
        Self { debian, ..self }
    }

    fn tarball(self, place: impl AsRef<Path>) -> Self {
        let tarball = Some(place.as_ref().to_owned());
        Self { tarball, ..self }
    }

    fn write(&self, place: &Path) -> Result<()> {
        let named = || place.display().to_string();
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).with_context(named)?;
        }
        match &self.content {
            Content::Text(text) => fs::write(place, text).with_context(named)?,
            Content::Copy(from) => {
                fs::copy(from, place)
                    .with_context(|| format!("{} to {}", from.display(), named()))?;
            }
        }
        fs::set_permissions(place, Permissions::from_mode(self.mode)).with_context(named)
    }
}

/// Documentation in a Debian system.
const DOC: &str = "usr/share/doc/culvert";

impl Contents {
    /// Makes what is not there as a file, and finds the rest.
    pub(super) fn collect(
        root: &Path,
        binary: &Path,
        edition: &Edition,
        bom: &Bom,
    ) -> Result<Self> {
        let packaging = root.join("xtask/packaging");
        let copy = |file: &str| Item::new(Content::Copy(root.join(file)));
        let packed = |file: &str| Item::new(Content::Copy(packaging.join(file)));
        let made = |text: String| Item::new(Content::Text(text.into_bytes()));
        let version = &*edition.release.version;
        let mut items = vec![
            Item::new(Content::Copy(binary.to_owned()))
                .mode(0o755)
                .debian("usr/bin/culvert")
                .tarball("culvert"),
            packed("culvert.service")
                .debian("usr/lib/systemd/system/culvert.service")
                .tarball("systemd/culvert.service"),
            packed("takeover.conf")
                .debian(format!("{DOC}/examples/takeover.conf"))
                .tarball("systemd/takeover.conf"),
            packed("grafana.json")
                .debian(format!("{DOC}/examples/grafana.json"))
                .tarball("grafana.json"),
            // It may get a password one day.
            packed("culvert.toml")
                .mode(0o600)
                .debian(super::debian::CONFIGURATION),
            copy("proxy-userspace/examples/culvert.toml")
                .debian(format!("{DOC}/examples/culvert.toml"))
                .tarball("culvert.toml"),
            copy("README.md")
                .debian(format!("{DOC}/README.md"))
                .tarball("README.md"),
            copy(changelog::FILE)
                .debian(format!("{DOC}/changelog"))
                .tarball("CHANGELOG.md"),
            copy("LICENSE-MIT")
                .debian(format!("{DOC}/LICENSE-MIT"))
                .tarball("LICENSE-MIT"),
            copy("LICENSE-APACHE")
                .debian(format!("{DOC}/LICENSE-APACHE"))
                .tarball("LICENSE-APACHE"),
            made(bom.licences()?)
                .debian(format!("{DOC}/copyright"))
                .tarball("LICENSES.txt"),
            made(bom.cyclonedx(version)?)
                .debian(format!("{DOC}/sbom.cdx.json"))
                .tarball("sbom.cdx.json"),
        ];
        for (shell, debian) in [
            (Shell::Bash, "usr/share/bash-completion/completions"),
            (Shell::Fish, "usr/share/fish/vendor_completions.d"),
            (Shell::Zsh, "usr/share/zsh/vendor-completions"),
        ] {
            let (name, script) = pages::completions(shell);
            items.push(
                Item::new(Content::Text(script))
                    .debian(Path::new(debian).join(&name))
                    .tarball(format!("completions/{shell}/{name}")),
            );
        }
        for (name, page) in pages::manual(version)? {
            let place = pages::place(&name);
            items.push(
                Item::new(Content::Text(page))
                    .debian(Path::new("usr/share/man").join(&place))
                    .tarball(Path::new("man").join(&place)),
            );
        }
        Ok(Self { items })
    }

    /// Writes everything that has a place there below a folder.
    pub(super) fn lay_out(
        &self,
        folder: &Path,
        place: impl Fn(&Item) -> Option<&Path>,
    ) -> Result<()> {
        for item in &self.items {
            if let Some(place) = place(item) {
                item.write(&folder.join(place))?;
            }
        }
        Ok(())
    }
}
