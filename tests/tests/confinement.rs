//! What a daemon may do once it runs: nothing that it does not need, in no thread; and it says that it is alive only while
//! all of them are.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{collections::BTreeMap, fs, os::fd::AsRawFd, time::Duration};

use culvert_tests::{
    Culvert, Sandbox,
    daemon::Settings,
    eventually,
    eventually::in_time,
    rules::{ALL, RELAY, relayed},
};
use nix::{
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// Capabilities by their numbers (`include/uapi/linux/capability.h`).
const DAC_READ_SEARCH: u32 = 2;
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// The main thread loads, attaches, and answers.
const MAIN: [u32; 5] = [BPF, NET_ADMIN, PERFMON, SYS_PTRACE, DAC_READ_SEARCH];
/// A thread that hears from strangers.
const STRANGERS: [u32; 3] = [BPF, SYS_PTRACE, DAC_READ_SEARCH];

fn set(capabilities: &[u32]) -> u64 {
    capabilities.iter().map(|number| 1 << number).sum()
}

/// A thread's name, and its `/proc/PID/task/TID/status`.
struct Thread {
    id: i32,
    name: String,
    status: BTreeMap<String, String>,
}

impl Thread {
    fn capabilities(&self, of: &str) -> u64 {
        u64::from_str_radix(&self.status[of], 16).unwrap()
    }
}

fn threads(culvert: &Culvert<'_>) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{}/task", culvert.pid())).unwrap();
    let threads = tasks.filter_map(|task| {
        let task = task.unwrap();
        // One that has ended by now has nothing any more.
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let status: BTreeMap<_, _> = status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        Some(Thread {
            id: task.file_name().to_str().unwrap().parse().unwrap(),
            name: status["Name"].clone(),
            status,
        })
    });
    threads.collect()
}

const GROUP: &str = "[upstream.web]\nendpoints = [\"192.0.2.1:80\"]\n\
                     [[forward]]\nname = \"web\"\nmatch = { dest = \"203.0.113.1\" }\nvia = \"web\"\n";

/// Threads lower what they may do when they begin, which can be a moment after the daemon says that it is ready; measuring is over
/// sooner or later, and is the only work of a thread that ends.
fn assert_confined(culvert: &Culvert<'_>, main: &[u32], strangers: &[u32]) {
    in_time(|| {
        unconfined(culvert, main, strangers)
            .is_empty()
            .then_some(())
    });
    assert_eq!(unconfined(culvert, main, strangers), [""; 0]);
}

/// What is other than it should be.
fn unconfined(culvert: &Culvert<'_>, main: &[u32], strangers: &[u32]) -> Vec<String> {
    let mut wrong = Vec::new();
    let threads = threads(culvert);
    for thread in &threads {
        let name = thread.name.as_str();
        let allowed = match name {
            "culvert" => set(main),
            "access-log" => 0,
            "groups" => set(&STRANGERS),
            "namespaces" => set(&[SYS_ADMIN, SYS_PTRACE]),
            name if name.starts_with("relay-") => set(strangers),
            name => {
                wrong.push(format!("what is the thread {name} for?"));
                continue;
            }
        };
        // What a program could have that a thread became, were it not for `NoNewPrivs`.
        let enters = threads.iter().any(|thread| thread.name == "namespaces");
        let more = if enters {
            set(&[NET_RAW, SYS_ADMIN])
        } else {
            set(&[NET_RAW])
        };
        let bounding = set(main) | more;
        for (of, expected) in [
            ("CapPrm", allowed),
            ("CapEff", allowed),
            ("CapInh", 0),
            ("CapAmb", 0),
            ("CapBnd", bounding),
        ] {
            let found = thread.capabilities(of);
            if found != expected {
                wrong.push(format!("{of} of {name}: {found:x} and not {expected:x}"));
            }
        }
        if thread.status["NoNewPrivs"] != "1" {
            wrong.push(format!("{name} may get privileges"));
        }
    }
    for expected in ["culvert", "access-log", "groups", "relay-0"] {
        if !threads.iter().any(|thread| thread.name == expected) {
            wrong.push(format!("there is no thread {expected}"));
        }
    }
    wrong
}

#[test]
fn every_thread_has_only_what_it_needs() {
    let sandbox = Sandbox::new();
    sandbox.mounts().mount_bpffs();
    let rules = format!("{GROUP}{ALL}");
    let culvert = sandbox.culvert(&rules);
    assert_confined(&culvert, &MAIN, &STRANGERS);
    // What it has left is enough for all that may come: other rules, a pin, a log that was moved away.
    culvert.reload(&format!("{rules}on_relay_failure = \"refuse\"\n"));
    sandbox.exchange();
    let record = culvert.the_record();
    assert!(record.exe.is_some(), "{record:?}");
    assert_confined(&culvert, &MAIN, &STRANGERS);
}

#[test]
fn what_others_had_open_is_closed() {
    let (read, _write) = nix::unistd::pipe().unwrap();
    let pipe = fs::read_link(format!("/proc/self/fd/{}", read.as_raw_fd())).unwrap();
    let has_it = |pid: u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut files = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
        files.any(|file| file == pipe)
    };
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(ALL);
    assert!(has_it(sandbox.app().pid()), "it is handed on");
    assert!(!has_it(culvert.pid()));
    sandbox.exchange();
    assert_eq!(culvert.the_record().reason, "done");
}

#[test]
fn without_a_file_system_for_pins_the_daemon_may_mount_one() {
    let sandbox = Sandbox::new();
    let culvert = sandbox.culvert(&format!("{GROUP}{ALL}"));
    let main = [&MAIN[..], &[SYS_ADMIN]].concat();
    assert_confined(&culvert, &main, &STRANGERS);
}

#[test]
fn only_threads_that_show_clients_addresses_may_send_from_them() {
    let sandbox = Sandbox::new();
    sandbox.mounts().mount_bpffs();
    let rules = "[[reverse]]\nname = \"site\"\nlisten = \"192.0.2.10:8000\"\nvia = \"127.0.0.1:8000\"\nkeep_source = true\n";
    let culvert = sandbox.culvert(&format!("{GROUP}{rules}"));
    let strangers = [&STRANGERS[..], &[NET_RAW]].concat();
    assert_confined(&culvert, &MAIN, &strangers);
}

#[test]
fn only_the_thread_that_enters_containers_may_do_that() {
    let sandbox = Sandbox::new();
    sandbox.mounts().mount_bpffs();
    let boxes = relayed("boxes", "container = \"0123456789ab\"");
    let rules = format!("{GROUP}{RELAY}{boxes}");
    let culvert = sandbox.culvert(&rules);
    assert_confined(&culvert, &MAIN, &STRANGERS);
    assert!(
        threads(&culvert)
            .iter()
            .any(|thread| thread.name == "namespaces")
    );
}

#[test]
fn a_daemon_one_of_whose_threads_hangs_gives_no_sign_of_life() {
    const ALIVE: &str = "WATCHDOG=1";
    let sandbox = Sandbox::new();
    let settings = Settings {
        watchdog: Some(Duration::from_millis(400)),
        ..Settings::default()
    };
    let culvert = sandbox.culvert_with(&settings, ALL);
    culvert.await_notice(ALIVE);
    culvert.await_notice(ALIVE);

    let threads = threads(&culvert);
    let worker = threads.iter().find(|thread| thread.name == "relay-1");
    let worker = worker.or_else(|| threads.iter().find(|thread| thread.name == "relay-0"));
    let worker = Pid::from_raw(worker.unwrap().id);
    // A signal would stop all of them.
    ptrace::seize(worker, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(worker).unwrap();
    waitpid(worker, Some(WaitPidFlag::__WALL)).unwrap();
    // By and by that is seen; ten times as long as they are apart there is none then.
    eventually("silence", || {
        culvert.has_said(ALIVE);
        std::thread::sleep(Duration::from_secs(1));
        (!culvert.has_said(ALIVE)).then_some(())
    });
    ptrace::detach(worker, None).unwrap();
    culvert.await_notice(ALIVE);
    sandbox.exchange();
    culvert.the_record();
}

#[test]
fn a_service_manager_that_does_not_read_holds_nothing_up() {
    let sandbox = Sandbox::new();
    let settings = Settings {
        watchdog: Some(Duration::from_millis(40)),
        ..Settings::default()
    };
    let culvert = sandbox.culvert_with(&settings, ALL);
    // Ten messages fill its socket, and a hundred are due.
    std::thread::sleep(Duration::from_secs(1));
    sandbox.exchange();
    culvert.the_record();
    culvert.signal(Signal::SIGHUP);
    eventually("a reload", || {
        culvert.log().contains("reloaded").then_some(())
    });
    // It hears of that when it reads.
    culvert.await_notice("RELOADING=1");
    culvert.await_notice("READY=1");
}

#[test]
fn the_service_manager_hears_how_long_an_end_may_take() {
    let sandbox = Sandbox::new();
    let settings = Settings::daemon("drain_timeout = \"7m\"");
    let mut culvert = sandbox.culvert_with(&settings, ALL);
    assert!(culvert.stop().success());
    let time = (Duration::from_mins(7) + Duration::from_secs(10)).as_micros();
    assert!(culvert.has_said(&format!("EXTEND_TIMEOUT_USEC={time}")));
}
