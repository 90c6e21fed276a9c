//! Rules that name executables: the file that runs is what counts, not its name, its arguments or who started it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use culvert_tests::{
    App, Sandbox,
    app::{Result, Route, protocol::Call},
    eventually,
    peer::Server,
    process::app_binary,
    rules::{RELAY, relayed},
    sandbox::SERVER_V4,
};

const RELAYED: Result<Route> = Ok(Route::Relayed);
const DIRECT: Result<Route> = Ok(Route::Direct);

/// A sandbox with a mirror, and an executable that rules name.
struct Setting {
    sandbox: Sandbox,
    mirror: Server,
    named: PathBuf,
}

impl Setting {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        Self {
            mirror: sandbox.within(|| Server::mirror((SERVER_V4, 80))),
            named: sandbox.directory().join("named"),
            sandbox,
        }
    }

    /// A rule that names executables.
    fn rule(names: &[&Path]) -> String {
        let names: Vec<_> = names
            .iter()
            .map(|name| format!("\"{}\"", name.display()))
            .collect();
        RELAY.to_owned() + &relayed("exe", &format!("exe = [{}]", names.join(", ")))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.directory().join(name)
    }

    /// A copy of the app.
    fn copy(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::copy(app_binary(), &path).expect("a copy of the app");
        path
    }

    fn start(&self, program: &Path) -> App {
        App::start(&mut self.sandbox.command(program))
    }

    fn probe(&self, app: &App) -> Result<Route> {
        app.probe(self.mirror.address())
    }

    /// Which way the connections of a new process go.
    fn probe_new(&self, program: &Path) -> Result<Route> {
        self.probe(&self.start(program))
    }
}

#[test]
fn one_file_and_not_its_copy() {
    let setting = Setting::new();
    let (named, copy) = (setting.copy("named"), setting.copy("copy"));
    let culvert = setting.sandbox.culvert(&Setting::rule(&[&named]));
    assert_eq!(setting.probe_new(&named), RELAYED);
    assert_eq!(setting.probe_new(&copy), DIRECT);
    assert_eq!(culvert.the_record().exe, named.to_str().map(str::to_owned));
}

#[test]
fn an_exclusion() {
    let setting = Setting::new();
    let (named, copy) = (setting.copy("named"), setting.copy("copy"));
    let rule = RELAY.to_owned() + &relayed("exe", &format!("exe = \"!{}\"", named.display()));
    let _culvert = setting.sandbox.culvert(&rule);
    assert_eq!(setting.probe_new(&named), DIRECT);
    assert_eq!(setting.probe_new(&copy), RELAYED);
}

#[test]
fn its_threads_and_its_children() {
    let setting = Setting::new();
    let named = setting.copy("named");
    let _culvert = setting.sandbox.culvert(&Setting::rule(&[&named]));
    let app = setting.start(&named);
    let probe = Call::Probe(setting.mirror.address());
    for call in [
        probe.clone().in_thread(),
        probe.clone().in_child(),
        probe.in_child().in_thread(),
    ] {
        assert_eq!(app.probe_by(&call), RELAYED, "{call:?}");
    }
}

#[test]
fn what_it_executes_is_another_program() {
    let setting = Setting::new();
    let (named, other) = (setting.copy("named"), setting.copy("other"));
    let _culvert = setting.sandbox.culvert(&Setting::rule(&[&named]));
    // A shell of another path executes it, and is executed by it.
    let shell = |path: &Path| {
        let mut command = setting.sandbox.command("sh");
        command.arg("-c").arg(format!("exec {}", path.display()));
        App::start(&mut command)
    };
    assert_eq!(setting.probe(&shell(&named)), RELAYED);
    assert_eq!(setting.probe(&shell(&other)), DIRECT);
}

#[test]
fn by_a_symbolic_link() {
    let setting = Setting::new();
    let (named, link) = (setting.copy("named"), setting.path("link"));
    symlink(&named, &link).unwrap();
    let _culvert = setting.sandbox.culvert(&Setting::rule(&[&link]));
    assert_eq!(setting.probe_new(&named), RELAYED);
    assert_eq!(setting.probe_new(&link), RELAYED);
}

#[test]
fn a_hard_link_is_the_same_file() {
    let setting = Setting::new();
    let (named, link) = (setting.copy("named"), setting.path("link"));
    fs::hard_link(&named, &link).unwrap();
    let _culvert = setting.sandbox.culvert(&Setting::rule(&[&named]));
    assert_eq!(setting.probe_new(&link), RELAYED);
}

#[test]
fn renamed_while_it_runs() {
    let setting = Setting::new();
    let named = setting.copy("named");
    let _culvert = setting.sandbox.culvert(&Setting::rule(&[&named]));
    let running = setting.start(&named);
    assert_eq!(setting.probe(&running), RELAYED);
    fs::rename(&named, setting.path("renamed")).unwrap();
    assert_eq!(setting.probe(&running), RELAYED);
}

#[test]
fn upgraded_while_it_runs() {
    let setting = Setting::new();
    let named = setting.copy("named");
    let culvert = setting.sandbox.culvert(&Setting::rule(&[&named]));
    let old = setting.start(&named);
    assert_eq!(setting.probe(&old), RELAYED);
    // As a package manager does it.
    fs::rename(setting.copy("named.new"), &named).unwrap();
    eventually("the upgrade to be noticed", || {
        (setting.probe_new(&named) == RELAYED).then_some(())
    });
    assert_eq!(setting.probe(&old), RELAYED, "the old file still runs");
    assert!(culvert.log().contains("rules updated"), "{}", culvert.log());
}

#[test]
fn installed_later() {
    let setting = Setting::new();
    let culvert = setting.sandbox.culvert(&Setting::rule(&[&setting.named]));
    let expected = format!("there is no executable {} yet", setting.named.display());
    assert!(culvert.log().contains(&expected), "{}", culvert.log());
    fs::rename(setting.copy("copy"), &setting.named).unwrap();
    eventually("the executable to be noticed", || {
        (setting.probe_new(&setting.named) == RELAYED).then_some(())
    });
}

#[test]
fn of_a_script_its_interpreter_counts() {
    let setting = Setting::new();
    let interpreter = setting.copy("interpreter");
    let script = setting.path("script");
    fs::write(&script, format!("#!{}\n", interpreter.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let culvert = setting.sandbox.culvert(&Setting::rule(&[&script]));
    assert_eq!(setting.probe_new(&script), DIRECT);
    culvert.reload(&Setting::rule(&[&interpreter]));
    assert_eq!(setting.probe_new(&script), RELAYED);
}

#[test]
fn in_another_mount_namespace_the_same_file() {
    let setting = Setting::new();
    let named = setting.copy("named");
    let elsewhere = setting.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let _culvert = setting.sandbox.culvert(&Setting::rule(&[&named]));
    // Under another name, as a container sees a file of the host.
    let script = format!(
        "mount --bind {} {} && exec {}/named",
        setting.sandbox.directory().display(),
        elsewhere.display(),
        elsewhere.display()
    );
    let mut command = setting.sandbox.command("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    assert_eq!(setting.probe(&App::start(&mut command)), RELAYED);
}
