//! How many packets one core routes in a second of its time between two veth interfaces: by the fast path, and by the kernel between two others of
//! the same host, in turn. Or by the kernel where a `[[gateway]]` rule has looked at them and let them pass.
//!
//! Each packet is received, routed, sent, and thrown away where it arrives, all on one core; what is not routing is the same for
//! both. To be run as root on a quiet machine, with `CULVERT_BIN` naming a release build.

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
use clap::Parser;
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
    /// Instead of the fast path have a gateway, with rules for other connections than those that the packets are of.
    #[arg(long)]
    gateway: bool,
}

impl Arguments {
    fn configuration(&self) -> String {
        if self.gateway {
            return format!(
                "[[gateway]]\nname = \"others\"\ninterface = \"{}\"\nmatch = {{ port = 443 }}\nvia = \"original\"\n",
                LAN[FAST]
            );
        }
        format!(
            "[router]\nfast_path = [\"{}\", \"{}\"]\nforce = {}\n",
            LAN[FAST], WAN[FAST], self.firewall
        )
    }

    const fn protocol(&self) -> Protocol {
        if self.gateway {
            Protocol::Tcp
        } else {
            Protocol::Udp
        }
    }

    const fn name(&self) -> &'static str {
        if self.gateway { "gateway" } else { "fast path" }
    }
}

/// The first interfaces are those of the fast path, the second ones are the kernel's.
const FAST: usize = 0;
const KERNEL: usize = 1;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    for number in [FAST, KERNEL] {
        sink(router, hosts.server(number), number);
    }
    if arguments.firewall {
        router.tool("nft", "add table inet wall");
        let chain = "add chain inet wall through { type filter hook forward priority 0 ; }";
        router.tool("nft", chain);
        router.tool("nft", "add rule inet wall through ct state invalid drop");
    }
    let culvert = sandbox.culvert(&arguments.configuration());
    let before = culvert.counter("fast");
    let hardware = [FAST, KERNEL].map(|number| router.hardware(LAN[number]));
    let rates = router.within(|| rounds(&arguments, hardware))?;
    let sent_on = culvert.counter("fast") - before;
    let expected = u64::from(arguments.packets) * (arguments.rounds as u64 + 1);
    ensure!(
        arguments.gateway || sent_on >= expected / 100 * 99,
        "the fast path sent on {sent_on} of {expected} packets"
    );
    report(&rates, arguments.name());
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

/// Packets a second, round by round: of the fast path, and of the kernel.
fn rounds(arguments: &Arguments, hardware: [[u8; 6]; 2]) -> Result<[Vec<f64>; 2]> {
    let mut core = CpuSet::new();
    core.set(arguments.core)?;
    sched_setaffinity(Pid::from_raw(0), &core).context("cannot stay on one core")?;
    let generators = [
        generator(FAST, hardware[FAST], arguments.protocol())?,
        generator(KERNEL, hardware[KERNEL], arguments.protocol())?,
    ];
    let mut rates = [Vec::new(), Vec::new()];
    // The first round is to warm up.
    for round in 0..=arguments.rounds {
        for number in [FAST, KERNEL] {
            let rate = rate(&generators[number], number, arguments.packets)?;
            if round > 0 {
                rates[number].push(rate);
            }
        }
    }
    Ok(rates)
}

fn generator(number: usize, hardware: [u8; 6], protocol: Protocol) -> Result<Generator> {
    let IpAddr::V4(source) = hosts::client(number)[0] else {
        bail!("an IPv4 address comes first");
    };
    let interface = if_nametoindex(LAN[number])?;
    Generator::new(interface, hardware, source, beyond(number), protocol)
}

fn rate(generator: &Generator, number: usize, packets: u32) -> Result<f64> {
    let (before, begun) = (sent(WAN[number])?, used()?);
    generator.run(packets)?;
    let (taken, routed) = (used()?.saturating_sub(begun), sent(WAN[number])? - before);
    ensure!(
        routed >= u64::from(packets) / 100 * 99,
        "{routed} of {packets} packets arrived"
    );
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let routed = routed as f64;
    Ok(routed / taken.as_secs_f64())
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

fn report(rates: &[Vec<f64>; 2], name: &str) {
    let mut ratios: Vec<_> = rates[FAST]
        .iter()
        .zip(&rates[KERNEL])
        .map(|(fast, kernel)| fast / kernel)
        .collect();
    for (name, number) in [("kernel", KERNEL), (name, FAST)] {
        let mut sorted = rates[number].clone();
        let (median, least, most) = spread(&mut sorted);
        println!("{name:9}  {median:>10.0} packets/s  ({least:.0} to {most:.0})");
    }
    let (median, least, most) = spread(&mut ratios);
    println!("ratio      {median:>10.2}            ({least:.2} to {most:.2}, round by round)");
}

/// The middle one, the least and the greatest.
fn spread(of: &mut [f64]) -> (f64, f64, f64) {
    of.sort_by(f64::total_cmp);
    (of[of.len() / 2], of[0], of[of.len() - 1])
}
