//! One contender with a client and a server, in a sandbox of its own.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Result, bail};
use culvert_tests::{Sandbox, hosts::Hosts, netns::Netns};

use crate::{
    contender::{Contender, Relay},
    load::{
        Pair,
        order::{Done, Order},
    },
    metric::Metric,
    usage::{Cpu, Memory, Spent, queued},
    work::{Direction, Effort, Setting, Work},
};

/// How many threads or processes each side has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threads {
    pub(crate) relay: usize,
    pub(crate) load: usize,
}

/// All that is needed to measure a contender.
pub(crate) struct Scene<'a> {
    pub(crate) contender: Contender,
    sandbox: &'a Sandbox,
    // Ends before what it connects through.
    load: Pair,
    pub(crate) relay: Relay<'a>,
}

/// What was measured.
pub(crate) type Figures = BTreeMap<Metric, f64>;

/// A sandbox in which so many connections one after the other do not run out of ports.
pub(crate) fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    spare_ports(sandbox.netns());
    sandbox
}

fn spare_ports(netns: &Netns) {
    netns.sysctl("net.ipv4.ip_local_port_range", "10000 65535");
    // Ports of closed connections can be used again after a second.
    netns.sysctl("net.ipv4.tcp_tw_reuse", "1");
}

/// Where a contender is measured.
pub(crate) struct Stage {
    /// Those of client and server, where they are others.
    hosts: Option<Hosts>,
    sandbox: Sandbox,
}

impl Stage {
    pub(crate) fn of(contender: Contender) -> Self {
        let sandbox = sandbox();
        let hosts = contender.is_on_the_way().then(|| {
            let hosts = Hosts::around(&sandbox);
            spare_ports(hosts.client(0));
            contender.lay_the_way(sandbox.netns());
            hosts
        });
        Self { hosts, sandbox }
    }
}

impl<'a> Scene<'a> {
    pub(crate) fn start(
        contender: Contender,
        stage: &'a Stage,
        threads: Threads,
        setting: Setting,
    ) -> Result<Self> {
        let sandbox = &stage.sandbox;
        let load = Pair::start(sandbox, stage.hosts.as_ref(), threads.load)?;
        let is_logged = setting != Setting::Unlogged;
        let relay = contender.start(sandbox, threads.relay, is_logged)?;
        Ok(Self {
            contender,
            sandbox,
            load,
            relay,
        })
    }

    /// Ends client and server.
    pub(crate) fn into_relay(self) -> Relay<'a> {
        self.relay
    }

    /// Does the work once.
    pub(crate) fn measure(&mut self, work: Work, effort: Effort) -> Result<Figures> {
        match work {
            Work::Exchange { .. } | Work::Bulk { .. } | Work::Connect { .. } => {
                let before = Cpu::now(self.sandbox)?;
                let done = self.load.obey(self.order(work, effort))?;
                let cpu = Cpu::now(self.sandbox)?.since(&before);
                timed(work, done, cpu)
            }
            Work::Idle => self.idle(effort),
            Work::SlowReader => self.slow_reader(effort),
        }
    }

    fn order(&self, work: Work, effort: Effort) -> Order {
        let address = self.contender.target();
        let milliseconds = effort.milliseconds;
        match work {
            Work::Exchange {
                length,
                connections,
            } => Order::Exchange {
                address,
                length,
                connections,
                milliseconds,
            },
            Work::Bulk {
                direction,
                connections,
            } => {
                let each = match connections {
                    1 => effort.bulk,
                    several => effort.bulk_of_many / u64::from(several),
                };
                let (up, down) = match direction {
                    Direction::Up => (each, 0),
                    Direction::Down => (0, each),
                    Direction::Both => (each, each),
                };
                Order::Transfer {
                    address,
                    up,
                    down,
                    connections,
                }
            }
            Work::Connect { at_once } => Order::Connect {
                address,
                at_once,
                milliseconds,
            },
            Work::Idle => Order::Hold {
                address,
                count: effort.idle,
            },
            Work::SlowReader => Order::Offer {
                address,
                bytes: effort.offered,
                patience_milliseconds: effort.patience_milliseconds,
            },
        }
    }

    fn idle(&mut self, effort: Effort) -> Result<Figures> {
        settle();
        let before = Memory::now(self.sandbox)?;
        self.load.obey(self.order(Work::Idle, effort))?;
        settle();
        let after = Memory::now(self.sandbox)?;
        self.load.obey(Order::Release)?;
        let each =
            |before: u64, after: u64| (after as f64 - before as f64) / f64::from(effort.idle);
        let mut figures =
            Figures::from([(Metric::KernelMemory, each(before.kernel, after.kernel))]);
        if !matches!(self.relay, Relay::Nobody) {
            figures.insert(Metric::RelayMemory, each(before.relay, after.relay));
        }
        Ok(figures)
    }

    fn slow_reader(&mut self, effort: Effort) -> Result<Figures> {
        let done = self.load.obey(self.order(Work::SlowReader, effort))?;
        let Done::Taken(taken) = done else {
            bail!("the client answers {done:?}");
        };
        let queued = queued(self.sandbox)?;
        self.load.obey(Order::Release)?;
        let mut figures = Figures::from([(Metric::Taken, taken as f64)]);
        if !matches!(self.relay, Relay::Nobody) {
            figures.insert(Metric::Held, taken.saturating_sub(queued) as f64);
        }
        Ok(figures)
    }
}

/// Gives the kernel time to free what it frees later, and programs to do what they do later.
fn settle() {
    thread::sleep(Duration::from_millis(300));
}

/// Figures of work that takes time.
fn timed(work: Work, done: Done, cpu: Spent) -> Result<Figures> {
    let (mut figures, units) = match done {
        Done::Paced {
            rate,
            count,
            p50,
            p99,
            p999,
        } => {
            let figures = Figures::from([
                (work.headline(), rate),
                (Metric::P50, p50),
                (Metric::P99, p99),
                (Metric::P999, p999),
            ]);
            (figures, count as f64 / 1e6)
        }
        Done::Moved { bytes, seconds } => {
            let rate = bytes as f64 / seconds;
            (Figures::from([(work.headline(), rate)]), bytes as f64 / 1e9)
        }
        done => bail!("the client answers {done:?}"),
    };
    figures.insert(Metric::AllCpu, cpu.all.as_secs_f64() / units);
    if !cpu.relay.is_zero() {
        figures.insert(Metric::RelayCpu, cpu.relay.as_secs_f64() / units);
    }
    Ok(figures)
}
