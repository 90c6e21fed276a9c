use std::{fs, os::unix::fs::symlink};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// A change on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Long enough for an event and the look after it.
const QUIET: Duration = Duration::from_millis(300);

fn watcher(names: Vec<Watched>) -> Watcher {
    Watcher::new(Cgroup2::pretended(Path::new("/nonexistent")), names)
}

async fn next(watcher: &mut Watcher) -> Vec<Watched> {
    let change = timeout(SOON, watcher.next()).await;
    change.expect("a change is told").names
}

async fn quiet(watcher: &mut Watcher) {
    let change = timeout(QUIET, watcher.next()).await;
    assert_eq!(change.ok(), None);
}

/// Lets the watcher work until it watches this many directories, without telling a change.
async fn armed(watcher: &mut Watcher, count: usize) {
    let deadline = Instant::now() + SOON;
    while watcher.notices.armed_count() != count {
        assert!(Instant::now() < deadline, "{:?}", watcher.notices);
        let change = timeout(SETTLE, watcher.next()).await;
        assert_eq!(change.ok(), None);
    }
}

fn exe_in(dir: &TempDir, path: &str) -> Watched {
    Watched::Exe(dir.path().join(path))
}

#[tokio::test]
async fn an_upgrade_by_rename_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("app"), "1").unwrap();
    let app = exe_in(&dir, "app");
    let mut watcher = watcher(vec![app.clone(), Watched::Exe("/bin/sh".into())]);
    fs::write(dir.path().join("app.new"), "2").unwrap();
    quiet(&mut watcher).await;
    fs::rename(dir.path().join("app.new"), dir.path().join("app")).unwrap();
    assert_eq!(next(&mut watcher).await, [app]);
    quiet(&mut watcher).await;
}

#[tokio::test]
async fn an_executable_is_found_when_its_directories_appear_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let app = exe_in(&dir, "a/b/app");
    let mut watcher = watcher(vec![app.clone()]);
    fs::create_dir(dir.path().join("a")).unwrap();
    quiet(&mut watcher).await;
    fs::create_dir(dir.path().join("a/b")).unwrap();
    quiet(&mut watcher).await;
    fs::write(dir.path().join("a/b/app"), "1").unwrap();
    assert_eq!(next(&mut watcher).await, std::slice::from_ref(&app));
    fs::remove_dir_all(dir.path().join("a")).unwrap();
    assert_eq!(next(&mut watcher).await, [app]);
}

#[tokio::test]
async fn a_switched_link_on_the_way_is_another_executable() {
    let dir = tempfile::tempdir().unwrap();
    for version in ["v1", "v2"] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("app"), version).unwrap();
    }
    symlink("v1", dir.path().join("current")).unwrap();
    let app = exe_in(&dir, "current/app");
    let mut watcher = watcher(vec![app.clone()]);
    symlink("v2", dir.path().join("next")).unwrap();
    fs::rename(dir.path().join("next"), dir.path().join("current")).unwrap();
    assert_eq!(next(&mut watcher).await, std::slice::from_ref(&app));
    // And the directory behind the new link is watched now.
    fs::remove_file(dir.path().join("v2/app")).unwrap();
    assert_eq!(next(&mut watcher).await, [app]);
}

#[tokio::test]
async fn links_that_lead_in_a_circle_end() {
    let dir = tempfile::tempdir().unwrap();
    symlink("b", dir.path().join("a")).unwrap();
    symlink("a", dir.path().join("b")).unwrap();
    let mut watcher = watcher(vec![exe_in(&dir, "a")]);
    quiet(&mut watcher).await;
}

#[tokio::test]
async fn directories_that_are_not_asked_for_any_more_are_not_watched() {
    let dir = tempfile::tempdir().unwrap();
    let mut watcher = watcher(vec![exe_in(&dir, "a/b/app")]);
    let before = watcher.notices.armed_count();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    armed(&mut watcher, before + 2).await;
    fs::remove_dir_all(dir.path().join("a")).unwrap();
    armed(&mut watcher, before).await;
}

#[tokio::test]
async fn a_unit_is_told_wherever_it_starts_restarts_and_stops() {
    let (tree, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let unit = Watched::Cgroup("db.service".parse().unwrap());
    let path = Watched::Cgroup("system.slice/db.service".parse().unwrap());
    let names = vec![unit.clone(), path.clone()];
    let mut watcher = Watcher::new(Cgroup2::pretended(tree.path()), names);
    let system = tree.path().join("system.slice/db.service");
    let user = tree.path().join("user.slice/u.slice/db.service");

    fs::create_dir_all(&user).unwrap();
    assert_eq!(next(&mut watcher).await, std::slice::from_ref(&unit));
    fs::create_dir_all(&system).unwrap();
    assert_eq!(next(&mut watcher).await, [unit.clone(), path.clone()]);
    // A restart that is over before anybody looks: the same name with another id.
    let again = elsewhere.path().join("again");
    fs::create_dir(&again).unwrap();
    fs::rename(again, &system).unwrap();
    assert_eq!(next(&mut watcher).await, [unit.clone(), path]);
    fs::remove_dir(&user).unwrap();
    assert_eq!(next(&mut watcher).await, [unit]);
    // A child of the unit changes nothing.
    fs::create_dir(system.join("child")).unwrap();
    quiet(&mut watcher).await;
}

#[tokio::test(start_paused = true)]
async fn without_inotify_the_clock_tells() {
    let dir = tempfile::tempdir().unwrap();
    let app = exe_in(&dir, "app");
    let mut watcher = watcher(vec![app.clone()]);
    watcher.notices = Notices::blinded();
    fs::write(dir.path().join("app"), "1").unwrap();
    assert_eq!(next(&mut watcher).await, [app]);
}

#[tokio::test(start_paused = true)]
async fn nothing_to_watch_never_changes() {
    quiet(&mut watcher(Vec::new())).await;
}
