//! Whether the kernel takes our programs, found out by attaching them to a cgroup of our own and detaching them again.

use std::{fs, fs::File, os::fd::AsFd};

use proxy_common::names;
use serde::Serialize;

use super::check::Check;
use crate::{
    cgroup::{Cgroup2, CgroupError, OwnCgroup},
    intercept::{
        Features, MissingFeature,
        guard::{self, Bpffs},
        trial::{self, Stage, Trial, try_programs},
    },
    paint::{all_lines, one_line},
    privileges,
    relay::shortcut::{Proof, Proofs},
};

/// A program, tried. The names of the fields are those of the JSON report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Tried {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether the kernel takes it.
    pub(super) works: bool,
    /// Whether it was attached, and not only loaded.
    pub(super) attached: bool,
    /// Its instructions, as the kernel has rewritten them.
    pub(super) instructions: Option<u32>,
    /// Those that the verifier went through; known since kernel 5.16.
    pub(super) verified_instructions: Option<u32>,
    /// How long it took to load it.
    pub(super) load_ms: Option<f64>,
    /// Why the kernel does not take it, with all that its verifier says.
    pub(super) refusal: Option<String>,
}

impl Tried {
    fn new(trial: &Trial) -> Self {
        let cost = trial.cost;
        Self {
            name: trial.program,
            works: trial.outcome.is_ok(),
            attached: matches!(trial.outcome, Ok(Stage::Attached)),
            instructions: cost.and_then(|cost| cost.instructions),
            verified_instructions: cost.and_then(|cost| cost.verified),
            load_ms: cost.map(|cost| cost.time.as_secs_f64() * 1000.0),
            refusal: trial.outcome.as_ref().err().map(|error| all_lines(error)),
        }
    }
}

/// The programs, and what depends on helpers and files beside them.
pub(super) fn examine(cgroups: &Result<Cgroup2, CgroupError>) -> (Vec<Check>, Vec<Tried>) {
    if privileges::require().is_err() {
        let unchecked = Check::unchecked("programs", "loading programs takes the privileges above");
        return (vec![unchecked], Vec::new());
    }
    let features = Features::probe();
    let (mut checks, tried) = trials(&features, cgroups);
    checks.push(refusal(&features));
    checks.extend(shortcut(&features));
    checks.push(match &features.offsets {
        Ok(_) => Check::ok("task_selectors", "rules with `exe` and `pid` work"),
        Err(missing) => Check::warning("task_selectors", missing.to_string()),
    });
    checks.push(if features.ingress_interface {
        Check::ok(
            "interface_selector",
            "`[[reverse]]` rules with `interface` work",
        )
    } else {
        Check::warning("interface_selector", MissingFeature::Interface.to_string())
    });
    (checks, tried)
}

fn trials(features: &Features, cgroups: &Result<Cgroup2, CgroupError>) -> (Vec<Check>, Vec<Tried>) {
    let (mut checks, mut tried) = (Vec::new(), Vec::new());
    let own = cgroups
        .as_ref()
        .ok()
        .map(|cgroups| OwnCgroup::create(cgroups, OwnCgroup::planned(cgroups)?))
        .transpose();
    // Dropped at the end, which removes it.
    let own = own.unwrap_or_else(|error| {
        checks.push(
            Check::warning(
                "own_cgroup",
                format!("no cgroup can be made to try the programs in: {error}"),
            )
            .advice("`exec` and `demo` make cgroups; mount the hierarchy writable"),
        );
        None
    });
    let directory = own.as_ref().and_then(|own| File::open(own.dir()).ok());
    match try_programs(features, directory.as_ref().map(AsFd::as_fd)) {
        Ok(trials) => {
            tried.extend(trials.iter().map(Tried::new));
            checks.extend(trials.into_iter().map(verdict));
        }
        Err(error) => checks.push(refused(Check::missing("programs", one_line(&error)))),
    }
    (checks, tried)
}

fn verdict(trial: Trial) -> Check {
    let id = format!("program_{}", trial.program);
    let error = match trial.outcome {
        Ok(Stage::Attached) => return Check::ok(id, "loaded, attached and detached"),
        Ok(Stage::Loaded) => return Check::ok(id, "loaded"),
        Err(error) => error,
    };
    match trial.program {
        names::TASK_FORK | names::TASK_EXIT => Check::warning(id, one_line(&error))
            .advice("rules with `pid` need it; select by `cgroup` instead"),
        names::REVERSE | names::REVERSE_GUARD | names::OWN_EVENTS => {
            Check::warning(id, one_line(&error))
                .advice("`[[reverse]]` rules need it, and kernel 5.9 or newer")
        }
        names::RETURNS => Check::warning(id, one_line(&error))
            .advice("`keep_source` to servers on other hosts needs it"),
        names::GATEWAY | names::GATEWAY_GUARD | names::GATEWAY_AGAIN => {
            Check::warning(id, one_line(&error)).advice("`[[gateway]]` rules need it")
        }
        names::ROUTER => Check::warning(id, one_line(&error))
            .advice("`fast_path` in [router] needs it, and kernel 5.10 or newer"),
        names::GUARD4 | names::GUARD6 => Check::warning(id, one_line(&error))
            .advice("rules with `on_relay_failure = \"refuse\"` need it"),
        names::VERDICT => Check::warning(id, one_line(&error))
            .advice("rules with `path = \"sockmap\"` need it; without it they copy"),
        names::REPLY | names::DELIVERED => Check::warning(id, one_line(&error)).advice(
            "rules with `path = \"shortcut-both-ways\"` need it; without it they copy replies",
        ),
        names::SHORTCUT => Check::warning(id, one_line(&error))
            .advice("rules with `path = \"shortcut\"` need it; without it they copy"),
        _ => refused(Check::missing(id, one_line(&error))),
    }
}

fn refused(check: Check) -> Check {
    let (perfmon, _) = privileges::READ_TASKS;
    check.advice(if privileges::has(perfmon) {
        "run kernel 5.14 or newer, built with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
    } else {
        "try with CAP_PERFMON: without it the kernel's verifier allows programs less"
    })
}

fn refusal(features: &Features) -> Check {
    let error = if features.set_retval {
        "ECONNREFUSED"
    } else {
        "EPERM (this kernel lets hooks choose no other)"
    };
    Check::ok("refusal", format!("a refused connect() fails with {error}"))
}

/// Whether this kernel keeps what apps rely on when bytes go past the relay.
fn shortcut(features: &Features) -> Vec<Check> {
    if let Err(missing) = &features.sockets {
        return [
            ("shortcut", "shortcut"),
            ("shortcut_both_ways", "shortcut-both-ways"),
        ]
        .map(|(id, path)| Check::warning(id, format!("`path = \"{path}\"` copies: {missing}")))
        .into();
    }
    match trial::prove_shortcut(features) {
        Ok(proofs) => vec![requests(proofs.requests), replies(proofs, features)],
        Err(error) => vec![Check::warning("shortcut", one_line(&error))],
    }
}

fn requests(proof: Proof) -> Check {
    const ID: &str = "shortcut";
    match proof {
        Proof::Whole => Check::ok(ID, "every test of it passes"),
        Proof::WithoutFionread => Check::warning(
            ID,
            "`path = \"shortcut\"` copies: on this kernel FIONREAD would tell apps that nothing waits for them",
        )
        .advice(
            "for apps that never ask, `path = \"shortcut-without-fionread\"`; kernels with \"bpf, sockmap: Fix FIONREAD \
             for sockmap\" and without its fix (04af4efde58a) have this",
        ),
        Proof::Failed(test) => Check::warning(
            ID,
            format!("`path = \"shortcut\"` copies: the test of {test} fails on this kernel"),
        ),
    }
}

fn replies(proofs: Proofs, features: &Features) -> Check {
    const ID: &str = "shortcut_both_ways";
    match (proofs.replies, &features.queues) {
        (Ok(()), _) => Check::ok(ID, "every test of it passes"),
        (Err(_), Err(missing)) => Check::warning(
            ID,
            format!("`path = \"shortcut-both-ways\"` copies replies: {missing}"),
        ),
        (Err(test), Ok(_)) => Check::warning(
            ID,
            format!(
                "`path = \"shortcut-both-ways\"` copies replies: the test of {test} fails on this kernel"
            ),
        ),
    }
}

/// Where rules with `on_relay_failure = "refuse"` are pinned.
pub(super) fn bpffs(bpffs: &Bpffs) -> Check {
    match bpffs {
        Bpffs::Mounted(path) => Check::ok("bpffs", path.display().to_string()),
        Bpffs::Absent(path) if privileges::has(privileges::MOUNT.0) => Check::ok(
            "bpffs",
            format!(
                "none is mounted; rules with `on_relay_failure = \"refuse\"` have one at {} while they are in force",
                path.display()
            ),
        ),
        Bpffs::Absent(_) => Check::warning("bpffs", "none is mounted, and this process may not mount one").advice(
            "rules with `on_relay_failure = \"refuse\"` need it: mount -t bpf bpf /sys/fs/bpf, or mount the host's into \
             the container",
        ),
    }
}

/// What killed daemons left.
pub(super) fn stale_pins(bpffs: &Bpffs) -> Check {
    if let Bpffs::Mounted(path) = bpffs
        && let Err(error) = fs::read_dir(path)
    {
        return Check::unchecked(
            "stale_pins",
            format!("cannot list {}: {error}", path.display()),
        );
    }
    let stale = guard::stale();
    if stale.is_empty() {
        return Check::ok("stale_pins", "none");
    }
    let places: Vec<_> = stale
        .iter()
        .map(|place| place.display().to_string())
        .collect();
    Check::warning(
        "stale_pins",
        format!(
            "a killed daemon still refuses connections: {}",
            places.join(", ")
        ),
    )
    .advice("culvert detach, or start the daemon again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{doctor::check::Status, intercept::InterceptError};

    fn status(program: &'static str) -> Status {
        let outcome = Err(InterceptError::Missing(program));
        let trial = Trial {
            program,
            outcome,
            cost: None,
        };
        verdict(trial).status
    }

    #[test]
    fn only_programs_that_every_configuration_needs_are_missed() {
        assert_eq!(status(names::CONNECT6), Status::Missing);
        assert_eq!(status(names::TCP_EVENTS), Status::Missing);
        assert_eq!(status(names::GUARD4), Status::Warning);
        assert_eq!(status(names::TASK_FORK), Status::Warning);
        assert_eq!(status(names::REVERSE), Status::Warning);
        assert_eq!(status(names::RETURNS), Status::Warning);
    }
}
