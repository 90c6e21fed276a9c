//! What the command finds: user, groups, variables, limits, files, signals.

use std::{
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::Command,
};

use crate::harness::{culvert, status_line, stderr, stdout};

tests![
    a_named_user_is_become_wholly,
    below_sudo_it_is_the_caller,
    root_on_demand,
    an_unknown_user_is_an_error,
    open_files_are_as_before,
    files_are_those_of_the_caller,
    signals_are_as_the_caller_left_them,
    the_process_group_is_culverts,
];

fn text(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

fn a_named_user_is_become_wholly() {
    let status = text(culvert(&["--user", "nobody", "cat", "/proc/self/status"]));
    let uid = text({
        let mut id = Command::new("id");
        id.args(["-u", "nobody"]);
        id
    });
    let uid = uid.trim();
    assert_eq!(status_line(&status, "Uid:"), [uid; 4].join("\t"));
    let groups = text(culvert(&["--user", "nobody", "id", "-G"]));
    let expected = text({
        let mut id = Command::new("id");
        id.args(["-G", "nobody"]);
        id
    });
    assert_eq!(groups, expected);
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(
            status_line(&status, capabilities),
            "0".repeat(16),
            "{capabilities}"
        );
    }
    assert_eq!(status_line(&status, "NoNewPrivs:"), "0");
    let script = "echo $HOME $USER $LOGNAME $SHELL";
    let variables = text(culvert(&["--user", "nobody", "sh", "-c", script]));
    assert_eq!(variables, "/nonexistent nobody nobody /usr/sbin/nologin\n");
}

fn below_sudo_it_is_the_caller() {
    let mut command = culvert(&[
        "sh",
        "-c",
        "id -u; id -g; id -G; echo ${SUDO_UID-gone} $LOGNAME",
    ]);
    command.envs([
        ("SUDO_UID", "1"),
        ("SUDO_GID", "3"),
        ("SUDO_USER", "daemon"),
    ]);
    assert_eq!(text(command), "1\n3\n3 1\ngone daemon\n");
}

fn root_on_demand() {
    let mut command = culvert(&["--root", "id", "-u"]);
    command.envs([("SUDO_UID", "1"), ("SUDO_GID", "1")]);
    assert_eq!(text(command), "0\n");
}

fn an_unknown_user_is_an_error() {
    let output = culvert(&["--user", "no-such-user", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(
        message.contains("there is no user \"no-such-user\""),
        "{message}"
    );
}

fn open_files_are_as_before() {
    let limits = "ulimit -Sn; ulimit -Hn";
    let before = "ulimit -Sn 64; exec \"$0\" \"$@\"";
    let exe = std::env::current_exe().unwrap();
    let mut command = Command::new("bash");
    command
        .args(["-c", before])
        .arg(exe)
        .args(["exec", "--raise-limit", "sh", "-c", limits]);
    let after = text(command);
    assert_eq!(after.lines().next(), Some("64"));
    let mut direct = Command::new("sh");
    direct.args(["-c", limits]);
    assert_eq!(after.lines().nth(1), text(direct).lines().nth(1));
}

/// A command that inherits a file as descriptor 9, as from `9<file` in a shell.
fn with_file_9(mut command: Command) -> Command {
    let file = std::fs::File::open("/dev/zero").unwrap();
    // SAFETY: dup2 is a plain system call; the closure keeps the file open.
    unsafe {
        command.pre_exec(move || match libc::dup2(file.as_raw_fd(), 9) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    command
}

fn files_are_those_of_the_caller() {
    // Without a shell, which would open files of its own.
    let list = ["ls", "/proc/self/fd"];
    let through = text(with_file_9(culvert(&list)));
    let mut direct = Command::new(list[0]);
    direct.arg(list[1]);
    assert_eq!(through, text(with_file_9(direct)));
    assert!(through.lines().any(|line| line == "9"), "{through}");
}

fn signals_are_as_the_caller_left_them() {
    let exe = std::env::current_exe().unwrap();
    let status = |through: &[&str]| {
        // As nohup, and as a script that starts a job in the background.
        let mut shell = Command::new("bash");
        shell.args(["-c", "trap '' HUP INT; exec \"$@\"", "bash"]);
        if let [subcommand] = through {
            shell.arg(&exe).arg(subcommand);
        }
        shell.args(["cat", "/proc/self/status"]);
        text(shell)
    };
    let (through, direct) = (status(&["exec"]), status(&[]));
    let set = |status: &str, name| {
        let set = u64::from_str_radix(&status_line(status, name), 16).unwrap();
        // Signals 32 and 33 belong to the C library's threads.
        set & !(0b11 << 31)
    };
    for name in ["SigBlk:", "SigIgn:", "SigCgt:", "SigPnd:"] {
        assert_eq!(set(&through, name), set(&direct, name), "{name}");
    }
    assert_eq!(set(&through, "SigIgn:"), 0b11, "SIGHUP and SIGINT only");
}

fn the_process_group_is_culverts() {
    let mut command = culvert(&["sh", "-c", "ps -o pgid= -p $$; ps -o pgid= -p $PPID"]);
    command.process_group(0);
    let groups = text(command);
    let mut groups = groups.lines();
    assert_eq!(groups.next(), groups.next());
}
