//! How many packets one core routes in a second of its time between two veth interfaces: by the fast path, by the kernel between two
//! others of the same host, and by a program that does nothing but send them on, in turn. Or by the kernel, or the fast path, where a
//! `[[gateway]]` rule has looked at them and let them pass, and by that of a host that has no culvert. Or how long a question and its
//! answer take by the same ways.
//!
//! Each packet is received, routed, sent, and thrown away where it arrives, all on one core; what is not routing is the same for
//! all. To be run as root on a quiet machine, with `CULVERT_BIN` naming a release build.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a measurement: what goes wrong ends it, and its result is printed"
)]

mod floor;
mod generator;
mod latency;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use culvert_tests::{
    Sandbox,
    hosts::{self, Hosts, LAN, WAN},
    netns::Netns,
    process::run,
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use generator::{Generator, Protocol};
use latency::{Exchange, quantile};

/// Packets a second of one core: the fast path, or a gateway that they are nothing to, against the kernel.
#[derive(Parser)]
struct Arguments {
    /// Rounds of each.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Packets of a round.
    #[arg(long, default_value_t = 2_000_000)]
    packets: u32,
    /// The core.
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Have the kernel's packets go through a chain that knows connections.
    #[arg(long)]
    firewall: bool,
    /// Instead of the fast path have a gateway, with a rule for other connections than those that the packets are of.
    #[arg(long, value_name = "RULE")]
    gateway: Option<Others>,
    /// With a gateway, have the fast path on the same interfaces.
    #[arg(long, requires = "gateway")]
    fast_path: bool,
    /// Packets of IPv6.
    #[arg(long)]
    ipv6: bool,
    /// What is measured.
    #[arg(long, value_enum, default_value_t)]
    measure: Measure,
}

/// What is measured.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// Packets that arrive nowhere: how many a second.
    #[default]
    Rate,
    /// Questions and answers over a connection: quantiles of their times.
    Latency,
}

/// What a rule selects, other than packets to port 4000 of some hosts.
#[derive(Clone, Copy, ValueEnum)]
enum Others {
    /// Another port.
    Port,
    /// That port, of other hosts.
    Hosts,
    /// Another port, without letting anything pass.
    HeldPort,
    /// That port of other hosts, without letting anything pass.
    HeldHosts,
}

impl Others {
    fn rule(self) -> String {
        let (matches, mode) = match self {
            Self::Port => ("port = 443", "direct"),
            Self::Hosts => ("port = 4000, dest = \"198.51.100.0/24\"", "direct"),
            Self::HeldPort => ("port = 443", "refuse"),
            Self::HeldHosts => ("port = 4000, dest = \"198.51.100.0/24\"", "refuse"),
        };
        format!(
            "[[gateway]]\nname = \"others\"\ninterface = \"{}\"\nmatch = {{ {matches} }}\nvia = \"original\"\n\
             on_relay_failure = \"{mode}\"\n",
            LAN[FAST]
        )
    }
}

impl Arguments {
    fn configuration(&self) -> String {
        let router = format!(
            "[router]\nfast_path = [\"{}\", \"{}\"]\nforce = {}\n",
            LAN[FAST], WAN[FAST], self.firewall
        );
        match self.gateway {
            Some(others) if self.fast_path => others.rule() + &router,
            Some(others) => others.rule(),
            None => router,
        }
    }

    fn has_fast_path(&self) -> bool {
        self.gateway.is_none() || self.fast_path
    }

    const fn family(&self) -> usize {
        if self.ipv6 { 1 } else { 0 }
    }
}

/// The first interfaces of a host are those of the fast path or the gateway, the second ones are the kernel's.
const FAST: usize = 0;
const KERNEL: usize = 1;

/// Where packets are routed.
struct Lane<'a> {
    name: &'static str,
    router: &'a Netns,
    /// Of its interfaces.
    number: usize,
    generator: Generator,
    /// Packets a second, round by round.
    rates: Vec<f64>,
}

impl<'a> Lane<'a> {
    fn new(
        name: &'static str,
        (router, hosts): (&'a Netns, &Hosts),
        number: usize,
        (protocol, family): (Protocol, usize),
    ) -> Result<Self> {
        sink(router, hosts.server(number), number, family);
        let hardware = router.hardware(LAN[number]);
        let source = hosts::client(number)[family];
        let generator = router.within(|| {
            let interface = if_nametoindex(LAN[number])?;
            let (dest, _) = beyond(number, family);
            Generator::new(interface, hardware, (source, dest), protocol)
        })?;
        Ok(Self {
            name,
            router,
            number,
            generator,
            rates: Vec::new(),
        })
    }

    fn rate(&self, packets: u32) -> Result<f64> {
        self.router.within(|| {
            let by = WAN[self.number];
            let (before, begun) = (sent(by)?, used()?);
            self.generator.run(packets)?;
            let (taken, routed) = (used()?.saturating_sub(begun), sent(by)? - before);
            ensure!(
                routed >= u64::from(packets) / 100 * 99,
                "{routed} of {packets} packets arrived"
            );
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let routed = routed as f64;
            Ok(routed / taken.as_secs_f64())
        })
    }
}

/// A name, a router with its hosts, and which of its interfaces.
type Way<'a> = (&'static str, (&'a Netns, &'a Hosts), usize);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let sandbox = Sandbox::new();
    let (router, other) = (sandbox.netns(), Netns::new());
    let here = (router, &Hosts::around(&sandbox));
    let there = (&other, &Hosts::around_router(&other));
    let ruled = Netns::new();
    let with_rule = (&ruled, &Hosts::around_router(&ruled));
    // The kernel comes first, which the others are compared with.
    let ways = if arguments.gateway.is_some() {
        vec![
            ("kernel", there, FAST),
            ("gateway", here, FAST),
            ("beside", here, KERNEL),
            ("one rule", with_rule, FAST),
        ]
    } else {
        vec![("kernel", here, KERNEL), ("fast path", here, FAST)]
    };
    for option in ["-4", "-6"] {
        ruled.ip(&format!("{option} rule add fwmark 7 lookup 77"));
    }
    if arguments.firewall {
        for router in [router, &other] {
            router.tool("nft", "add table inet wall");
            let chain = "add chain inet wall through { type filter hook forward priority 0 ; }";
            router.tool("nft", chain);
            router.tool("nft", "add rule inet wall through ct state invalid drop");
        }
    }
    let culvert = sandbox.culvert(&arguments.configuration());
    let before = culvert.counter("fast");
    let has_answers = arguments.measure == Measure::Latency;
    if has_answers {
        latencies(&arguments, &ways)?;
    } else {
        rates(&arguments, &ways, with_rule)?;
    }
    let sent_on = culvert.counter("fast") - before;
    let per_round = u64::from(arguments.packets) * if has_answers { 2 } else { 1 };
    let expected = per_round * (arguments.rounds as u64 + 1);
    ensure!(
        !arguments.has_fast_path() || sent_on >= expected / 100 * 99,
        "the fast path sent on {sent_on} of {expected} packets"
    );
    Ok(())
}

/// Packets a second by each way, and where the fast path is measured by a host that only sends them on.
fn rates(arguments: &Arguments, ways: &[Way<'_>], bare: (&Netns, &Hosts)) -> Result<()> {
    let family = arguments.family();
    let protocol = if arguments.gateway.is_some() {
        Protocol::Tcp
    } else {
        Protocol::Udp
    };
    let mut lanes = Vec::new();
    for (name, router, number) in ways {
        lanes.push(Lane::new(name, *router, *number, (protocol, family))?);
    }
    let mut floor = None;
    if arguments.gateway.is_none() {
        lanes.push(Lane::new("floor", bare, KERNEL, (protocol, family))?);
        let pass = || floor::pass(LAN[KERNEL], WAN[KERNEL]);
        floor = Some(bare.0.within(pass)?);
    }
    rounds(arguments, &mut lanes)?;
    drop(floor);
    report(&lanes);
    Ok(())
}

/// How long questions and answers take, in turn.
fn latencies(arguments: &Arguments, ways: &[Way<'_>]) -> Result<()> {
    let exchange = |&(name, (_, hosts), number): &Way<'_>| {
        let to = (hosts::server(number)[arguments.family()], PORT);
        let exchange = Exchange::between(hosts.client(number), hosts.server(number), to)?;
        Ok((name, exchange, Vec::new()))
    };
    let mut lanes: Vec<_> = ways.iter().map(exchange).collect::<Result<_>>()?;
    stay(arguments.core)?;
    for round in 0..=arguments.rounds {
        for (_, exchange, times) in &mut lanes {
            let new = exchange.times(arguments.packets)?;
            if round > 0 {
                times.push(new);
            }
        }
    }
    for (name, _, times) in &lanes {
        let shown = [500, 900, 990].map(|of_thousand| {
            let mut rounds: Vec<_> = times
                .iter()
                .map(|times| quantile(times, of_thousand).as_secs_f64() * 1e6)
                .collect();
            let (median, least, most) = spread(&mut rounds);
            format!(
                "p{} {median:.2} us ({least:.2} to {most:.2})",
                of_thousand / 10
            )
        });
        println!("{name:9}  {}", shown.join("  "));
    }
    Ok(())
}

/// Where packets and connections go that no rule selects.
const PORT: u16 = 4000;

/// The first address of a network behind a server, and the length of its prefix.
fn beyond(number: usize, family: usize) -> (IpAddr, u8) {
    let number = u8::try_from(number).expect("one of two");
    if family == 0 {
        (Ipv4Addr::new(10, 66, number, 0).into(), 24)
    } else {
        let last = u16::from(number) << 8;
        (Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 0, last).into(), 120)
    }
}

/// Has a server throw away what it gets, and the router know it nevertheless, and a network behind it.
fn sink(router: &Netns, server: &Netns, number: usize, family: usize) {
    let name = WAN[number];
    let address = hosts::server(number)[family];
    let hardware = server.hardware(name);
    let shown = hardware.map(|byte| format!("{byte:02x}")).join(":");
    router.ip(&format!(
        "neigh replace {address} lladdr {shown} dev {name} nud permanent"
    ));
    let (net, length) = beyond(number, family);
    router.ip(&format!("route add {net}/{length} via {address}"));
    server.within(|| {
        run("tc", &["qdisc", "add", "dev", name, "clsact"]);
        let filter = [
            "filter", "add", "dev", name, "ingress", "bpf", "da", "bytecode",
        ];
        run("tc", &[&filter[..], &["1,6 0 0 2,"]].concat());
    });
}

/// Measures all in turn.
fn rounds(arguments: &Arguments, lanes: &mut [Lane<'_>]) -> Result<()> {
    stay(arguments.core)?;
    // The first round is to warm up.
    for round in 0..=arguments.rounds {
        for lane in &mut *lanes {
            let rate = lane.rate(arguments.packets)?;
            if round > 0 {
                lane.rates.push(rate);
            }
        }
    }
    Ok(())
}

fn stay(on: usize) -> Result<()> {
    let mut core = CpuSet::new();
    core.set(on)?;
    sched_setaffinity(Pid::from_raw(0), &core).context("cannot stay on one core")
}

/// What this thread has used of its core: the kernel routes in its time, and others on the core do not count.
fn used() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Packets that were sent by an interface.
fn sent(interface: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))
        .context("no such interface")?;
    let field = line.split_ascii_whitespace().nth(9);
    Ok(field.context("no counters")?.parse()?)
}

fn report(lanes: &[Lane<'_>]) {
    for Lane { name, rates, .. } in lanes {
        let mut ratios: Vec<_> = rates
            .iter()
            .zip(&lanes[0].rates)
            .map(|(rate, kernel)| rate / kernel)
            .collect();
        let (median, least, most) = spread(&mut rates.clone());
        let (ratio, lowest, highest) = spread(&mut ratios);
        println!(
            "{name:9}  {median:>10.0} packets/s  ({least:.0} to {most:.0})  {ratio:.3}  ({lowest:.3} to {highest:.3}, round by round)"
        );
    }
}

/// The middle one, the least and the greatest.
fn spread(of: &mut [f64]) -> (f64, f64, f64) {
    of.sort_by(f64::total_cmp);
    (of[of.len() / 2], of[0], of[of.len() - 1])
}
