//! What the hooks add to each `connect()`, in nanoseconds, as the kernel itself measures its programs.

use std::{
    fs,
    iter::Sum,
    net::{Ipv4Addr, SocketAddr},
    ops::{Add, Sub},
};

use anyhow::{Context, Result, bail, ensure};
use aya::sys::{Stats, enable_stats};
use culvert_tests::{Culvert, Sandbox, daemon::Settings};
use serde::{Deserialize, Serialize};

use crate::{
    contender::server,
    load::{
        Pair,
        order::{Done, Order},
    },
    progress, scene,
    scene::Threads,
    summary::Spread,
    work::Effort,
};

/// As it is called on the command line.
pub(crate) const NAME: &str = "intercept";

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// No rule for what apps open selects it.
    Direct,
    /// One does.
    Relayed,
    /// One for what arrives does, and the service is behind the relay at the same address and port.
    Arriving,
}

impl Outcome {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::Arriving => "arriving",
        }
    }

    /// What the hooks count of it.
    const fn counter(self) -> &'static str {
        match self {
            Self::Direct | Self::Relayed => "relayed",
            Self::Arriving => "arrived_relayed",
        }
    }
}

/// What a connection meets: so many prefixes in each of so many rules.
#[derive(Clone, Copy)]
struct Case {
    outcome: Outcome,
    rules: u32,
    prefixes: u32,
}

const fn direct(rules: u32, prefixes: u32) -> Case {
    Case {
        outcome: Outcome::Direct,
        rules,
        prefixes,
    }
}

const fn relayed(rules: u32, prefixes: u32) -> Case {
    Case {
        outcome: Outcome::Relayed,
        rules,
        prefixes,
    }
}

const fn arriving(rules: u32, prefixes: u32) -> Case {
    Case {
        outcome: Outcome::Arriving,
        rules,
        prefixes,
    }
}

const CASES: [Case; 12] = [
    direct(1, 1),
    direct(1, 10_000),
    direct(200, 1),
    relayed(1, 1),
    relayed(1, 100),
    relayed(1, 10_000),
    relayed(10, 1),
    relayed(200, 1),
    arriving(1, 1),
    arriving(1, 10),
    arriving(1, 10_000),
    arriving(200, 50),
];

/// What a connection of one case has cost in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) outcome: Outcome,
    pub(crate) rules: u32,
    pub(crate) prefixes: u32,
    pub(crate) round: u32,
    pub(crate) nanoseconds: f64,
    /// Programs that ran.
    pub(crate) runs: f64,
}

/// One case in all rounds.
pub(crate) struct Costs {
    pub(crate) outcome: &'static str,
    pub(crate) rules: u32,
    pub(crate) prefixes: u32,
    pub(crate) nanoseconds: Spread,
    pub(crate) runs: Spread,
}

/// Measures all cases; every one has a sandbox and a daemon of its own, all of them run at the same time.
pub(crate) fn measure(threads: Threads, effort: Effort) -> Result<Vec<Cost>> {
    progress::step("intercept: what the hooks cost each connection");
    // The kernel measures for as long as this is open (5.8).
    let _measuring = enable_stats(Stats::RunTime).context("statistics of programs")?;
    let sandboxes: Vec<_> = CASES.iter().map(|_| scene::sandbox()).collect();
    let subjects: Result<Vec<_>> = CASES
        .into_iter()
        .zip(&sandboxes)
        .map(|(case, sandbox)| Subject::start(case, sandbox, threads))
        .collect();
    let mut subjects = subjects?;
    let mut costs = Vec::new();
    for round in 0..effort.rounds {
        for subject in &mut subjects {
            costs.push(subject.measure(round, effort)?);
        }
    }
    Ok(costs)
}

/// Case by case.
pub(crate) fn summary(costs: &[Cost]) -> Vec<Costs> {
    let of_case = |case: Case| {
        let costs = costs.iter().filter(move |cost| {
            (cost.outcome, cost.rules, cost.prefixes) == (case.outcome, case.rules, case.prefixes)
        });
        Some(Costs {
            outcome: case.outcome.label(),
            rules: case.rules,
            prefixes: case.prefixes,
            nanoseconds: Spread::of(costs.clone().map(|cost| cost.nanoseconds))?,
            runs: Spread::of(costs.map(|cost| cost.runs))?,
        })
    };
    CASES.into_iter().filter_map(of_case).collect()
}

/// A case that is being measured.
struct Subject<'a> {
    case: Case,
    // Ends before what it connects through.
    load: Pair,
    culvert: Culvert<'a>,
}

impl<'a> Subject<'a> {
    fn start(case: Case, sandbox: &'a Sandbox, threads: Threads) -> Result<Self> {
        let load = Pair::start(sandbox, None, threads.load)?;
        let settings = Settings {
            without_access_log: true,
            ..Settings::daemon(&format!("workers = {}", threads.relay))
        };
        let culvert = sandbox.culvert_with(&settings, &case.rules(server()));
        Ok(Self {
            case,
            load,
            culvert,
        })
    }

    fn measure(&mut self, round: u32, effort: Effort) -> Result<Cost> {
        let counter = self.case.outcome.counter();
        let (before, relayed) = (self.total(), self.culvert.counter(counter));
        let done = self.load.obey(Order::Connect {
            address: server(),
            at_once: 1,
            milliseconds: effort.milliseconds,
        })?;
        let Done::Paced { count, .. } = done else {
            bail!("the client answers {done:?}");
        };
        let Total { nanoseconds, runs } = self.total() - before;
        let relayed = self.culvert.counter(counter) - relayed;
        let expected = match self.case.outcome {
            Outcome::Direct => 0,
            Outcome::Relayed | Outcome::Arriving => count,
        };
        ensure!(
            relayed == expected,
            "{relayed} connections of {count} were relayed, and not {expected}"
        );
        Ok(Cost {
            outcome: self.case.outcome,
            rules: self.case.rules,
            prefixes: self.case.prefixes,
            round,
            nanoseconds: nanoseconds as f64 / count as f64,
            runs: runs as f64 / count as f64,
        })
    }

    /// What all programs of the daemon have taken so far.
    fn total(&self) -> Total {
        let files = fs::read_dir(format!("/proc/{}/fdinfo", self.culvert.pid()));
        let files = files.into_iter().flatten().filter_map(Result::ok);
        files
            .filter_map(|file| Total::of(&fs::read_to_string(file.path()).ok()?))
            .sum()
    }
}

#[derive(Clone, Copy, Default)]
struct Total {
    nanoseconds: u64,
    runs: u64,
}

impl Total {
    /// From the description of a program's descriptor; others have no such lines.
    fn of(fdinfo: &str) -> Option<Self> {
        let number = |key| {
            let line = fdinfo.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().parse().ok()
        };
        Some(Self {
            nanoseconds: number("run_time_ns:")?,
            runs: number("run_cnt:")?,
        })
    }
}

impl Add for Total {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            nanoseconds: self.nanoseconds + other.nanoseconds,
            runs: self.runs + other.runs,
        }
    }
}

impl Sub for Total {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            nanoseconds: self.nanoseconds - other.nanoseconds,
            runs: self.runs - other.runs,
        }
    }
}

impl Sum for Total {
    fn sum<I: Iterator<Item = Self>>(totals: I) -> Self {
        totals.fold(Self::default(), Add::add)
    }
}

impl Case {
    /// The last rule alone selects the server, if any does; the others differ from it by their port.
    fn rules(self, server: SocketAddr) -> String {
        if self.outcome == Outcome::Arriving {
            return self.arrivals(server);
        }
        let mut text = "[upstream.relay]\nurl = \"direct://\"\n".to_owned();
        for number in 1..=self.rules {
            let port = if self.outcome == Outcome::Relayed && number == self.rules {
                u32::from(server.port())
            } else {
                // Nobody connects there, and no two rules are alike.
                number
            };
            let prefixes = self.prefixes(number, server);
            let rule = format!(
                "[[forward]]\nname = \"rule-{number}\"\nmatch = {{ dest = [{prefixes}], port = {port} }}\nvia = \"relay\"\n"
            );
            text.push_str(&rule);
        }
        text
    }

    /// The last rule alone listens at the server; each has a port of its own.
    fn arrivals(self, server: SocketAddr) -> String {
        let mut text = String::new();
        for number in 1..=self.rules {
            let is_last = number == self.rules;
            let port = if is_last {
                u32::from(server.port())
            } else {
                number
            };
            let others = self.others(number, u32::from(!is_last));
            let mut listen: Vec<_> = others.map(|ip| format!("\"{ip}:{port}\"")).collect();
            listen.extend(is_last.then(|| format!("\"{server}\"")));
            let listen = listen.join(", ");
            let rule = format!(
                "[[reverse]]\nname = \"rule-{number}\"\nlisten = [{listen}]\nvia = \"original\"\n"
            );
            text.push_str(&rule);
        }
        text
    }

    /// Addresses of a network that the server is not in: one less than there are to be, and so many more.
    fn others(self, rule: u32, more: u32) -> impl Iterator<Item = Ipv4Addr> {
        (1..self.prefixes + more).map(move |number| {
            let [_, a, b, c] = (rule * self.prefixes + number).to_be_bytes();
            Ipv4Addr::new(10, a, b, c)
        })
    }

    /// The server's address, and prefixes of a network that it is not in.
    fn prefixes(self, rule: u32, server: SocketAddr) -> String {
        let others = self.others(rule, 0).map(|ip| format!("\"{ip}/32\", "));
        others.collect::<String>() + &format!("\"{}\"", server.ip())
    }
}
