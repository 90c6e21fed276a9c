//! Running `culvert doctor` and single tests.

use std::{
    fs::{self, File},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use culvert_tests::{doctor, eventually};
use serde_json::{Value, json};

/// A test that takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(2);

const TESTS: &str = "/tests/kernels";
const CULVERT: &str = "/bin/culvert";
/// What `culvert doctor` has said.
const DOCTOR: &str = "/tmp/doctor.json";
/// Where the output of a test is while it runs.
const OUTPUT: &str = "/tmp/output";

/// What culvert says of this kernel; tests can read it, too.
pub(crate) fn examine() -> Value {
    let output = Command::new(CULVERT).args(["doctor", "--json"]).output();
    let output = output.expect("culvert");
    fs::write(DOCTOR, &output.stdout).expect("a file for what it says");
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| json!({ "error": format!("{error}: {} {said}", output.status) }))
}

/// Runs a test and tells how it went; its output only if it failed.
pub(crate) fn run(name: &str) -> Value {
    let output = File::create(OUTPUT).expect("a file for the output");
    let begun = Instant::now();
    let mut child = Command::new(TESTS)
        .args(["--exact", name, "--test-threads=1"])
        .env("CULVERT_BIN", CULVERT)
        .env(eventually::VARIABLE, "60")
        .env(doctor::VARIABLE, DOCTOR)
        .env("PATH", "/bin")
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a second descriptor"))
        .stderr(output)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {TESTS}: {error}"));
    let status = loop {
        match child.try_wait().expect("to wait") {
            None if begun.elapsed() > PATIENCE => {
                child.kill().expect("to kill");
                break child.wait().expect("to wait");
            }
            None => thread::sleep(Duration::from_millis(10)),
            Some(status) => break status,
        }
    };
    let output = fs::read(OUTPUT).unwrap_or_default();
    let output = String::from_utf8_lossy(&output);
    // A name that no test has is no success.
    let passed = status.success() && output.contains(" 1 passed;");
    let milliseconds = begun.elapsed().as_millis();
    let milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX);
    json!({
        "name": name,
        "passed": passed,
        "milliseconds": milliseconds,
        "output": if passed { String::new() } else { format!("{output}({status})") },
    })
}
