//! How many packets one core routes in a second of its time between two veth interfaces: by the fast path, and by the kernel between two others of
//! the same host, in turn. Or by the kernel where a `[[gateway]]` rule has looked at them and let them pass, and by that of a host that
//! has no culvert.
//!
//! Each packet is received, routed, sent, and thrown away where it arrives, all on one core; what is not routing is the same for
//! all. To be run as root on a quiet machine, with `CULVERT_BIN` naming a release build.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a measurement: what goes wrong ends it, and its result is printed"
)]

mod generator;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
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
        match self.gateway {
            Some(others) => others.rule(),
            None => format!(
                "[router]\nfast_path = [\"{}\", \"{}\"]\nforce = {}\n",
                LAN[FAST], WAN[FAST], self.firewall
            ),
        }
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
        protocol: Protocol,
    ) -> Result<Self> {
        sink(router, hosts.server(number), number);
        let hardware = router.hardware(LAN[number]);
        let IpAddr::V4(source) = hosts::client(number)[0] else {
            bail!("an IPv4 address comes first");
        };
        let generator = router.within(|| {
            let interface = if_nametoindex(LAN[number])?;
            Generator::new(interface, hardware, source, beyond(number), protocol)
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

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let sandbox = Sandbox::new();
    let (router, other) = (sandbox.netns(), Netns::new());
    let here = (router, &Hosts::around(&sandbox));
    let there = (&other, &Hosts::around_router(&other));
    let ruled = Netns::new();
    let with_rule = (&ruled, &Hosts::around_router(&ruled));
    // The kernel comes first, which the others are compared with.
    let mut lanes = if arguments.gateway.is_some() {
        vec![
            Lane::new("kernel", there, FAST, Protocol::Tcp)?,
            Lane::new("gateway", here, FAST, Protocol::Tcp)?,
            Lane::new("beside", here, KERNEL, Protocol::Tcp)?,
            Lane::new("one rule", with_rule, FAST, Protocol::Tcp)?,
        ]
    } else {
        vec![
            Lane::new("kernel", here, KERNEL, Protocol::Udp)?,
            Lane::new("fast path", here, FAST, Protocol::Udp)?,
        ]
    };
    ruled.ip("rule add fwmark 7 lookup 77");
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
    rounds(&arguments, &mut lanes)?;
    let sent_on = culvert.counter("fast") - before;
    let expected = u64::from(arguments.packets) * (arguments.rounds as u64 + 1);
    ensure!(
        arguments.gateway.is_some() || sent_on >= expected / 100 * 99,
        "the fast path sent on {sent_on} of {expected} packets"
    );
    report(&lanes);
    Ok(())
}

/// The first address of a network behind a server.
fn beyond(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 66, u8::try_from(number).expect("one of two"), 0)
}

/// Has a server throw away what it gets, and the router know it nevertheless, and a network behind it.
fn sink(router: &Netns, server: &Netns, number: usize) {
    let name = WAN[number];
    let address = hosts::server(number)[0];
    let hardware = server.hardware(name);
    let shown = hardware.map(|byte| format!("{byte:02x}")).join(":");
    router.ip(&format!(
        "neigh replace {address} lladdr {shown} dev {name} nud permanent"
    ));
    router.ip(&format!("route add {}/24 via {address}", beyond(number)));
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
    let mut core = CpuSet::new();
    core.set(arguments.core)?;
    sched_setaffinity(Pid::from_raw(0), &core).context("cannot stay on one core")?;
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
