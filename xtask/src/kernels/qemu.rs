//! Running a guest: one processor, no devices but two serial ports. On the first one the kernel speaks, on the second one
//! `culvert-guest` reports.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    archive::{Archive, Kernel},
    folder::Folder,
};
use crate::{command, packages, progress};

const QEMU: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// A guest that takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(10);

/// What every kernel is told. Without `oops=panic` a guest would hang after an oops; the last three spare it tests of its ciphers
/// and of its clocks, some two seconds of processor time.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr \
                            cryptomgr.notests no_timer_check tsc=reliable";

/// What a guest left.
#[derive(Default)]
pub(super) struct Output {
    /// What the kernel said.
    pub(super) console: String,
    /// What was reported.
    pub(super) report: String,
    /// It did not end by itself.
    pub(super) hung: bool,
}

impl Output {
    /// Keeps all of it in files, for whoever looks for the reason of a failure.
    pub(super) fn keep(&self, place: &Path) -> Result<()> {
        for (extension, text) in [("console", &self.console), ("report", &self.report)] {
            let file = place.with_extension(extension);
            fs::write(&file, text).with_context(|| file.display().to_string())?;
        }
        Ok(())
    }
}

/// Installs QEMU where it is missing, unless something else would have to go for it.
pub(super) fn provide(folder: &Path) -> Result<()> {
    if command::exists(QEMU) {
        return Ok(());
    }
    progress::step("the guests need QEMU, which is missing");
    packages::install_with(&[KEEP], &[PACKAGE])
        .or_else(|error| from_backports(folder).map_err(|_| error))
        .context("the tests on other kernels need QEMU (Debian package qemu-system-x86)")
}

/// Has apt give up rather than remove what is there.
const KEEP: &str = "--no-remove";

/// QEMU's packages fit together in one version only: where some are here from Debian's backports, so must be what is missing.
fn from_backports(folder: &Path) -> Result<()> {
    let options = Archive::open(folder)?.with_backports()?;
    let options: Vec<_> = options.iter().map(String::as_str).chain([KEEP]).collect();
    packages::install_with(&options, &[PACKAGE])
}

/// Boots a kernel and waits until it is off again.
pub(super) fn run(kernel: &Kernel, initramfs: &[u8], arguments: &str) -> Result<Output> {
    let folder = Folder::make()?;
    let image = folder.file("initramfs");
    fs::write(&image, initramfs).with_context(|| image.display().to_string())?;
    let serial = |name: &str| format!("file:{}", folder.file(name).display());
    let mut qemu = Command::new("setpriv");
    // It ends with us, however we end.
    qemu.args(["--pdeathsig", "KILL", QEMU]);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ])
    .args(["-machine", "q35", "-m", "1024", "-smp", "1"])
    .args(processor())
    .args(["-serial", &serial("console"), "-serial", &serial("report")])
    .arg("-kernel")
    .arg(&kernel.image)
    .arg("-initrd")
    .arg(&image)
    .arg("-append")
    .arg(format!("{COMMAND_LINE} {arguments}"))
    .stdin(Stdio::null());
    let mut child = qemu.spawn().with_context(|| command::line(&qemu))?;
    let hung = !ends_in_time(&mut child)?;
    if hung {
        child.kill().context("QEMU cannot be ended")?;
        child.wait()?;
    }
    let text = |name| {
        fs::read(folder.file(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Output {
        console: text("console").unwrap_or_default(),
        report: text("report").unwrap_or_default(),
        hung,
    })
}

fn ends_in_time(child: &mut Child) -> Result<bool> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(false)
}

/// KVM where the processor has it to give, which the device alone does not tell: some kinds of nested virtualisation offer
/// `/dev/kvm` for guests of their own kind only.
fn processor() -> [&'static str; 4] {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_kvm = flags
        .split_ascii_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm")
        && File::options().write(true).open("/dev/kvm").is_ok();
    if has_kvm {
        ["-accel", "kvm", "-cpu", "host"]
    } else {
        // With one processor only: QEMU 7.2 emulates `cmpxchg16b` wrongly for several, and without it kernels have no memory for
        // socket storage (`kmalloc_nolock()`, seen on 7.3).
        // Strings are fast in hardware alone: `rep movsb` is emulated byte by byte, and kernels without the two flags copy words.
        // What keeps kernel and processes apart is checked at every access, which takes some four seconds of twenty.
        let cpu = "max,la57=off,erms=off,fsrm=off,smap=off,smep=off,pku=off,pks=off";
        ["-accel", "tcg", "-cpu", cpu]
    }
}
