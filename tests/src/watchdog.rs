//! Ends a test process in which a test hangs: a run has to end by itself, and to say which test it was.
//!
//! A thread that hangs cannot be made to panic. So all tests of its process end with it, and what they have started.

use std::{
    env,
    io::{self, Write},
    path::PathBuf,
    process,
    sync::{
        Arc, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{cgroup, eventually::patience};

/// Many waits in vain, one after the other, are none.
const PATIENCES: u32 = 20;

/// The variable that says how many seconds a test may take instead.
const VARIABLE: &str = "CULVERT_TEST_LIMIT";

/// What libtest exits with when a test has failed.
const FAILED: i32 = 101;

static RUNNING: Mutex<Vec<Arc<Running>>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Running {
    test: String,
    begun: Instant,
    /// Beyond what every test may take.
    seconds_more: AtomicU64,
    cgroup: PathBuf,
}

/// A test that is watched until this goes.
#[derive(Debug)]
pub(crate) struct Watched(Option<Arc<Running>>);

impl Watched {
    /// Watches the test on this thread, which runs programs in a cgroup. One that is no test takes the time it takes.
    pub(crate) fn new(cgroup: PathBuf) -> Self {
        static WATCHDOG: Once = Once::new();
        let current = thread::current();
        let Some(test) = current.name().filter(|name| *name != "main") else {
            return Self(None);
        };
        let test = Arc::new(Running {
            test: test.to_owned(),
            begun: Instant::now(),
            seconds_more: AtomicU64::new(0),
            cgroup,
        });
        running().push(Arc::clone(&test));
        WATCHDOG.call_once(|| drop(thread::spawn(watch)));
        Self(Some(test))
    }

    /// This one is meant to take longer.
    pub(crate) fn allow(&self, more: Duration) {
        if let Self(Some(test)) = self {
            test.seconds_more.fetch_add(more.as_secs(), Relaxed);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(ended) = &self.0 {
            running().retain(|test| !Arc::ptr_eq(test, ended));
        }
    }
}

fn running() -> MutexGuard<'static, Vec<Arc<Running>>> {
    // A panic cannot leave it half-changed.
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch() {
    let seconds = env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    let limit = seconds.map_or(patience() * PATIENCES, Duration::from_secs);
    loop {
        thread::sleep(Duration::from_secs(1));
        let running = running();
        let hanging = running.iter().find(|test| {
            test.begun.elapsed() > limit + Duration::from_secs(test.seconds_more.load(Relaxed))
        });
        if let Some(hanging) = hanging {
            let (test, taken) = (&hanging.test, hanging.begun.elapsed());
            // Not by a macro: libtest would keep what it prints.
            _ = writeln!(io::stderr(), "{test} hangs: it has taken {taken:?}");
            for test in running.iter() {
                cgroup::end(&test.cgroup);
            }
            process::exit(FAILED);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::Sandbox;

    /// Whoever finds it set is the process that is to hang.
    const HANGS: &str = "CULVERT_TEST_HANGS";

    #[test]
    fn a_test_that_hangs_is_named_and_leaves_nothing() {
        if env::var_os(HANGS).is_some() {
            let sandbox = Sandbox::new();
            let sleep = sandbox.command("sleep").arg("1000").spawn();
            // Not by a macro: libtest would keep what it prints.
            _ = writeln!(io::stdout(), "{}", sandbox.cgroup().path().display());
            _ = sleep.expect("a program that hangs").wait();
            loop {
                thread::park();
            }
        }
        let this = thread::current().name().expect("a test").to_owned();
        let ended = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", &this])
            .env(HANGS, "1")
            .env(VARIABLE, "0")
            .output()
            .expect("a process that hangs");
        let [said, complaint] =
            [&ended.stdout, &ended.stderr].map(|text| String::from_utf8_lossy(text));
        assert_eq!(ended.status.code(), Some(FAILED), "{said}{complaint}");
        assert!(complaint.contains(&format!("{this} hangs")), "{complaint}");
        let cgroup = said.lines().find(|line| line.starts_with('/'));
        let cgroup = PathBuf::from(cgroup.expect("the path of a cgroup"));
        assert!(!cgroup.exists(), "{}", cgroup.display());
    }
}
