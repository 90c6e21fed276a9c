//! Who runs the command, with what, and what is said when that cannot be.

use std::process::Command;

use culvert_tests::{
    Sandbox,
    process::{attempt, culvert_binary},
};

use super::scene::{Scene, exec, stdout, text};

const NOBODY: u32 = 65534;

#[test]
fn a_wrong_command_line_is_told_in_one_sentence() {
    let sandbox = Sandbox::new();
    for via in [
        "ftp://192.0.2.1",
        "socks5://",
        "socks5://proxy:port",
        "",
        "socks5://127.0.0.1:1080/path",
    ] {
        let ended = attempt(exec(&sandbox, &["--via", via]).arg("true"));
        assert_eq!(ended.status.code(), Some(2), "{via}: {ended:?}");
        let said = text(&ended.stderr);
        assert!(said.starts_with("culvert: "), "{via}: {said}");
        assert_eq!(said.lines().count(), 1, "{via}: {said}");
    }
    let no_command = attempt(&mut exec(&sandbox, &["--via", "socks5://127.0.0.1"]));
    assert_eq!(no_command.status.code(), Some(2));
}

#[test]
fn without_privileges_it_says_what_is_missing() {
    let sandbox = Sandbox::new();
    let nobody = NOBODY.to_string();
    let mut command = sandbox.command("setpriv");
    command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
    command
        .arg(culvert_binary())
        .args(["exec", "--via", "socks5://127.0.0.1", "--", "true"]);
    let ended = attempt(&mut command);
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    let said = text(&ended.stderr);
    assert!(
        said.contains("CAP_BPF") && said.contains("CAP_NET_ADMIN"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn below_sudo_the_command_runs_as_the_caller() {
    let scene = Scene::new();
    let line = "id -u; id -g; id -G; echo $HOME $USER ${SUDO_UID-none}";
    let sudo = |command: &mut Command| {
        let id = NOBODY.to_string();
        command
            .env("SUDO_UID", &id)
            .env("SUDO_GID", &id)
            .env("SUDO_USER", "nobody")
            .env("HOME", "/root");
        stdout(&attempt(command.args(["sh", "-c", line])))
    };
    let nobody = format!("{NOBODY}\n{NOBODY}\n{NOBODY}\n/nonexistent nobody none\n");
    assert_eq!(sudo(&mut scene.exec()), nobody);
    let root = sudo(&mut scene.exec_with(&["--root"]));
    assert!(root.starts_with("0\n0\n"), "{root}");
    let mut named = scene.exec_with(&["--user", "nobody"]);
    assert_eq!(stdout(&attempt(named.args(["sh", "-c", line]))), nobody);
}

#[test]
fn a_user_gets_no_file_and_no_capability_of_culverts() {
    let scene = Scene::new();
    let line = "for fd in /proc/$$/fd/*; do echo ${fd##*/}; done; ulimit -Sn; grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/$$/status";
    let mut alone = scene.sandbox.command_beside_daemons("bash");
    let alone = stdout(&attempt(alone.args(["-c", line])));
    let mut command = scene.exec_with(&["--user", "nobody"]);
    let behind = stdout(&attempt(command.args(["bash", "-c", line])));
    let split = |said: &str| -> (Vec<String>, Vec<String>) {
        let lines = said.lines().map(str::to_owned);
        lines.partition(|line| line.starts_with("Cap"))
    };
    let ((_, files_alone), (capabilities, files)) = (split(&alone), split(&behind));
    assert_eq!(files, files_alone);
    assert_eq!(capabilities.len(), 4, "{behind}");
    for line in capabilities {
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
}
