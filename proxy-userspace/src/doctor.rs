//! `culvert doctor`: whether forward proxying works on this machine, and what to do where it does not.
//!
//! Everything is found out by trying, nothing by version numbers. What takes privileges that this process lacks is
//! said to be unchecked. The programs are tried for a moment in a cgroup of their own, and the paths on connections of our
//! own over loopback; nothing else is touched.

mod check;
mod machine;
mod neighbours;
mod paths;
mod privileges;
mod programs;
mod report;
mod routing;

use std::process::ExitCode;

use self::{check::Section, report::Report};
use crate::{
    cgroup::Cgroup2,
    failure::Class,
    intercept::guard::Bpffs,
    paint::{self, Paint},
};

/// Examines the machine and prints what was found; the exit code says whether something needed is missing.
pub(crate) fn run(json: bool) -> ExitCode {
    let report = examine();
    paint::print(if json {
        report.json() + "\n"
    } else {
        report.text(Paint::for_stdout())
    });
    if report.is_ready() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Class::Missing.exit_code())
    }
}

fn examine() -> Report {
    let cgroups = Cgroup2::find();
    let bpffs = Bpffs::find();
    // Before our own programs are attached.
    let neighbours = cgroups.as_ref().ok().map(neighbours::find);
    let mut around = vec![
        programs::bpffs(&bpffs),
        programs::stale_pins(&bpffs),
        routing::stale(),
        routing::stale_filters(),
        routing::rp_filter(),
        routing::forwarding(),
        routing::rules(),
    ];
    around.extend(neighbours.as_ref().map(neighbours::check));
    let (paths, path_costs) = paths::examine();
    let (programs, tried) = programs::examine(&cgroups);
    let section = |title, checks| Section { title, checks };
    Report {
        sections: vec![
            section("Kernel", machine::kernel(&cgroups)),
            section("Privileges", privileges::checks()),
            section("Programs", programs),
            section("Paths", paths),
            section("Around us", around),
            section("Limits", machine::limits()),
        ],
        tried,
        path_costs,
        neighbours: neighbours.and_then(Result::ok).unwrap_or_default(),
    }
}
