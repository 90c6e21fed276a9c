//! Where and when a run was made.

use std::{fs, process::Command, time::SystemTime};

use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

/// What a figure depends on, beside what is measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// RFC 3339, UTC.
    pub(crate) date: String,
    /// `git describe` of the sources.
    pub(crate) revision: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    /// Processes that wanted to run beside, on average of the last minute, at begin and end.
    pub(crate) load: [f64; 2],
}

impl Machine {
    pub(crate) fn look() -> Self {
        let kernel = uname().map_or_else(
            |error| error.to_string(),
            |name| format!("{} {}", name.release().display(), name.machine().display()),
        );
        let processor = field("/proc/cpuinfo", "model name");
        let memory = field("/proc/meminfo", "MemTotal");
        let kib = memory.split(' ').next().and_then(|kib| kib.parse().ok());
        let load = load();
        Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            revision: revision(),
            kernel,
            processor,
            cores: cores(),
            memory_mib: kib.unwrap_or(0) / 1024,
            load: [load; 2],
        }
    }

    /// To be called at the end.
    pub(crate) fn look_again(&mut self) {
        self.load[1] = load();
    }
}

/// Cores that this process may run on.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or_default()
}

fn field(file: &str, key: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or_else(
        || "unknown".to_owned(),
        |(_, value)| value.trim().to_owned(),
    )
}

fn revision() -> String {
    let sources = env!("CARGO_MANIFEST_DIR");
    let git = Command::new("git")
        .args([
            "-C",
            sources,
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
        ])
        .output();
    match git {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
