use std::slice;

use serde_json::json;

use super::*;
use crate::kernels::{
    guests::{GUESTS, TESTS},
    table,
};

const RELEASE: &str = "6.1.0-56-cloud-amd64";

fn kernel() -> Kernel {
    Kernel {
        series: "6.1",
        release: RELEASE.to_owned(),
        version: "6.1.192".to_owned(),
        folder: "".into(),
        image: "".into(),
        modules: "".into(),
    }
}

/// A program as the doctor tells of it.
fn program(name: &str) -> Value {
    json!({"name": name, "works": true, "instructions": 9, "verified_instructions": 8, "load_ms": 1.0, "refusal": null})
}

/// What a guest says whose kernel has all, and whose one test passed.
fn lines() -> Vec<Value> {
    vec![
        json!({"release": RELEASE, "uptime": 3.0}),
        json!({"clock": "tsc", "uptime": 4.0}),
        json!({
            "doctor": {
                "programs": PROGRAMS.map(program),
                "checks": [{"id": "sockmap", "status": "ok", "found": "every test of it passes"}],
            },
            "uptime": 9.0,
        }),
        json!({"name": TESTS[0].name, "passed": true, "milliseconds": 1500, "output": "", "uptime": 10.5}),
        json!({"end": true, "uptime": 11.0}),
    ]
}

fn read_with(lines: &[Value], hung: bool) -> Report {
    let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
    let output = Output {
        console: "first line\nKernel panic".to_owned(),
        report: lines.join("\n"),
        hung,
    };
    Report::read(&GUESTS[1], &kernel(), &[&TESTS[0]], &output)
}

/// The one failure of a report, which the whole run ends with.
fn failure(report: Report) -> String {
    let failures = table::failures(&[report]);
    assert_eq!(failures.len(), 1, "{failures:?}");
    failures.concat()
}

#[test]
fn what_went_well_is_no_failure_and_in_the_table() {
    let report = read_with(&lines(), false);
    assert_eq!(report.failures(), Vec::<String>::new());
    assert_eq!(report.uptimes, [Some(4.0), Some(9.0), Some(11.0)]);
    let text = table::text(slice::from_ref(&report));
    assert!(
        text.contains("9 8 1.0") && text.contains(" 1.5\n") && text.contains(" on\n"),
        "{text}"
    );
    assert_eq!(
        table::counted(&[report]),
        format!(
            "1 guests, {} programs loaded, 1 tests passed",
            PROGRAMS.len()
        )
    );
}

#[test]
fn a_guest_that_hangs_or_dies_fails_with_the_end_of_its_console() {
    let mut lines = lines();
    lines.truncate(3);
    let hung = failure(read_with(&lines, true));
    assert!(
        hung.contains("the guest hung") && hung.ends_with("Kernel panic"),
        "{hung}"
    );
    let died = failure(read_with(&lines, false));
    assert!(
        died.contains("the guest died") && died.ends_with("Kernel panic"),
        "{died}"
    );
    assert!(table::text(&[read_with(&lines, true)]).contains("DID NOT RUN"));
}

#[test]
fn a_refused_program_fails_with_what_the_verifier_says() {
    let mut lines = lines();
    let first = &mut lines[2]["doctor"]["programs"][0];
    first["works"] = false.into();
    first["refusal"] = "R1 invalid mem access".into();
    let report = read_with(&lines, false);
    assert!(table::text(slice::from_ref(&report)).contains("REFUSED"));
    let failure = failure(report);
    assert!(
        failure.contains(PROGRAMS[0]) && failure.ends_with("R1 invalid mem access"),
        "{failure}"
    );
}

#[test]
fn a_program_that_takes_long_to_verify_fails() {
    let mut lines = lines();
    lines[2]["doctor"]["programs"][0]["verified_instructions"] = (MOST_VERIFIED + 1).into();
    assert!(failure(read_with(&lines, false)).contains("the verifier goes through"));
}

#[test]
fn programs_must_be_all_there_are() {
    let mut lines = lines();
    lines[2]["doctor"]["programs"] = json!([]);
    assert!(failure(read_with(&lines, false)).contains("tried other programs"));
    lines[2]["doctor"] = json!({"error": "no JSON"});
    assert!(failure(read_with(&lines, false)).contains("no JSON"));
}

#[test]
fn what_is_missing_fails() {
    let mut lines = lines();
    lines[2]["doctor"]["checks"][0]["status"] = "missing".into();
    assert!(failure(read_with(&lines, false)).contains("sockmap: every test"));
}

#[test]
fn a_test_that_fails_or_is_not_heard_of_fails() {
    let mut failed = lines();
    failed[3]["passed"] = false.into();
    failed[3]["output"] = "assertion failed".into();
    assert!(failure(read_with(&failed, false)).ends_with("assertion failed"));
    let mut missing = lines();
    missing.remove(3);
    assert!(failure(read_with(&missing, false)).ends_with("did not run"));
}

#[test]
fn another_kernel_fails() {
    let mut lines = lines();
    lines[0]["release"] = "6.1.0-9-cloud-amd64".into();
    assert!(failure(read_with(&lines, false)).contains("and not 6.1.0-56"));
}
