//! What a guest reported, and what is wrong with it.

use std::collections::BTreeSet;

use proxy_common::names::PROGRAMS;
use serde_json::Value;

use super::{
    archive::Kernel,
    guests::{Guest, Test},
    qemu::Output,
};

/// A tenth of what a verifier goes through before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS` in `include/linux/bpf.h`): other kernels
/// need more, and it is time at every start.
const MOST_VERIFIED: u64 = 100_000;

/// All about one guest.
#[derive(Clone)]
pub(super) struct Report {
    /// What is special about it.
    pub(super) setting: &'static str,
    /// Its kernel's version.
    pub(super) version: String,
    /// What the kernel says of each program.
    pub(super) programs: Vec<Program>,
    /// What culvert says of this kernel, by what it looked at.
    pub(super) checks: Vec<Check>,
    /// In the order of the table of tests.
    pub(super) tests: Vec<Ran>,
    /// For how many seconds it was up when it had done each of [`STAGES`].
    pub(super) uptimes: [Option<f64>; STAGES.len()],
    /// Why there is no whole report.
    pub(super) broken: Option<String>,
}

/// The stages of a guest, and what is said when one is over.
pub(super) const STAGES: [(&str, &str); 3] = [
    ("booted", "clock"),
    ("examined", "doctor"),
    ("ended", "end"),
];

/// A program in the kernel.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) name: String,
    /// Loaded, and attached where that takes no more than a cgroup.
    pub(super) works: bool,
    pub(super) instructions: Option<u64>,
    /// Those that the verifier went through, on kernels that tell.
    pub(super) verified: Option<u64>,
    pub(super) milliseconds: f64,
    /// What the verifier said, if it refused.
    pub(super) log: String,
}

/// Something that culvert looked at.
#[derive(Clone)]
pub(super) struct Check {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) found: String,
}

/// A test, and what became of it.
#[derive(Clone)]
pub(super) struct Ran {
    pub(super) test: &'static Test,
    pub(super) outcome: Outcome,
}

#[derive(Clone, PartialEq)]
pub(super) enum Outcome {
    Passed {
        seconds: f64,
    },
    /// The kernel is older than what is tested.
    TooOld,
    Failed {
        output: String,
    },
    /// The guest ended before.
    Missing,
}

impl Report {
    /// Of what a guest left.
    pub(super) fn read(
        guest: &'static Guest,
        kernel: &Kernel,
        tests: &[&'static Test],
        output: &Output,
    ) -> Self {
        let said: Vec<Value> = output
            .report
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let doctor = said.iter().find_map(|line| line.get("doctor"));
        let list = |name: &str| {
            let list = doctor
                .and_then(|doctor| doctor.get(name))
                .and_then(Value::as_array);
            list.into_iter().flatten()
        };
        let outcome = |test: &Test| {
            let is_it = |line: &&Value| text(line, "name") == test.name;
            match said.iter().find(is_it) {
                _ if !test.runs_on(&kernel.release) => Outcome::TooOld,
                None => Outcome::Missing,
                Some(line) if line.get("passed") == Some(&Value::Bool(true)) => Outcome::Passed {
                    seconds: number(line, "milliseconds").unwrap_or(0.0) / 1000.0,
                },
                Some(line) => Outcome::Failed {
                    output: text(line, "output"),
                },
            }
        };
        Self {
            setting: guest.setting,
            version: kernel.version.clone(),
            programs: list("programs").map(Program::read).collect(),
            checks: list("checks").map(Check::read).collect(),
            tests: tests
                .iter()
                .map(|test| Ran {
                    test,
                    outcome: outcome(test),
                })
                .collect(),
            uptimes: STAGES.map(|(_, last)| {
                let line = said.iter().find(|line| line.get(last).is_some())?;
                number(line, "uptime")
            }),
            broken: why_broken(kernel, doctor, &said, output),
        }
    }

    /// The kernel and what is special.
    pub(super) fn title(&self) -> String {
        if self.setting.is_empty() {
            self.version.clone()
        } else {
            format!("{} ({})", self.version, self.setting)
        }
    }

    /// Everything that is not as it should be, each with all that was said of it.
    pub(super) fn failures(&self) -> Vec<String> {
        let title = self.title();
        let broken = self.broken.iter().map(|why| format!("{title}: {why}"));
        let programs = self.programs.iter().filter(|program| !program.works);
        let programs = programs.map(|program| {
            format!(
                "{title}: the kernel refuses {}\n{}",
                program.name, program.log
            )
        });
        let too_long =
            |program: &&Program| program.verified.is_some_and(|count| count > MOST_VERIFIED);
        let long = self.programs.iter().filter(too_long).map(|program| {
            format!(
                "{title}: the verifier goes through {} instructions of {}, which is more than {MOST_VERIFIED}",
                program.verified.unwrap_or(0),
                program.name
            )
        });
        let checks = self.checks.iter().filter(|check| check.status == "missing");
        let checks = checks.map(|check| format!("{title}: {}: {}", check.id, check.found));
        let tests = self.tests.iter().filter_map(|ran| match &ran.outcome {
            Outcome::Failed { output } => {
                Some(format!("{title}: {} failed\n{output}", ran.test.name))
            }
            Outcome::Missing if self.broken.is_none() => {
                Some(format!("{title}: {} did not run", ran.test.name))
            }
            _ => None,
        });
        broken
            .chain(programs)
            .chain(long)
            .chain(checks)
            .chain(tests)
            .collect()
    }
}

impl Program {
    fn read(value: &Value) -> Self {
        let count = |name: &str| value.get(name).and_then(Value::as_u64);
        Self {
            name: text(value, "name"),
            works: value.get("works") == Some(&Value::Bool(true)),
            instructions: count("instructions"),
            verified: count("verified_instructions"),
            milliseconds: number(value, "load_ms").unwrap_or(0.0),
            log: text(value, "refusal"),
        }
    }
}

impl Check {
    fn read(value: &Value) -> Self {
        Self {
            id: text(value, "id"),
            status: text(value, "status"),
            found: text(value, "found"),
        }
    }
}

fn text(value: &Value, name: &str) -> String {
    value
        .get(name)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn number(value: &Value, name: &str) -> Option<f64> {
    value.get(name)?.as_f64()
}

fn why_broken(
    kernel: &Kernel,
    doctor: Option<&Value>,
    said: &[Value],
    output: &Output,
) -> Option<String> {
    /// Lines of the console that are shown.
    const LAST: usize = 40;
    let booted = said.iter().find_map(|line| line.get("release"));
    if !said.iter().any(|line| line.get("end").is_some()) {
        let lines: Vec<_> = output.console.lines().collect();
        let last = lines.len().saturating_sub(LAST);
        let how = if output.hung { "hung" } else { "died" };
        let last = lines.get(last..).unwrap_or_default().join("\n");
        return Some(format!("the guest {how}; the end of its console:\n{last}"));
    }
    if booted.and_then(Value::as_str) != Some(&kernel.release) {
        return Some(format!(
            "the guest runs {booted:?} and not {}",
            kernel.release
        ));
    }
    let doctor = doctor.cloned().unwrap_or_default();
    if let Some(error) = doctor.get("error") {
        return Some(format!("culvert doctor: {error}"));
    }
    let programs = doctor.get("programs").and_then(Value::as_array);
    let tried: Vec<_> = programs
        .into_iter()
        .flatten()
        .map(|program| text(program, "name"))
        .collect();
    // In any order, and each once.
    let all = BTreeSet::from(PROGRAMS);
    let is_all = tried.len() == all.len() && tried.iter().all(|name| all.contains(&**name));
    (!is_all).then(|| format!("culvert doctor tried other programs than there are: {tried:?}"))
}

#[cfg(test)]
mod tests;
