//! What the hooks add to each `connect()`, in nanoseconds, as the kernel itself measures its programs.
//!
//! `cargo bench -p culvert-tests --bench connect_cost`, as root. Every case has a sandbox and a daemon of its own, all
//! of them run at the same time, and the rounds go through the cases in turn: what the machine does beside shows in
//! all alike. `cargo test` makes one short round, so that this cannot rot; it says nothing about time then.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{
    collections::BTreeMap,
    fs,
    iter::Sum,
    net::SocketAddr,
    ops::{Add, Sub},
};

use aya::sys::{Stats, enable_stats};
use culvert_tests::{
    App, Culvert, Sandbox, app::protocol::Storm, eventually, peer::Server, sandbox::SERVER_V4,
};
use libtest_mimic::{Arguments, Measurement, Trial};

/// How much is measured.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    connections: u32,
}

const FULL: Effort = Effort {
    rounds: 9,
    connections: 1000,
};
const QUICK: Effort = Effort {
    rounds: 1,
    connections: 20,
};

/// What a connection meets: so many prefixes in each of so many rules.
#[derive(Clone, Copy)]
struct Case {
    outcome: Outcome,
    rules: u32,
    prefixes: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Direct,
    Relayed,
}

const fn case(outcome: Outcome, rules: u32, prefixes: u32) -> Case {
    Case {
        outcome,
        rules,
        prefixes,
    }
}

const CASES: [Case; 8] = [
    case(Outcome::Direct, 1, 1),
    case(Outcome::Direct, 1, 10_000),
    case(Outcome::Direct, 200, 1),
    case(Outcome::Relayed, 1, 1),
    case(Outcome::Relayed, 1, 100),
    case(Outcome::Relayed, 1, 10_000),
    case(Outcome::Relayed, 10, 1),
    case(Outcome::Relayed, 200, 1),
];

fn main() {
    let measure = |test_mode| Ok(compare(if test_mode { QUICK } else { FULL }));
    let trial = Trial::bench("connect_cost", measure);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

/// Prints a table, and returns the first line of it: what a connection pays that no rule selects.
fn compare(effort: Effort) -> Option<Measurement> {
    // The kernel measures for as long as this is open (5.8).
    let _measuring = enable_stats(Stats::RunTime).expect("cannot enable statistics of programs");
    let sandboxes: Vec<_> = CASES.iter().map(|_| Sandbox::new()).collect();
    let mut subjects: Vec<_> = CASES
        .into_iter()
        .zip(&sandboxes)
        .map(|(case, sandbox)| Subject::new(case, sandbox))
        .collect();
    for _ in 0..effort.rounds {
        for subject in &mut subjects {
            subject.measure(effort.connections);
        }
    }
    println!("\noutcome    rules  prefixes  ns per connection (lowest .. highest)  program runs");
    for subject in &subjects {
        subject.report();
    }
    let (lowest, median, highest) = subjects.first()?.spread()?;
    Some(Measurement {
        avg: median.nanoseconds,
        variance: highest.nanoseconds - lowest.nanoseconds,
    })
}

/// A case that is being measured.
struct Subject<'a> {
    case: Case,
    server: Server,
    app: App,
    culvert: Culvert<'a>,
    costs: Vec<Cost>,
}

impl<'a> Subject<'a> {
    fn new(case: Case, sandbox: &'a Sandbox) -> Self {
        let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
        Self {
            culvert: sandbox.culvert(&case.rules(server.address())),
            app: sandbox.app(),
            case,
            server,
            costs: Vec::new(),
        }
    }

    fn measure(&mut self, connections: u32) {
        let storm = Storm {
            addresses: vec![self.server.address()],
            threads: 1,
            each: connections,
            length: 8,
        };
        let (before, relayed) = (self.total(), self.culvert.counter("own"));
        let outcomes = self.app.storm(&storm);
        assert_eq!(outcomes, BTreeMap::from([(0, u64::from(connections))]));
        if self.case.outcome == Outcome::Relayed {
            // The relay's own connections pass the hooks as well, and belong to the price.
            eventually("the relay's connections", || {
                let own = self.culvert.counter("own") - relayed;
                (own == u64::from(connections)).then_some(())
            });
        }
        let Total { nanoseconds, runs } = self.total() - before;
        assert!(runs >= u64::from(connections), "the hooks did not run");
        self.costs.push(Cost {
            nanoseconds: nanoseconds / u64::from(connections),
            runs: runs / u64::from(connections),
        });
    }

    /// What all programs of the daemon have taken so far.
    fn total(&self) -> Total {
        let files = fs::read_dir(format!("/proc/{}/fdinfo", self.culvert.pid()));
        let files = files.expect("the files of culvert").filter_map(Result::ok);
        files
            .filter_map(|file| Total::of(&fs::read_to_string(file.path()).ok()?))
            .sum()
    }

    /// The cheapest round, the median and the dearest.
    fn spread(&self) -> Option<(Cost, Cost, Cost)> {
        let mut costs = self.costs.clone();
        costs.sort_unstable_by_key(|cost| cost.nanoseconds);
        let median = costs.get(costs.len() / 2)?;
        Some((*costs.first()?, *median, *costs.last()?))
    }

    fn report(&self) {
        let Some((lowest, median, highest)) = self.spread() else {
            return;
        };
        let outcome = match self.case.outcome {
            Outcome::Direct => "direct",
            Outcome::Relayed => "relayed",
        };
        println!(
            "{outcome:<9} {:>6} {:>9}  {:>17} ({} .. {}) {:>14}",
            self.case.rules,
            self.case.prefixes,
            median.nanoseconds,
            lowest.nanoseconds,
            highest.nanoseconds,
            median.runs
        );
    }
}

#[derive(Clone, Copy)]
struct Cost {
    nanoseconds: u64,
    runs: u64,
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
        let mut text = "[upstream.relay]\nurl = \"direct://\"\n".to_owned();
        for number in 1..=self.rules {
            let port = match self.outcome {
                Outcome::Relayed if number == self.rules => server.port(),
                // Nobody connects there, and no two rules are alike.
                _ => u16::try_from(number).expect("few rules"),
            };
            let prefixes = self.prefixes(number, server);
            let rule = format!(
                "[[forward]]\nname = \"rule-{number}\"\nmatch = {{ dest = [{prefixes}], port = {port} }}\nvia = \"relay\"\n"
            );
            text.push_str(&rule);
        }
        text
    }

    /// The server's address, and prefixes of a network that it is not in.
    fn prefixes(self, rule: u32, server: SocketAddr) -> String {
        let others = (1..self.prefixes).map(|number| {
            let [_, a, b, c] = (rule * self.prefixes + number).to_be_bytes();
            format!("\"10.{a}.{b}.{c}/32\", ")
        });
        others.collect::<String>() + &format!("\"{}\"", server.ip())
    }
}
