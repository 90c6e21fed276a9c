//! The first process of a virtual machine that tests culvert on another kernel: `cargo xtask test --kernels` packs it with
//! everything else, boots it, and reads what it reports.
//!
//! It reads `/plan.json` and writes a line of JSON to the second serial port for each thing that it did. The last line says that
//! it came to the end.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a panic with its context ends the machine, and is on its console"
)]

mod machine;
mod setting;
mod tests;

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    process::{self, Command},
};

use serde::Deserialize;
use serde_json::{Value, json};

/// The second serial port.
const REPORT: &str = "/dev/ttyS1";

fn main() {
    if process::id() == 1 {
        machine::be_first_process(&mut Command::new("/init"));
    }
    let mut report = Report::open();
    report.say(json!({ "release": machine::release() }));
    let plan = plan();
    machine::set_up(&plan);
    setting::verify(&plan.setting);
    report.say(json!({ "set_up": true, "clock": machine::clock() }));
    report.say(json!({ "doctor": tests::examine() }));
    for test in &plan.tests {
        report.say(tests::run(test));
    }
    report.say(json!({ "end": true }));
}

/// What is to be done.
#[derive(Debug, Deserialize)]
struct Plan {
    modules: Vec<String>,
    setting: Setting,
    tests: Vec<String>,
}

/// What the machine is to be.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Setting {
    cgroups: Cgroups,
    has_ipv6: bool,
    has_types: bool,
    is_confidential: bool,
    /// Where it matters.
    locked_memory: Option<u64>,
}

/// Where control groups are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Cgroups {
    Pure,
    Hybrid,
    Private,
}

fn plan() -> Plan {
    let file = File::open("/plan.json").expect("a plan");
    serde_json::from_reader(file).expect("a plan in JSON")
}

struct Report {
    port: File,
}

impl Report {
    fn open() -> Self {
        let port = OpenOptions::new().write(true).open(REPORT);
        Self {
            port: port.expect("the second serial port"),
        }
    }

    /// Also says since how many seconds the machine is up, so that it can be seen what takes its time.
    fn say(&mut self, mut what: Value) {
        if let Value::Object(fields) = &mut what {
            fields.insert("uptime".to_owned(), json!(machine::uptime().as_secs_f64()));
        }
        writeln!(self.port, "{what}").expect("to report");
    }
}
