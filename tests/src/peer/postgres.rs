//! `PostgreSQL`, with a cluster of its own.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
};

use nix::{sys::signal::Signal, unistd::User};
use tempfile::TempDir;

use crate::process::{Running, output, run};

/// The user that Debian's packages make; the server refuses to run as root.
const USER: &str = "postgres";

/// A server whose user `postgres` needs no password.
#[derive(Debug)]
pub struct Postgres {
    // First: what runs in the directory ends before it goes.
    running: Running,
    directory: TempDir,
}

impl Postgres {
    /// Runs one on a port of every address, by a command that gets its arguments.
    pub fn start(port: u16, command: impl Fn(&str) -> Command) -> Self {
        let directory = TempDir::with_prefix("culvert-tests-postgres-").expect("a directory");
        let place = directory.path();
        let user = User::from_name(USER).expect("the list of users");
        let user = user.unwrap_or_else(|| panic!("there is no user {USER}"));
        chown(place, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("its directory");
        // Its Unix socket is for everybody.
        fs::set_permissions(place, Permissions::from_mode(0o755)).expect("its directory");
        let cluster = place.join("cluster");
        let mut initdb = unprivileged(Command::new("setpriv"), "initdb");
        output(
            initdb
                .args([
                    "--no-sync",
                    "--locale=C",
                    "--auth=trust",
                    "--username=postgres",
                    "--pgdata",
                ])
                .arg(&cluster),
        );
        certificate(&cluster, &user);
        let log = File::create(place.join("log")).expect("its log");
        let mut command = unprivileged(command("setpriv"), "postgres");
        let settings = [
            format!("port={port}"),
            "listen_addresses=0.0.0.0".to_owned(),
            format!("unix_socket_directories={}", place.display()),
            "ssl=on".to_owned(),
            "fsync=off".to_owned(),
            "shared_buffers=16MB".to_owned(),
            "max_connections=200".to_owned(),
            // A backend notices that its client has gone while it works.
            "client_connection_check_interval=100".to_owned(),
        ];
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        fs::write(
            cluster.join("pg_hba.conf"),
            "local all all trust\nhost all all all trust\n",
        )
        .expect("who may connect");
        command
            .arg("-D")
            .arg(&cluster)
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log);
        // Killed, it would leave shared memory behind.
        let running = Running::start(&mut command).ended_by(Signal::SIGINT);
        Self { running, directory }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Where its Unix socket is.
    pub fn socket(&self, port: u16) -> PathBuf {
        self.directory.path().join(format!(".s.PGSQL.{port}"))
    }
}

/// The certificate that the server uses by default.
fn certificate(cluster: &Path, user: &User) {
    let file = |name: &str| cluster.join(name);
    let (key, certificate) = (file("server.key"), file("server.crt"));
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=service",
            "-keyout",
            &key.to_string_lossy(),
            "-out",
            &certificate.to_string_lossy(),
        ],
    );
    for path in [key, certificate] {
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its certificate");
        chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("its certificate");
    }
}

/// A program of `PostgreSQL`'s by `setpriv`, as its user.
fn unprivileged(mut setpriv: Command, name: &str) -> Command {
    setpriv
        .args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"])
        .arg(program(name))
        // Where the user may be.
        .current_dir("/");
    setpriv
}

/// A program of the newest version that is installed: Debian has those of servers in no `PATH`, and its wrappers of clients look
/// for clusters of the machine's.
pub fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let programs = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin").join(name)))
        .filter(|path| path.is_file());
    programs
        .max()
        .unwrap_or_else(|| panic!("no {name} below /usr/lib/postgresql"))
}
