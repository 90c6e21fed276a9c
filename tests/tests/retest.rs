//! A path that has failed its self-test is tested again by a reload: what was wrong may have been the moment.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use culvert_tests::{
    Sandbox,
    daemon::{Culvert, Settings},
    eventually,
    process::attempt,
    rules::ALL,
};
use serde_json::Value;

/// What the daemon says of a path.
fn told(sandbox: &Sandbox, culvert: &Culvert<'_>, path: &str) -> Value {
    let mut command = sandbox.culvert_command();
    command.args(["status", "--json", "--admin"]);
    let output = attempt(command.arg(culvert.admin()));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let paths = told["paths"].as_array().unwrap();
    let path = paths.iter().find(|told| told["path"] == path);
    path.unwrap().clone()
}

/// Nobody can connect to loopback addresses, where self-tests have their own connections.
fn close_loopback(sandbox: &Sandbox) {
    for command in [
        "add table inet closed",
        "add chain inet closed input { type filter hook input priority 0 ; }",
        "add rule inet closed input ip daddr 127.0.0.1 tcp flags syn reject with tcp reset",
    ] {
        sandbox.netns().tool("nft", command);
    }
}

/// A path is off, a reload finds that it is still so, and the next that it is not any more.
fn is_tested_again(path: &str, settings: &str) {
    let rules = format!("{ALL}path = \"{path}\"\n");
    let sandbox = Sandbox::new();
    close_loopback(&sandbox);
    let culvert = sandbox.culvert_with(&Settings::daemon(settings), &rules);
    let shown = match path {
        "auto" => "sockmap",
        "shortcut-without-fionread" => "shortcut",
        path => path,
    };
    let is_usable = |usable: bool| {
        let what = format!("{shown} to be usable: {usable}");
        eventually(&what, || {
            let told = told(&sandbox, &culvert, shown);
            (told["usable"] == usable).then_some(told)
        })
    };
    let failed = is_usable(false);
    assert!(failed["failed"].is_string(), "{failed}");
    let failures = |culvert: &Culvert<'_>| culvert.log().matches("cannot test").count();
    let before = failures(&culvert);
    culvert.reload(&rules);
    eventually("another test", || {
        (failures(&culvert) > before).then_some(())
    });
    assert_eq!(is_usable(false)["failed"], failed["failed"]);
    sandbox.netns().tool("nft", "delete table inet closed");
    // Until the test before is over.
    let passed = eventually("the path to be usable", || {
        culvert.reload(&rules);
        let told = told(&sandbox, &culvert, shown);
        (told["usable"] == true).then_some(told)
    });
    assert_ne!(passed["failed"], failed["failed"]);
    sandbox.exchange();
    assert_eq!(culvert.the_record().reason, "done");
}

#[test]
fn the_sockmap_path_for_a_rule_that_asks_for_it() {
    is_tested_again("sockmap", "promote = { bytes = \"0B\", reads = 0 }");
}

#[test]
fn the_sockmap_path_for_a_rule_that_leaves_the_choice() {
    is_tested_again("auto", "calibrate = \"start\"");
}

#[test]
fn the_shortcut() {
    is_tested_again("shortcut-without-fionread", "");
}
