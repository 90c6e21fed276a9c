//! OpenSSH, with `ssh`, `scp` and `sftp`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use culvert_tests::{
    Payload, Sandbox, eventually,
    peer::{nginx, ssh_options, sshd},
    process::{Running, output},
    record::CloseRecord,
    sandbox::OTHER_V4,
    ways::{Way, assert_taken, rules},
};

use super::{await_service, by_every_way};

const PORT: u16 = 22;

fn start(sandbox: &Sandbox) -> Running {
    let server = sshd(sandbox.directory(), PORT, &mut sandbox.outsider("unshare"));
    await_service("the SSH server", || {
        let mut ssh = sandbox.outsider("ssh");
        ssh.args(ssh_options(sandbox.directory()));
        ssh.args(["root@127.0.0.1", "true"]);
        ssh
    });
    server
}

/// A client of the server's.
fn client(sandbox: &Sandbox, program: &str, port: &str) -> Command {
    let mut command = sandbox.command(program);
    command.args(ssh_options(sandbox.directory()));
    // They do not agree on the letter.
    command.arg("-o").arg(format!("Port={port}"));
    command
}

#[test]
fn files_are_the_same_on_both_ends() {
    const LENGTH: usize = 1_500_000;
    let sandbox = Sandbox::new();
    let _sshd = start(&sandbox);
    let culvert = sandbox.culvert(&rules(PORT));
    by_every_way(PORT, |way| {
        let Way { name, .. } = way;
        let bytes = Payload {
            seed: way.address.port().into(),
        }
        .prefix(LENGTH);
        let file = |what: &str| -> PathBuf { sandbox.directory().join(format!("{name}.{what}")) };
        let same = |what: &str| {
            let read = fs::read(file(what)).unwrap();
            assert!(read == bytes, "{name}: {what} of {} bytes", read.len());
        };
        fs::write(file("original"), &bytes).unwrap();
        let there = |what: &str| format!("root@{}:{}", way.host(), file(what).display());
        let port = way.port();
        let mut scp = client(&sandbox, "scp", &port);
        output(scp.arg(file("original")).arg(there("up")));
        same("up");
        let mut scp = client(&sandbox, "scp", &port);
        // By the protocol of old, too.
        output(scp.arg("-O").arg(there("original")).arg(file("down")));
        same("down");

        let batch = file("batch");
        let lines = format!(
            "put {} {}\nget {} {}\n",
            file("original").display(),
            file("put").display(),
            file("up").display(),
            file("got").display()
        );
        fs::write(&batch, lines).unwrap();
        let mut sftp = client(&sandbox, "sftp", &port);
        output(
            sftp.arg("-b")
                .arg(&batch)
                .arg(format!("root@{}", way.host())),
        );
        same("put");
        same("got");

        // Both directions at once, and the end of one before that of the other.
        let mut ssh = client(&sandbox, "ssh", &port);
        let echoed = ssh
            .arg(format!("root@{}", way.host()))
            .arg("cat; echo -n end")
            .stdin(fs::File::open(file("original")).unwrap())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(echoed.status.success());
        assert!(
            echoed.stdout.strip_suffix(b"end") == Some(&*bytes),
            "{name}: what came back"
        );
        for what in ["original", "up", "down", "put", "got"] {
            fs::remove_file(file(what)).unwrap();
        }
    });
    for (name, records) in assert_taken(&culvert, PORT, &["done"]) {
        let moved: u64 = records.iter().map(|record| record.up + record.down).sum();
        assert!(
            records.is_empty() || moved > 6 * LENGTH as u64,
            "{name}: {moved}"
        );
    }
}

/// One port for two protocols: what is not TLS goes to the SSH server, at once.
#[test]
fn ssh_shares_a_port_with_the_web() {
    let sandbox = Sandbox::new();
    let _sshd = start(&sandbox);
    let server = "server { listen 127.0.0.1:8443; location / { return 200 \"web\"; } }";
    let _nginx = nginx(sandbox.directory(), server, &mut sandbox.outsider("nginx"));
    let culvert = sandbox.culvert(&format!(
        r#"
        [[reverse]]
        name = "shared"
        listen = "{OTHER_V4}:443"
        via = "127.0.0.1:8443"
        unnamed = "127.0.0.1:{PORT}"
        peek_timeout = "1m"
        names = [ {{ host = "web.example", via = "127.0.0.1:8443" }} ]
        "#
    ));
    await_service("nginx", || {
        let mut curl = sandbox.command("curl");
        curl.args([
            "-sSf",
            "-H",
            "Host: web.example",
            &format!("http://{OTHER_V4}:443/"),
        ]);
        curl
    });
    let mut ssh = client(&sandbox, "ssh", "443");
    let said = output(ssh.arg(format!("root@{OTHER_V4}")).arg("echo shell"));
    assert_eq!(said, "shell\n");
    eventually("its record", || {
        let to_ssh = |record: &CloseRecord| record.peer.is_some_and(|peer| peer.port() == PORT);
        culvert.records().iter().any(to_ssh).then_some(())
    });
}
