//! Kernels from Debian's archive: the newest of each series, unpacked in the target folder and installed nowhere.
//!
//! apt fetches and checks them, as for an installation, under a configuration of its own: this system's lists and sources
//! stay as they are, except that its mirror is used.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{command, progress};

/// A kernel, ready to be booted.
pub(super) struct Kernel {
    /// As asked for: `5.10`.
    pub(super) series: &'static str,
    /// As the kernel itself says: `5.10.0-46-cloud-amd64`.
    pub(super) release: String,
    /// As the package says, without Debian's part: `5.10.262`.
    pub(super) version: String,
    /// Where it is kept.
    pub(super) folder: PathBuf,
    /// Its image.
    pub(super) image: PathBuf,
    /// The folder of its modules.
    pub(super) modules: PathBuf,
}

/// Suites with kernels of several series, of the archive and of its security updates.
const SUITES: [&str; 4] = [
    "bookworm",
    "bookworm-backports",
    "trixie",
    "trixie-backports",
];
const SECURITY_SUITES: [&str; 3] = ["bullseye-security", "bookworm-security", "trixie-security"];
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// For so long what was fetched counts as newest.
const FRESH_FOR: Duration = Duration::from_hours(24);

/// The newest kernel of each series.
pub(super) fn provide(folder: &Path, series: &BTreeSet<&'static str>) -> Result<Vec<Kernel>> {
    // Two runs at a time would unpack into each other's folders.
    let _only_one = lock(folder)?;
    let kept = |series: &&'static str| kept(folder, series);
    let stamp = folder.join("fetched");
    let is_fresh = fs::metadata(&stamp)
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|at| {
            SystemTime::now()
                .duration_since(at)
                .is_ok_and(|age| age < FRESH_FOR)
        });
    let have: Option<Vec<_>> = series.iter().map(kept).collect();
    match have {
        Some(kernels) if is_fresh => Ok(kernels),
        have => {
            let fetched = progress::long_step("fetching Debian's kernels", "half a minute", || {
                let archive = Archive::open(folder)?;
                series.iter().try_for_each(|series| archive.fetch(series))
            });
            match (fetched, have) {
                (Ok(()), _) => {
                    fs::write(&stamp, "").with_context(|| stamp.display().to_string())?;
                    let missing = || format!("the fetched kernels in {} are not complete", folder.display());
                    series.iter().map(kept).collect::<Option<_>>().with_context(missing)
                }
                (Err(error), Some(kernels)) => {
                    progress::step(&format!("going on with the kernels fetched before: {error:#}"));
                    Ok(kernels)
                }
                (Err(error), None) => Err(error.context(
                    "the kernels to test on cannot be fetched from Debian's archive, for which this machine needs its network once",
                )),
            }
        }
    }
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let locked = fs::create_dir_all(folder)
        .and_then(|()| File::create(&path))
        .and_then(|file| file.lock().map(|()| file));
    locked.with_context(|| path.display().to_string())
}

/// What was fetched before, and is as it was then.
fn kept(folder: &Path, series: &'static str) -> Option<Kernel> {
    let folder = folder.join(series);
    let package = fs::read_to_string(folder.join("package")).ok()?;
    let (name, version) = package.trim().split_once(' ')?;
    let release = release(name).ok()?;
    let upstream = version
        .split_once('-')
        .map_or(version, |(upstream, _)| upstream);
    let modules = modules(&folder, release)?;
    let image = image(&folder, release)?;
    let is_whole = fs::read_to_string(folder.join(SUM)).is_ok_and(|kept| {
        let found = sum(&image);
        found.is_ok_and(|found| found == kept)
    });
    is_whole.then_some(Kernel {
        series,
        release: release.to_owned(),
        version: upstream.to_owned(),
        folder,
        image,
        modules,
    })
}

/// What the kernel of a package calls itself.
fn release(package: &str) -> Result<&str> {
    let release = package.strip_prefix(IMAGE);
    release.with_context(|| format!("{package} is no package of a kernel"))
}

fn modules(folder: &Path, release: &str) -> Option<PathBuf> {
    place(folder, &format!("lib/modules/{release}"))
}

fn image(folder: &Path, release: &str) -> Option<PathBuf> {
    let beside = || Some(modules(folder, release)?.join("vmlinuz")).filter(|image| image.exists());
    place(folder, &format!("boot/vmlinuz-{release}")).or_else(beside)
}

/// Where a file of a package is: since series 7 everything is below /usr.
fn place(folder: &Path, path: &str) -> Option<PathBuf> {
    let places = [folder.join(path), folder.join("usr").join(path)];
    places.into_iter().find(|place| place.exists())
}

/// The file that says what the image was when apt had checked it.
const SUM: &str = "sha256";

fn sum(image: &Path) -> Result<String> {
    command::read(
        Command::new("sha256sum")
            .arg("--binary")
            .stdin(File::open(image)?),
    )
}

const IMAGE: &str = "linux-image-";
/// For machines in the cloud, which are virtual: few drivers, so small.
const FLAVOUR: &str = "-cloud-amd64";

/// Debian's archive, seen through a configuration of our own.
pub(super) struct Archive<'a> {
    folder: &'a Path,
    options: Vec<String>,
}

impl<'a> Archive<'a> {
    /// Fetches the lists of packages.
    pub(super) fn open(folder: &'a Path) -> Result<Self> {
        if !command::exists("apt-get") || !command::exists("dpkg-deb") {
            bail!("there is no apt-get and dpkg-deb on this system");
        }
        if !Path::new(KEYS).exists() {
            bail!("{KEYS} is missing (package debian-archive-keyring)");
        }
        let apt = folder.join("apt");
        for below in ["lists/partial", "cache/archives/partial", "parts"] {
            let below = apt.join(below);
            fs::create_dir_all(&below).with_context(|| below.display().to_string())?;
        }
        let sources = apt.join("sources.list");
        fs::write(&sources, sources_list()).with_context(|| sources.display().to_string())?;
        let option = |name: &str, below: &str| format!("{name}={}", apt.join(below).display());
        let archive = Self {
            folder,
            options: vec![
                option("Dir::Etc::sourcelist", "sources.list"),
                option("Dir::Etc::sourceparts", "parts"),
                option("Dir::State::lists", "lists"),
                option("Dir::Cache", "cache"),
                "Acquire::Languages=none".to_owned(),
                "Acquire::Retries=2".to_owned(),
                // The folder may be one that nobody but its owner can read.
                "APT::Sandbox::User=root".to_owned(),
            ],
        };
        read(archive.apt("apt-get").args(["update", "--error-on=any"]))?;
        Ok(archive)
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.arg("-qq");
        for option in &self.options {
            apt.args(["--option", option]);
        }
        apt
    }

    /// Options that have apt prefer the backports for this system's release.
    pub(super) fn with_backports(&self) -> Result<Vec<String>> {
        let system = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
        let release = system
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("/etc/os-release names no release")?;
        // What the lists say of other releases would be as good to apt, and be installed with what it needs.
        let own = own_suites(&sources_list(), release);
        let sources = self.folder.join("apt").join("backports.list");
        fs::write(&sources, own).with_context(|| sources.display().to_string())?;
        let sources = format!("Dir::Etc::sourcelist={}", sources.display());
        let options = self.options.iter().chain([&sources]);
        let options = options.flat_map(|option| ["--option".to_owned(), option.clone()]);
        let target = [
            "--target-release".to_owned(),
            format!("{release}-backports"),
        ];
        Ok(options.chain(target).collect())
    }

    /// Unpacks the newest kernel of a series, unless that is done.
    fn fetch(&self, series: &'static str) -> Result<()> {
        let names = read(self.apt("apt-cache").args(["pkgnames", IMAGE]))?;
        let name = newest(names.lines(), series)
            .with_context(|| format!("Debian's archive has no kernel {series} for this machine"))?;
        let shown = read(
            self.apt("apt-cache")
                .args(["show", "--no-all-versions", name]),
        )?;
        let field = |name| shown.lines().find_map(|line| line.strip_prefix(name));
        let version = field("Version: ").context("a package without a version")?;
        let place = self.folder.join(series);
        let package = format!("{name} {version}\n");
        let is_it = fs::read_to_string(place.join("package")).is_ok_and(|kept| kept == package);
        if is_it && kept(self.folder, series).is_some() {
            return Ok(());
        }

        // Complete or not there: it gets its name last.
        let unpacked = self.folder.join(format!("{series}.partial"));
        for folder in [&unpacked, &place] {
            if folder.exists() {
                fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
            }
        }
        fs::create_dir_all(&unpacked)?;
        for package in parts(name, field("Depends: ").unwrap_or_default()) {
            read(
                self.apt("apt-get")
                    .args(["download", package])
                    .current_dir(&unpacked),
            )?;
        }
        for entry in fs::read_dir(&unpacked)? {
            let package = entry?.path();
            if package
                .extension()
                .is_some_and(|extension| extension == "deb")
            {
                command::read(
                    Command::new("dpkg-deb")
                        .arg("--extract")
                        .args([&package, &unpacked]),
                )?;
                fs::remove_file(&package)?;
            }
        }
        let image = image(&unpacked, release(name)?).context("the packages hold no image")?;
        fs::write(unpacked.join(SUM), sum(&image)?)?;
        fs::write(unpacked.join("package"), package)?;
        fs::rename(&unpacked, &place).with_context(|| place.display().to_string())
    }
}

/// Runs a command of apt. Of a failure the first complaint is told: the command is long, and others follow from it.
fn read(apt: &mut Command) -> Result<String> {
    command::read(apt).map_err(|error| {
        let said = error.to_string();
        let complaint = said.lines().find_map(|line| line.split_once("E: "));
        complaint.map_or(error, |(_, complaint)| anyhow!("{complaint}"))
    })
}

/// The packages that hold image and modules: the one of that name, or, since series 7, two that it only depends on.
fn parts<'a>(name: &'a str, depends: &'a str) -> Vec<&'a str> {
    let needed = depends
        .split([',', '|'])
        .filter_map(|one| one.split_ascii_whitespace().next());
    let parts: Vec<_> = needed
        .filter(|one| one.starts_with("linux-binary-") || one.starts_with("linux-modules-"))
        .collect();
    if parts.is_empty() { vec![name] } else { parts }
}

/// The newest package of a series: `7` is any 7.x.
fn newest<'a>(names: impl Iterator<Item = &'a str>, series: &str) -> Option<&'a str> {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|letter: char| !letter.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    let is_of_series = |name: &&str| {
        name.strip_prefix(IMAGE)
            .and_then(|rest| rest.strip_suffix(FLAVOUR))
            .and_then(|release| release.strip_prefix(series))
            .is_some_and(|rest| rest.starts_with('.'))
    };
    names.filter(is_of_series).max_by_key(|name| numbers(name))
}

/// The lines of a list of sources that are about one release.
fn own_suites(sources: &str, release: &str) -> String {
    let suites = ["", "-backports", "-security"].map(|suite| format!(" {release}{suite} "));
    let lines = sources.split_inclusive('\n');
    lines
        .filter(|line| suites.iter().any(|suite| line.contains(suite)))
        .collect()
}

/// The sources, from this system's mirror of Debian where it has one.
fn sources_list() -> String {
    let configured = command::read(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]))
    .unwrap_or_default();
    let mirror = |name: &str| {
        let of_debian = |uri: &&str| uri.trim_end_matches('/').ends_with(name);
        let found = configured.lines().find(of_debian);
        found.map_or_else(|| format!("http://deb.debian.org/{name}"), str::to_owned)
    };
    let lines = |mirror: &str, suites: &[&str]| -> String {
        let line = |suite| format!("deb [signed-by={KEYS} arch=amd64] {mirror} {suite} main\n");
        suites.iter().map(line).collect()
    };
    lines(&mirror("debian"), &SUITES) + &lines(&mirror("debian-security"), &SECURITY_SUITES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_another_release_is_left_out() {
        let line = |suite: &str| format!("deb http://deb.debian.org/debian/ {suite} main\n");
        let all = [
            "bookworm",
            "bookworm-backports",
            "trixie",
            "bookworm-security",
        ];
        let own = ["bookworm", "bookworm-backports", "bookworm-security"];
        let all: String = all.map(line).concat();
        assert_eq!(own_suites(&all, "bookworm"), own.map(line).concat());
    }

    #[test]
    fn the_newest_of_a_series_is_told_by_its_numbers() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.12.95+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.118+deb12-cloud-amd64-unsigned",
            "linux-image-7.2.1+deb13-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        let newest = |series| newest(names.into_iter(), series);
        assert_eq!(newest("6.1"), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(
            newest("6.12"),
            Some("linux-image-6.12.117+deb12-cloud-amd64")
        );
        assert_eq!(newest("7"), Some("linux-image-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest("5.10"), None);
    }

    #[test]
    fn an_image_may_be_in_packages_that_it_depends_on() {
        let depends = "kmod, linux-base (>= 4.12~), linux-binary-7.3-cloud (= 7.3), linux-modules-7.3-cloud (= 7.3), initramfs-tools | dracut";
        let expected = ["linux-binary-7.3-cloud", "linux-modules-7.3-cloud"];
        assert_eq!(parts("linux-image-7.3", depends), expected);
        assert_eq!(
            parts("linux-image-6.1", "kmod, linux-base"),
            ["linux-image-6.1"]
        );
    }
}
