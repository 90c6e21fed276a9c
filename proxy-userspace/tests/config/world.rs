//! A made-up machine for configurations to refer to.

use std::{
    ffi::OsString,
    io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use proxy_userspace::config::{self, ConfigError, Environment, FileContent, Loaded, Origin};

/// The password that is in every file and variable of the world: no report may hold it.
pub(crate) const SECRET: &str = "s3cr3t";

pub(crate) struct World;

impl Environment for World {
    fn read(&self, path: &Path) -> io::Result<FileContent> {
        let (text, mode) = match path.to_str().unwrap_or_default() {
            "/etc/passwd" => (
                "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/var/www:\n\nbroken\nalice:x:1000:1000::/home/alice:\n\
                 postfix:x:101:101::/:",
                0o644,
            ),
            "/etc/group" => ("root:x:0:\nwheel:x:998:alice\nwww-data:x:33:\n", 0o644),
            "/etc/culvert/password" => ("s3cr3t\n", 0o600),
            "/etc/culvert/open" => ("s3cr3t\n", 0o644),
            "/etc/culvert/writable" => ("s3cr3t\n", 0o620),
            "/etc/culvert/empty" => ("\n", 0o600),
            "/etc/culvert/ca.pem" => (
                "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
                0o644,
            ),
            "/etc/culvert/key.pem" => (
                "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
                0o600,
            ),
            _ => return Err(io::Error::from_raw_os_error(2)),
        };
        Ok(FileContent {
            bytes: text.into(),
            mode,
        })
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        match name {
            "CULVERT_PASSWORD" | "ABROAD_PASSWORD" => Some(SECRET.into()),
            "EMPTY" => Some(OsString::new()),
            _ => None,
        }
    }

    fn cores(&self) -> NonZeroUsize {
        NonZeroUsize::new(4).unwrap()
    }
}

/// Parses a configuration that only its owner may open.
pub(crate) fn parse(text: &str) -> Result<Loaded, ConfigError> {
    parse_with_mode(text, 0o600)
}

pub(crate) fn parse_with_mode(text: &str, mode: u32) -> Result<Loaded, ConfigError> {
    let path = PathBuf::from("culvert.toml");
    config::parse(text, &Origin { path, mode }, &World)
}

/// Parses a configuration that must be valid.
#[track_caller]
pub(crate) fn valid(text: &str) -> Loaded {
    parse(text).unwrap_or_else(|error| panic!("{error}"))
}
