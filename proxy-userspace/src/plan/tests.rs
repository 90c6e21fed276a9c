use std::{fs, path::PathBuf};

use super::*;
use crate::config::{Origin, System};

fn configuration(text: &str) -> (Config, Compiled) {
    let origin = Origin {
        path: PathBuf::from("test.toml"),
        mode: 0o600,
    };
    let config = config::parse(text, &origin, &System).unwrap().config;
    let compiled = policy::compile(config.roles(), &Names::default()).unwrap();
    (config, compiled)
}

fn mounted() -> Bpffs {
    Bpffs::Mounted("/sys/fs/bpf".into())
}

#[test]
fn a_plain_rule_needs_the_hooks_and_two_capabilities() {
    let (config, compiled) =
        configuration("[[forward]]\nname = \"a\"\nmatch = { port = 80 }\nvia = \"refuse\"\n");
    let needs = Needs::of(&config, &compiled, &mounted());
    assert_eq!(needs.hooks.len(), 6);
    assert!(needs.tracepoints.is_empty() && needs.guard.is_empty());
    assert_eq!(needs.privileges, privileges::NEEDED);
}

#[test]
fn each_selector_and_fail_mode_needs_its_own() {
    let rule = |selector: &str, failing: &str| {
        configuration(&format!(
            "[upstream.u]\nurl = \"direct://\"\n[[forward]]\nname = \"a\"\nmatch = {{ {selector} }}\nvia = \"u\"\n\
             on_relay_failure = \"{failing}\"\n"
        ))
    };
    let (config, compiled) = rule("exe = \"/usr/bin/curl\"", "direct");
    let needs = Needs::of(&config, &compiled, &mounted());
    assert!(needs.tracepoints.is_empty());

    let (config, compiled) = rule("pid = 1", "direct");
    let needs = Needs::of(&config, &compiled, &mounted());
    assert_eq!(needs.tracepoints, [names::TASK_FORK, names::TASK_EXIT]);

    let (config, compiled) = rule("port = 80", "refuse");
    let needs = Needs::of(&config, &compiled, &mounted());
    assert_eq!(needs.guard, [names::GUARD4, names::GUARD6]);
    assert!(!needs.privileges.contains(&privileges::MOUNT));
    let needs = Needs::of(
        &config,
        &compiled,
        &Bpffs::Absent("/run/culvert/bpf".into()),
    );
    assert!(needs.privileges.contains(&privileges::MOUNT));
}

#[test]
fn what_does_not_fit_or_is_not_there_is_named() {
    let (config, compiled) = configuration(
        "[daemon]\ncgroup = \"nobody/made/this\"\naccess_log = { path = \"/nonexistent/a.log\" }\n\
         [[forward]]\nname = \"a\"\nmatch = { port = 80 }\nvia = \"refuse\"\n",
    );
    let mut tables = tables(&config, &compiled);
    let (prefixes, used) = &mut tables[0];
    *used = prefixes.entries as usize + 1;
    let tree = tempfile::tempdir().unwrap();
    let cgroups = Cgroup2::pretended(tree.path());
    let lacking = lacking_around(&config, Some(&cgroups), &tables);
    let all = lacking.join("\n");
    for part in [
        "the cgroup /nobody/made/this",
        "/nonexistent/a.log",
        "room in the table PREFIXES",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    assert_eq!(lacking.len(), 3, "{all}");
    assert!(lacking_around(&config, None, &[])[0].contains("mount -t cgroup2"));
}

#[test]
fn names_are_shown_with_what_they_stand_for() {
    let (config, _) = configuration(
        "[[forward]]\nname = \"a\"\nvia = \"refuse\"\n\
         match = { cgroup = [\"db.service\", \"late.service\"], uid = [0, \"5-9\"], exe = \"/nonexistent/exe\" }\n",
    );
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir_all(tree.path().join("system.slice/db.service")).unwrap();
    let cgroups = Cgroup2::pretended(tree.path());
    let names = resolve::resolve(config.roles(), &cgroups, &Names::default());
    let rows = resolved(&config, Some(&cgroups), &names);
    let shown: Vec<_> = rows
        .iter()
        .map(|(left, right)| format!("{left}: {right}"))
        .collect();
    assert!(
        shown[0].starts_with("cgroup db.service: /system.slice/db.service, id "),
        "{shown:?}"
    );
    assert_eq!(
        shown[1],
        "cgroup late.service: there is none yet; waits for it"
    );
    assert_eq!(
        shown[2],
        "exe /nonexistent/exe: there is none yet; waits for it"
    );
    assert_eq!(shown[3], "uid 0: root");
    assert_eq!(shown.len(), 4);
}

#[test]
fn a_file_is_shown_as_ls_and_stat_show_it() {
    let exe = ExeRef {
        inode: 7,
        device: 254 << 20 | 1,
    };
    assert_eq!(file(&exe), "inode 7 on device 254:1");
}

#[test]
fn tables_count_what_the_rules_make() {
    let (config, compiled) = configuration(
        "[daemon]\nmax_pending = 1024\n[[forward]]\nname = \"a\"\nvia = \"refuse\"\n\
         match = { dest = [\"10.0.0.0/8\", \"192.0.2.0/24\"] }\n",
    );
    let rows = table_rows(&tables(&config, &compiled));
    let of = |name: &str| {
        rows.iter()
            .find(|(left, _)| left == name)
            .unwrap()
            .1
            .clone()
    };
    assert!(of(names::ACTIONS).starts_with("1 of "), "{rows:?}");
    let entries: usize = of(names::PREFIXES)
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(entries >= 2, "{rows:?}");
    assert!(
        of(names::RECORDS).starts_with("room for 1024 connections"),
        "{rows:?}"
    );
}
