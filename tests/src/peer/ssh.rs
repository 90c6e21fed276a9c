//! An OpenSSH server and its client, with keys of their own.

use std::{fs, path::Path, process::Command};

use crate::process::{Running, run, write_private};

/// Debian's place; it wants to be started by its whole path.
const PROGRAM: &str = "/usr/sbin/sshd";

/// Runs a server on a port of every address, by a command that runs a shell and gets its arguments: whoever has the key in the
/// directory is root, with the directory as home.
pub fn sshd(directory: &Path, port: u16, shell: &mut Command) -> Running {
    let place = directory.display();
    for key in ["host_key", "key"] {
        let file = format!("{place}/{key}");
        run(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-f", &file],
        );
    }
    let public = |key: &str| {
        let text = fs::read_to_string(directory.join(key).with_extension("pub"));
        text.expect("a public key")
    };
    write_private(&directory.join("authorized_keys"), &public("key"));
    write_private(
        &directory.join("known_hosts"),
        &format!("service {}", public("host_key")),
    );
    let text = format!(
        "Port {port}\nListenAddress 0.0.0.0\nHostKey {place}/host_key\nAuthorizedKeysFile {place}/authorized_keys\n\
         StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n\
         MaxStartups 100\nSubsystem sftp internal-sftp\nLogLevel ERROR\n"
    );
    write_private(&directory.join("sshd_config"), &text);
    // Not this machine's root, who may be locked, or be greeted by programs: one of the test's own.
    let root = format!("root:x:0:0:root:{place}:/bin/sh\n");
    let others = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    write_private(&directory.join("passwd"), &(root + &others));
    write_private(&directory.join("shadow"), "root:*:1::::::\n");
    // The log is a file: a session that outlived a failed test would hold the test's pipes.
    let script = format!(
        "set -e; mount -t tmpfs tmpfs /run; mkdir /run/sshd
         mount --bind {place}/passwd /etc/passwd; mount --bind {place}/shadow /etc/shadow
         exec {PROGRAM} -D -e -f {place}/sshd_config >{place}/sshd.log 2>&1"
    );
    Running::start(shell.args(["--mount", "sh", "-c", &script]))
}

/// Arguments for `ssh`, `scp` and `sftp` that make them clients of [`sshd`].
pub fn ssh_options(directory: &Path) -> Vec<String> {
    let place = directory.display();
    let options = [
        "BatchMode=yes".to_owned(),
        "HostKeyAlias=service".to_owned(),
        "StrictHostKeyChecking=yes".to_owned(),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        format!("UserKnownHostsFile={place}/known_hosts"),
        format!("IdentityFile={place}/key"),
        "IdentitiesOnly=yes".to_owned(),
        // The cheapest: many log in.
        "KexAlgorithms=curve25519-sha256".to_owned(),
        "Ciphers=aes128-gcm@openssh.com".to_owned(),
        "LogLevel=ERROR".to_owned(),
    ];
    let words = options
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option]);
    ["-F".to_owned(), "/dev/null".to_owned()]
        .into_iter()
        .chain(words)
        .collect()
}
