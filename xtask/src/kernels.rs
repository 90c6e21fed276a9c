//! `cargo xtask test --kernels`: culvert's own binary and a selection of the kernel tests on Debian's kernels, under QEMU.
//!
//! A guest is a kernel and one initramfs: `culvert`, the test programs and what they run, all as built for this machine, and
//! `culvert-guest` of `culvert-tests` as its first process. Kernels come from Debian's archive and are kept in the target
//! folder. Nothing is installed here but QEMU.

mod archive;
mod folder;
mod guests;
mod initramfs;
mod modules;
mod payload;
mod qemu;
mod readme;
mod report;
mod table;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, VecDeque},
    num::NonZero,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};

use self::{
    archive::Kernel,
    guests::{GUESTS, Guest},
    payload::Payload,
    report::Report,
};
use crate::{
    build::{self, Profile},
    progress,
    workspace::Workspace,
};

/// What of it is wanted.
pub(crate) struct Wanted<'a> {
    /// How culvert is built.
    pub(crate) profile: Profile,
    /// Only guests with kernels of these series; all when there is none.
    pub(crate) series: &'a [String],
    /// All tests that are for guests, and not only those that show that everything does its main job.
    pub(crate) whole: bool,
    /// Only tests whose name contains this.
    pub(crate) filter: Option<&'a str>,
    /// The table of the README is written anew.
    pub(crate) writes_readme: bool,
    /// Where there is no QEMU or no kernel to be had, that is said and no failure.
    pub(crate) if_possible: bool,
}

/// Guests that run at a time at least, and more where there are processors for them: each has one, and emulating it takes one of
/// ours.
const AT_A_TIME: usize = 2;
/// What is not the whole is chosen to take no longer, for each guest, on two processors that have nothing else to do: four take two
/// minutes.
const LIMIT: Duration = Duration::from_secs(30);

/// Boots every guest, and prints one table of what became of everything in it.
pub(crate) fn test(workspace: &Workspace, wanted: &Wanted<'_>) -> Result<ExitCode> {
    let guests: Vec<_> = GUESTS
        .iter()
        .filter(|guest| wanted.series.is_empty() || wanted.series.iter().any(|s| s == guest.series))
        .collect();
    if guests.is_empty() {
        let known: BTreeSet<_> = GUESTS.iter().map(|guest| guest.series).collect();
        let known: Vec<_> = known.into_iter().collect();
        bail!(
            "there is no guest with such a kernel; known: {}",
            known.join(", ")
        );
    }
    if !cfg!(target_arch = "x86_64") {
        bail!("the guests are x86-64 machines and run the binary of this one, which is another");
    }
    let folder = workspace.build.join("kernels");
    let provided =
        qemu::provide(&folder).and_then(|()| archive::provide(&folder, &series(&guests)));
    let kernels = match provided {
        Err(error) if wanted.if_possible => {
            progress::step(&format!("not tested on other kernels: {error:#}"));
            return Ok(ExitCode::SUCCESS);
        }
        provided => provided?,
    };
    let culvert = build::build(workspace, wanted.profile)?;
    let payload = Payload::build(workspace, &culvert)?;

    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let at_a_time = processors.max(AT_A_TIME).min(guests.len());
    progress::step(&format!(
        "booting {} guests, {at_a_time} at a time",
        guests.len()
    ));
    let begun = (Instant::now(), processor_time()?);
    let reports = run_all(&guests, &kernels, &payload, at_a_time, wanted)?;
    let took = begun.0.elapsed();
    print!("{}", table::text(&reports));
    let failures = table::failures(&reports);
    for failure in &failures {
        println!("\n{failure}");
    }
    println!(
        "\n{}, {} failed; {} s, {} s of processor time",
        table::counted(&reports),
        failures.len(),
        took.as_secs(),
        processor_time()? - begun.1
    );
    let limit = LIMIT * u32::try_from(guests.len())?;
    if !wanted.whole && took > limit {
        println!(
            "That is longer than the {} s which it should take on two processors: they are slow, or busy with something else, \
             or a guest has become slower (see the end of the table)",
            limit.as_secs()
        );
    }
    if wanted.writes_readme {
        if !failures.is_empty() {
            bail!("the README tells of runs without failures only");
        }
        readme::write(&workspace.root, &reports)?;
    }
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Seconds that processes of this one took, which have ended: an emulated machine takes as long as it computes.
fn processor_time() -> Result<i64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(usage.user_time().tv_sec() + usage.system_time().tv_sec())
}

/// The series of kernels that guests have, each once.
fn series(guests: &[&Guest]) -> BTreeSet<&'static str> {
    guests.iter().map(|guest| guest.series).collect()
}

/// The reports, in the order of the guests.
fn run_all(
    guests: &[&'static Guest],
    kernels: &[Kernel],
    payload: &Payload,
    at_a_time: usize,
    wanted: &Wanted<'_>,
) -> Result<Vec<Report>> {
    let mut order: Vec<_> = guests.iter().enumerate().collect();
    // The newer a kernel, the longer it verifies: what takes longest must not begin last.
    order.sort_by_key(|(_, guest)| Reverse(guest.version()));
    let waiting = Mutex::new(VecDeque::from(order));
    let next = || {
        waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    let work = || -> Result<Vec<(usize, Report)>> {
        let mut reports = Vec::new();
        while let Some((number, guest)) = next() {
            let kernel = kernels
                .iter()
                .find(|kernel| kernel.series == guest.series)
                .context("a guest without a kernel")?;
            reports.push((number, run(number, guest, kernel, payload, wanted)?));
        }
        Ok(reports)
    };
    let mut reports = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_a_time).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| {
            let panicked = |_| anyhow::anyhow!("a thread that runs guests has panicked");
            worker.join().map_err(panicked)?
        });
        joined.collect::<Result<Vec<_>>>()
    })?
    .concat();
    reports.sort_by_key(|(number, _)| *number);
    Ok(reports.into_iter().map(|(_, report)| report).collect())
}

fn run(
    number: usize,
    guest: &'static Guest,
    kernel: &Kernel,
    payload: &Payload,
    wanted: &Wanted<'_>,
) -> Result<Report> {
    let begun = Instant::now();
    let tests = guest.tests(wanted.whole, wanted.filter);
    let image = payload.for_guest(guest, kernel, &tests)?;
    let output = qemu::run(kernel, &image, guest.arguments)?;
    output.keep(&kernel.folder.join(format!("said-{number}")))?;
    let report = Report::read(guest, kernel, &tests, &output);
    let failed = report.failures().len();
    progress::step(&format!(
        "{} after {} s: {} tests, {failed} failures",
        report.title(),
        begun.elapsed().as_secs(),
        report.tests.len(),
    ));
    Ok(report)
}
