//! A run from the command line to the reports.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};

use crate::{
    Bench, comparison,
    contender::{CONTENDERS, Contender, Family, ON_THE_WAY},
    intercept, interrupt,
    machine::{Machine, cores},
    report,
    results::{Entrant, FORMAT, Results, WorkDone},
    rounds::{Findings, Plan},
    scene::Threads,
    targets,
    work::{self, Effort, Work},
};

/// Files that a process has open beside its connections.
const OTHER_FILES: u64 = 500;

/// Measures and reports.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    interrupt::watch().context("signal handlers")?;
    // Before anything is measured: a wrong file is a matter of seconds.
    let earlier = bench.compare.as_deref().map(comparison::read).transpose()?;
    let mut machine = Machine::look();
    if let Some(core) = bench.pin {
        pin(core)?;
    }
    let mut remarks = Vec::new();
    let effort = effort(bench, &mut remarks)?;
    let (works, with_intercept) = bench.works()?;
    let threads = threads();
    let mut findings = Findings::default();
    let mut contenders = Vec::new();
    for contender in bench.all().iter().copied().filter(|one| bench.wants(one)) {
        match version(contender, &machine.revision) {
            Ok(version) => contenders.push((contender, version)),
            Err(missing) => findings.miss(contender, &missing),
        }
    }
    let present: Vec<_> = contenders.iter().map(|(contender, _)| *contender).collect();
    let plan = Plan {
        contenders: &present,
        works: &works,
        threads,
        effort,
    };
    plan.run(&mut findings)?;
    let intercept = if with_intercept {
        intercept::measure(threads, effort)?
    } else {
        Vec::new()
    };
    machine.look_again();
    let measured = findings.measured();
    let entrants = contenders
        .iter()
        .filter(|(contender, _)| measured.contains(contender.name))
        .map(|(contender, version)| Entrant {
            name: contender.name.to_owned(),
            family: contender.family(),
            version: version.clone(),
            configuration: contender.configuration(threads.relay),
        });
    let mut results = Results {
        format: FORMAT,
        machine,
        pinned: bench.pin.is_some(),
        relay_threads: threads.relay,
        load_threads: threads.load,
        effort,
        contenders: entrants.collect(),
        missing: findings.missing,
        works: works.iter().map(WorkDone::of).collect(),
        samples: findings.samples,
        intercept,
        failures: findings.failures,
        ways: findings.ways,
        targets: Vec::new(),
        remarks,
    };
    results.targets = targets::targets(&results);
    let text = results.to_json()?;
    if let Some(file) = &bench.json {
        fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    let comparison = earlier.map(|earlier| comparison::compare(&earlier, &results));
    if let Some(file) = &bench.html {
        let page = report::html::render(&results, comparison.as_ref());
        fs::write(file, page).with_context(|| file.display().to_string())?;
    }
    print!("{}", report::text::render(&results, comparison.as_ref()));
    // What a peer fails at is in the report; it is no mistake of this program.
    let failed = results.failures.iter().filter(|failure| {
        let contender = |one: &&Contender| one.name == failure.contender;
        let contender = bench.all().iter().find(contender);
        contender.is_none_or(|contender| contender.family() != Family::Peer)
    });
    match failed.count() {
        0 => Ok(()),
        count => bail!("{count} measurements failed"),
    }
}

impl Bench {
    /// Everybody who can be measured.
    const fn all(&self) -> &'static [Contender] {
        if self.gateway {
            &ON_THE_WAY
        } else {
            &CONTENDERS
        }
    }

    /// What is done, and whether the cost of the hooks is measured.
    fn works(&self) -> Result<(Vec<Work>, bool)> {
        let (mut works, with_intercept) = works(&self.only)?;
        if self.gateway {
            works.retain(|work| !matches!(work, Work::Idle | Work::SlowReader));
        }
        Ok((works, with_intercept && !self.gateway))
    }

    fn wants(&self, contender: &Contender) -> bool {
        let names = || self.all().iter().map(|contender| contender.name);
        self.contender.is_empty()
            || contender.family() == Family::Direct
            || self
                .contender
                .iter()
                .any(|wanted| is_meant(contender.name, wanted, names()))
    }
}

impl WorkDone {
    fn of(work: &Work) -> Self {
        Self {
            name: work.to_string(),
            title: work.title(),
            headline: work.headline(),
        }
    }
}

/// Everything that is started from here on inherits it.
fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores
        .set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cores))
        .with_context(|| format!("cannot stay on core {core}"))
}

/// Every proxy as many threads as there are cores; half as many for client and server each, which do less.
fn threads() -> Threads {
    let cores = cores();
    Threads {
        relay: cores,
        load: (cores / 2).max(1),
    }
}

fn effort(bench: &Bench, remarks: &mut Vec<String>) -> Result<Effort> {
    let mut effort = if bench.quick {
        Effort::QUICK
    } else {
        Effort::FULL
    };
    if let Some(rounds) = bench.rounds {
        effort.rounds = rounds.max(1);
        effort.fresh_rounds = effort.fresh_rounds.min(effort.rounds);
    }
    // Raising the soft limit needs no privilege; all that is started inherits it.
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
    // A proxy has two files for each connection.
    let possible = u32::try_from(limit.saturating_sub(OTHER_FILES) / 2).unwrap_or(u32::MAX);
    if possible < effort.idle {
        remarks.push(format!(
            "the limit of {limit} open files allows {possible} idle connections and not {}",
            effort.idle
        ));
        effort.idle = possible;
    }
    Ok(effort)
}

/// Whether a name is the one that is wanted, or begins so if none is.
fn is_meant<'a>(name: &str, wanted: &str, mut all: impl Iterator<Item = &'a str>) -> bool {
    if all.any(|name| name == wanted) {
        name == wanted
    } else {
        name.starts_with(wanted)
    }
}

/// The work that is named, and whether the cost of the hooks is.
fn works(only: &[String]) -> Result<(Vec<Work>, bool)> {
    let all = work::all();
    if only.is_empty() {
        return Ok((all, true));
    }
    let (mut works, mut with_intercept) = (Vec::new(), false);
    for name in only {
        if name == intercept::NAME {
            with_intercept = true;
            continue;
        }
        let names: Vec<_> = all.iter().map(Work::to_string).collect();
        let before = works.len();
        for (work, own) in all.iter().zip(&names) {
            if is_meant(own, name, names.iter().map(String::as_str)) {
                works.push(*work);
            }
        }
        if works.len() == before {
            bail!("there is no work whose name begins with {name}");
        }
    }
    Ok((works, with_intercept))
}

/// What its programs say of themselves, or which of them is missing.
fn version(contender: Contender, revision: &str) -> Result<String, String> {
    let programs = contender.programs();
    if programs.is_empty() {
        return Ok(revision.to_owned());
    }
    let mut versions = Vec::new();
    for (program, option) in programs {
        let output = Command::new(program)
            .args(option.split_ascii_whitespace())
            .output()
            .map_err(|error| format!("{program}: {error}"))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        versions.push(said.lines().next().unwrap_or(program).to_owned());
    }
    Ok(versions.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_name_means_nothing_else() {
        let names = |wanted: &[&str]| {
            let wanted: Vec<_> = wanted.iter().map(|&work| work.to_owned()).collect();
            let (found, with_intercept) = works(&wanted).unwrap();
            let found: Vec<_> = found.iter().map(Work::to_string).collect();
            (found.join(" "), with_intercept)
        };
        assert_eq!(names(&["bulk-up-1"]), ("bulk-up-1".to_owned(), false));
        assert_eq!(
            names(&["connect", "intercept"]),
            ("connect-1 connect-16".to_owned(), true)
        );
        assert_eq!(work::all().len(), works(&[]).unwrap().0.len());
        assert!(works(&["nonsense".to_owned()]).is_err());
    }
}
