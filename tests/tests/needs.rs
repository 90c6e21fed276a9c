//! What rules need of the kernel: from the version on that is declared they work, and before it the daemon does not start and
//! names that version.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use culvert_tests::{
    App, Sandbox,
    app::Route,
    daemon::Settings,
    kernel::{tells_types, version},
    peer::Server,
    rules::{ALL, RELAY},
    sandbox::SERVER_V4,
};

/// Exit code of a daemon that lacks a privilege or a feature of the kernel.
const MISSING: Option<i32> = Some(3);

/// Starts a daemon with rules that need a kernel of this version.
#[track_caller]
fn since((major, minor): (u32, u32), sandbox: &Sandbox, rules: &str) {
    let mut culvert = sandbox.launch(&Settings::default(), rules);
    if version() >= (major, minor) {
        culvert.await_notice("READY=1");
        assert!(culvert.stop().success());
    } else {
        assert_eq!(culvert.wait().code(), MISSING, "{}", culvert.log());
        let needed = format!("{major}.{minor} or newer");
        assert!(culvert.log().contains(&needed), "{}", culvert.log());
    }
}

#[test]
fn arrivals_by_interface() {
    let sandbox = Sandbox::new();
    let rules = "[[reverse]]\nname = \"site\"\nlisten = \"*:80\"\nvia = \"original\"\nmatch = { interface = \"lo\" }\n";
    since((5, 17), &sandbox, rules);
}

/// Whether or not there is one of that name.
#[test]
fn containers_with_networks_of_their_own() {
    let sandbox = Sandbox::new();
    let rule =
        "[[forward]]\nname = \"web\"\nmatch = { container = \"some-web\" }\nvia = \"relay\"\n";
    since((5, 14), &sandbox, &format!("{RELAY}{rule}"));
}

/// What the type information of the kernel is needed for is refused without it, on a kernel of any version.
#[test]
fn executables() {
    let sandbox = Sandbox::new();
    let rules =
        "[[forward]]\nname = \"curl\"\nmatch = { exe = \"/bin/culvert\" }\nvia = \"direct\"\n";
    let mut culvert = sandbox.launch(&Settings::default(), rules);
    if tells_types() {
        culvert.await_notice("READY=1");
        assert!(culvert.stop().success());
    } else {
        assert_eq!(culvert.wait().code(), MISSING, "{}", culvert.log());
        assert!(
            culvert.log().contains("CONFIG_DEBUG_INFO_BTF"),
            "{}",
            culvert.log()
        );
    }
}

/// Before 5.11 the kernel counts maps as locked memory.
#[test]
fn a_little_locked_memory_is_enough_where_maps_do_not_count() {
    let sandbox = Sandbox::new();
    let mirror = sandbox.within(|| Server::mirror((SERVER_V4, 0)));
    let settings = Settings {
        locked_memory: Some(64 << 10),
        ..Settings::default()
    };
    let mut culvert = sandbox.launch(&settings, ALL);
    if version() >= (5, 11) {
        culvert.await_notice("READY=1");
        let app: App = sandbox.app();
        assert_eq!(app.probe(mirror.address()), Ok(Route::Relayed));
    } else {
        assert_eq!(culvert.wait().code(), MISSING, "{}", culvert.log());
        let log = culvert.log();
        assert!(
            log.contains("64 KiB") && log.contains("LimitMEMLOCK=infinity"),
            "{log}"
        );
    }
}
