//! Cgroups on the real file system.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use proxy_userspace::{
    cgroup::{Cgroup2, OwnCgroup, own},
    watch::{Watched, Watcher},
};
use tokio::time::timeout;

use crate::harness::{DEADLINE, culvert_sh, eventually, gone, stderr};

tests![
    an_own_cgroup_holds_whom_it_is_given_and_goes_with_them,
    without_cgroup_kill_everybody_is_killed_too,
    it_is_told_when_the_last_process_leaves,
    a_cgroup_that_somebody_else_removed_is_empty,
    cgroups_the_command_made_are_removed_with_it,
    a_unit_that_starts_restarts_and_stops_is_noticed,
];

/// An own cgroup in one that no other test uses: theirs would sweep it, for there is no process of this number.
struct Fixture {
    parent: PathBuf,
    cgroups: Cgroup2,
    own: Option<OwnCgroup>,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let cgroups = Cgroup2::find().unwrap();
        let name = format!("culvert-test-{name}-{}", std::process::id());
        let parent = cgroups.own_dir().unwrap().join(name);
        fs::create_dir(&parent).unwrap();
        let own = OwnCgroup::create(&cgroups, parent.join("culvert-exec-1")).unwrap();
        Self {
            parent,
            cgroups,
            own: Some(own),
        }
    }

    fn own(&self) -> &OwnCgroup {
        self.own.as_ref().unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.own.take());
        fs::remove_dir(&self.parent).unwrap();
    }
}

fn sleeper() -> std::process::Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

fn an_own_cgroup_holds_whom_it_is_given_and_goes_with_them() {
    let mut fixture = Fixture::new("holds");
    let (cgroups, own) = (fixture.cgroups.clone(), fixture.own.take().unwrap());
    let mut child = sleeper();
    assert!(!own.is_populated().unwrap());
    own.place(child.id()).unwrap();
    assert!(own.is_populated().unwrap());
    assert!(own.holds(child.id()));
    assert!(!own.holds(std::process::id()));
    let cgroup = own.cgroup().clone();
    let reference = cgroup.path.to_str().unwrap().parse().unwrap();
    assert_eq!(cgroups.resolve(&reference), std::slice::from_ref(&cgroup));
    assert_eq!(cgroups.by_id(cgroup.id), Some(cgroup.clone()));
    // Dropped like this when culvert fails half-way.
    let dir = own.dir().to_owned();
    drop(own);
    assert!(!dir.exists());
    assert!(!child.wait().unwrap().success());
    assert_eq!(cgroups.by_id(cgroup.id), None);
}

fn without_cgroup_kill_everybody_is_killed_too() {
    let mut fixture = Fixture::new("kill");
    let own = fixture.own();
    // A tree of processes that forks all the time.
    let mut child = Command::new("sh")
        .args([
            "-c",
            "read go; while :; do (sleep 0.01; sleep 0.01) & sleep 0.01; done",
        ])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    own.place(child.id()).unwrap();
    drop(child.stdin.take());
    let procs = own.dir().join("cgroup.procs");
    eventually("it has forked", || {
        fs::read_to_string(&procs).unwrap().lines().count() > 2
    });
    own::kill_each(own.dir()).unwrap();
    child.wait().unwrap();
    fixture.own.take().unwrap().remove().unwrap();
}

fn it_is_told_when_the_last_process_leaves() {
    let fixture = Fixture::new("emptied");
    let own = fixture.own();
    let mut children = [sleeper(), sleeper()];
    for child in &children {
        own.place(child.id()).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let [first, second] = &mut children;
        first.kill().unwrap();
        first.wait().unwrap();
        let early = timeout(Duration::from_millis(100), own.emptied()).await;
        assert!(early.is_err(), "one is left");
        // From now on the waiting is what sees the end.
        let emptied = own.emptied();
        tokio::pin!(emptied);
        tokio::select! {
            biased;
            _ = &mut emptied => panic!("one is left"),
            () = tokio::task::yield_now() => second.kill().unwrap(),
        }
        timeout(DEADLINE, emptied).await.unwrap().unwrap();
        second.wait().unwrap();
    });
}

fn a_cgroup_that_somebody_else_removed_is_empty() {
    let fixture = Fixture::new("removed");
    let own = fixture.own();
    let mut child = sleeper();
    own.place(child.id()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let emptied = own.emptied();
        tokio::pin!(emptied);
        tokio::select! {
            biased;
            _ = &mut emptied => panic!("one is left"),
            () = tokio::task::yield_now() => {}
        }
        // All of it before the wait is polled again, as by the sweep of another culvert.
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("it is removed", || fs::remove_dir(own.dir()).is_ok());
        timeout(DEADLINE, emptied).await.unwrap().unwrap();
    });
}

fn cgroups_the_command_made_are_removed_with_it() {
    let mount = Cgroup2::find().unwrap().mount().display().to_string();
    let output = culvert_sh(&format!(
        "own={mount}$(sed -n s/^0:://p /proc/self/cgroup) && mkdir -p $own/a/b || exit; \
         sleep 1000 >&- & echo $! > $own/a/b/cgroup.procs; echo $!"
    ))
    .output()
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let leftover = text
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{}", stderr(&output)));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    assert!(gone(leftover));
}

fn a_unit_that_starts_restarts_and_stops_is_noticed() {
    let cgroups = Cgroup2::find().unwrap();
    let slice = cgroups
        .own_dir()
        .unwrap()
        .join(format!("culvert-test-{}.slice", std::process::id()));
    let name = format!("culvert-test-{}.service", std::process::id());
    let unit = slice.join(&name);
    let service = Watched::Cgroup(name.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut watcher = Watcher::new(cgroups.clone(), vec![service.clone()]);
        fs::create_dir_all(&unit).unwrap();
        told(&mut watcher, &service).await;
        let first = cgroups.at(&unit).unwrap();
        fs::remove_dir(&unit).unwrap();
        fs::create_dir(&unit).unwrap();
        told(&mut watcher, &service).await;
        assert_ne!(cgroups.at(&unit).unwrap().id, first.id);
        fs::remove_dir(&unit).unwrap();
        told(&mut watcher, &service).await;
    });
    fs::remove_dir(&slice).unwrap();
}

/// A change, or several in a row: going and coming back may be seen as two.
async fn told(watcher: &mut Watcher, name: &Watched) {
    let change = timeout(DEADLINE, watcher.next()).await.unwrap();
    assert_eq!(change.names, std::slice::from_ref(name));
    while timeout(Duration::from_millis(300), watcher.next())
        .await
        .is_ok()
    {}
}
