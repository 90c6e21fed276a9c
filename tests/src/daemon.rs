//! A running `culvert run`.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::{
        net::UnixDatagram,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, setrlimit},
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    Sandbox, eventually,
    kernel::{Maps, Objects},
    process::{output, write_private},
    record::CloseRecord,
};

/// What a daemon is started with, beside its rules.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// More lines for the section `[daemon]`.
    pub daemon: String,
    /// The cgroup to attach to, below the root of the hierarchy; the sandbox's own when there is none.
    pub cgroup: Option<String>,
    /// Arguments before `run`.
    pub arguments: Vec<String>,
    /// Its limit of open files, if not the test's.
    pub open_files: Option<u64>,
    /// Its limit of locked memory, in bytes; then it may not raise it.
    pub locked_memory: Option<u64>,
    /// It runs in the cgroup of apps.
    pub among_apps: bool,
    /// It takes the place of the daemon that runs.
    pub takeover: bool,
    /// It writes no close records.
    pub without_access_log: bool,
    /// How long the service manager waits for a sign of life.
    pub watchdog: Option<Duration>,
}

impl Settings {
    /// With more lines for the section `[daemon]`.
    pub fn daemon(lines: &str) -> Self {
        Self {
            daemon: lines.to_owned(),
            ..Self::default()
        }
    }
}

/// A daemon that is stopped when it is dropped.
#[derive(Debug)]
pub struct Culvert<'a> {
    sandbox: &'a Sandbox,
    child: Child,
    settings: Settings,
    files: Files,
    notices: UnixDatagram,
    has_ended: bool,
}

#[derive(Debug)]
struct Files {
    config: PathBuf,
    access_log: PathBuf,
    admin: PathBuf,
    log: PathBuf,
    notices: PathBuf,
}

impl Files {
    fn new(sandbox: &Sandbox) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let file = |kind: &str| sandbox.directory().join(format!("culvert-{number}.{kind}"));
        Self {
            config: file("toml"),
            access_log: file("access"),
            admin: file("admin"),
            log: file("log"),
            notices: file("notify"),
        }
    }
}

impl<'a> Culvert<'a> {
    pub(crate) fn start(sandbox: &'a Sandbox, settings: &Settings, rules: &str) -> Self {
        let culvert = Self::launch(sandbox, settings, rules);
        culvert.await_notice("READY=1");
        culvert.note();
        culvert
    }

    pub(crate) fn launch(sandbox: &'a Sandbox, settings: &Settings, rules: &str) -> Self {
        let files = Files::new(sandbox);
        let notices = UnixDatagram::bind(&files.notices).expect("cannot make the notify socket");
        notices
            .set_nonblocking(true)
            .expect("cannot make the notify socket non-blocking");
        let log = File::create(&files.log).expect("cannot make the log");
        write_private(&files.config, &config(sandbox, settings, &files, rules));
        let mut command = if settings.among_apps {
            sandbox.culvert_command_among_apps()
        } else {
            sandbox.culvert_command()
        };
        if let Some(limit) = settings.open_files {
            limit_files(&mut command, limit);
        }
        if let Some(limit) = settings.locked_memory {
            limit_locked_memory(&mut command, limit);
        }
        let watchdog = settings.watchdog.map(|wait| wait.as_micros().to_string());
        let child = command
            .args(&settings.arguments)
            .arg("run")
            .args(settings.takeover.then_some("--takeover"))
            .arg("--config")
            .arg(&files.config)
            .env("NOTIFY_SOCKET", &files.notices)
            .env_remove("RUST_LOG")
            .envs(watchdog.map(|wait| ("WATCHDOG_USEC", wait)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log)
            .spawn()
            .expect("cannot start culvert");
        Self {
            sandbox,
            child,
            settings: settings.clone(),
            files,
            notices,
            has_ended: false,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its maps in the kernel.
    pub fn maps(&self) -> Maps {
        Maps::of(self.pid())
    }

    /// One counter of the hooks, by its stable name.
    pub fn counter(&self, name: &str) -> u64 {
        self.maps().counter(name)
    }

    /// How much that counter grows by.
    pub fn growth(&self, name: &str, work: impl FnOnce()) -> u64 {
        let before = self.counter(name);
        work();
        self.counter(name) - before
    }

    /// Its IPv4 listeners.
    pub fn listener_v4(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.maps().relay().port_v4.get()).into()
    }

    /// Its IPv6 listeners.
    pub fn listener_v6(&self) -> SocketAddr {
        (Ipv6Addr::LOCALHOST, self.maps().relay().port_v6.get()).into()
    }

    /// Its admin socket.
    pub fn admin(&self) -> &Path {
        &self.files.admin
    }

    /// The file that it writes close records to.
    pub fn access_log(&self) -> &Path {
        &self.files.access_log
    }

    /// What `culvert status` tells of it.
    pub fn status(&self) -> Value {
        let mut command = self.sandbox.culvert_command();
        command
            .args(["status", "--json", "--admin"])
            .arg(self.admin());
        serde_json::from_str(&output(&mut command)).expect("a status")
    }

    /// What it has written to standard output and standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.files.log).unwrap_or_default()
    }

    /// The close records it has written so far, in order.
    pub fn records(&self) -> Vec<CloseRecord> {
        let text = fs::read_to_string(&self.files.access_log).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse = |line| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("not a close record ({error}): {line}"))
        };
        whole.lines().map(parse).collect()
    }

    /// Waits until it has written that many close records, and returns all of them.
    pub fn await_records(&self, count: usize) -> Vec<CloseRecord> {
        eventually(&format!("{count} close records"), || {
            let records = self.records();
            (records.len() >= count).then_some(records)
        })
    }

    /// Waits for its first close record; panics when there are more.
    pub fn the_record(&self) -> CloseRecord {
        let mut records = self.await_records(1);
        assert_eq!(records.len(), 1, "{records:#?}");
        records.remove(0)
    }

    /// Replaces its rules and upstreams, and waits until it has read them.
    pub fn reload(&self, rules: &str) {
        self.rewrite(rules);
        self.signal(Signal::SIGHUP);
        self.await_notice("RELOADING=1");
        self.await_notice("READY=1");
        self.note();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(raw(self.pid()), signal).expect("cannot signal culvert");
    }

    /// Tells it to end, and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        self.note();
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Kills it, so that it can clean up nothing.
    pub fn kill(&mut self) {
        self.note();
        self.signal(Signal::SIGKILL);
        let status = self.wait();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
    }

    /// Stops it wherever it is, and waits until it stands still.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(raw(self.pid())), flags).expect("cannot wait for culvert to stop");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Writes another configuration, without a signal.
    pub fn rewrite(&self, rules: &str) {
        write_private(
            &self.files.config,
            &config(self.sandbox, &self.settings, &self.files, rules),
        );
    }

    /// Removes its configuration.
    pub fn remove_config(&self) {
        fs::remove_file(&self.files.config).expect("cannot remove the configuration");
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let status = eventually("the end of culvert", || {
            self.child.try_wait().expect("cannot wait for culvert")
        });
        self.has_ended = true;
        status
    }

    /// Waits for a message to the service manager; others before it are passed over.
    pub fn await_notice(&self, wanted: &str) {
        let mut buffer = [0; 4096];
        loop {
            let what = format!("{wanted} from culvert");
            let length = eventually(&what, || {
                let received = self.notices.recv(&mut buffer).ok();
                // Asked only when nothing was said: what it said before it ended still counts.
                assert!(
                    received.is_some() || self.is_running(),
                    "culvert ended: {}",
                    self.log()
                );
                received
            });
            let message = String::from_utf8_lossy(&buffer[..length]);
            if message.lines().any(|line| line == wanted) {
                return;
            }
        }
    }

    /// Whether it has said something to the service manager since it was last waited for.
    pub fn has_said(&self, wanted: &str) -> bool {
        let mut buffer = [0; 4096];
        let mut said = false;
        while let Ok(length) = self.notices.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..length]);
            said |= message.lines().any(|line| line == wanted);
        }
        said
    }

    /// Whether the process has not ended.
    pub fn is_running(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        matches!(
            waitid(Id::Pid(raw(self.pid())), flags),
            Ok(WaitStatus::StillAlive)
        )
    }

    /// Programs that are loaded later, by a reload, must be gone at the end as well.
    fn note(&self) {
        self.sandbox.note(Objects::of(self.pid()));
    }
}

impl Drop for Culvert<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of culvert {}\n{}---", self.pid(), self.log());
            let _ = self.child.kill();
            let _ = self.child.wait();
        } else if !self.has_ended {
            let status = self.stop();
            assert!(
                status.success(),
                "culvert ended with {status}: {}",
                self.log()
            );
        }
    }
}

fn limit_files(command: &mut Command, limit: u64) {
    // SAFETY: a single system call, which may be made between fork and exec.
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?));
    }
}

fn limit_locked_memory(command: &mut Command, limit: u64) {
    // Of `linux/capability.h`.
    const CAP_SYS_RESOURCE: libc::c_ulong = 24;
    let work = move || {
        setrlimit(Resource::RLIMIT_MEMLOCK, limit, limit)?;
        // SAFETY: a number, which the kernel keeps; no memory of ours.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_RESOURCE) };
        Ok(Errno::result(dropped).map(drop)?)
    };
    // SAFETY: two system calls, which may be made between fork and exec.
    unsafe { command.pre_exec(work) };
}

fn config(sandbox: &Sandbox, settings: &Settings, files: &Files, rules: &str) -> String {
    let cgroup = settings
        .cgroup
        .as_deref()
        .unwrap_or_else(|| sandbox.cgroup().name());
    // Short if nothing else is said: in many tests apps outlive the daemon.
    let drain_timeout = if settings.daemon.contains("drain_timeout") {
        ""
    } else {
        "drain_timeout = \"500ms\""
    };
    let admin = if settings.daemon.contains("admin") {
        String::new()
    } else {
        format!("admin = \"{}\"", files.admin.display())
    };
    // What is measured at the start would show in the counters, and cost every test half a second of a core.
    let calibrate = if settings.daemon.contains("calibrate") {
        ""
    } else {
        "calibrate = \"demand\""
    };
    let access_log = if settings.without_access_log {
        String::new()
    } else {
        format!(
            "access_log = {{ path = \"{}\", format = \"json\" }}",
            files.access_log.display()
        )
    };
    format!(
        r#"
        [daemon]
        cgroup = "{cgroup}"
        {access_log}
        {admin}
        {calibrate}
        {drain_timeout}
        {}
        {rules}
        "#,
        settings.daemon,
    )
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a process id"))
}
