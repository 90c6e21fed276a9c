//! Hosts around a sandbox, which forwards what they send each other.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
    sync::Arc,
};

use crate::{
    App, Sandbox,
    kernel::has_ipv6,
    netns::Netns,
    process::{app_binary, output},
};

/// Two clients and two servers, each on a link of its own. The sandbox is their router and has no other way to know them.
#[derive(Debug)]
pub struct Hosts {
    clients: [Arc<Netns>; 2],
    servers: [Arc<Netns>; 2],
}

/// The interfaces of the sandbox by which clients come in.
pub const LAN: [&str; 2] = ["lan0", "lan1"];
/// Those to the servers.
pub const WAN: [&str; 2] = ["wan0", "wan1"];

impl Hosts {
    /// Connects them to a sandbox, and has that forward.
    pub fn around(sandbox: &Sandbox) -> Self {
        Self::around_router(sandbox.netns())
    }

    /// Connects them to a router without a sandbox.
    pub fn around_router(router: &Netns) -> Self {
        let host = |side: u8, name: &str, number: usize| {
            let netns = Arc::new(Netns::new());
            let [near, far] = [1, 2].map(|host| v4(side, number, host));
            let link = (format!("{near}/24"), format!("{far}/24"));
            router.link(name, &link.0, &netns, &link.1);
            let default = |near: IpAddr| format!("route add default via {near}");
            let address = |own: Ipv6Addr| format!("addr add {own}/64 dev {name} nodad");
            let mut commands = vec![default(near.into())];
            if has_ipv6() {
                let [near, far] = [1, 2].map(|host| v6(side, number, host));
                router.ip(&address(near));
                commands.extend([address(far), default(near.into())]);
            }
            netns.ip_all(&commands);
            netns
        };
        let hosts = Self {
            clients: [0, 1].map(|number| host(1, LAN[number], number)),
            servers: [0, 1].map(|number| host(2, WAN[number], number)),
        };
        router.sysctl("net.ipv4.ip_forward", "1");
        if has_ipv6() {
            router.sysctl("net.ipv6.conf.all.forwarding", "1");
        }
        hosts
    }

    /// A client.
    pub fn client(&self, number: usize) -> &Arc<Netns> {
        &self.clients[number]
    }

    /// A server.
    pub fn server(&self, number: usize) -> &Arc<Netns> {
        &self.servers[number]
    }

    /// A program on a client.
    pub fn app(&self, sandbox: &Sandbox, number: usize) -> App {
        App::start(&mut sandbox.command_elsewhere(self.client(number), app_binary()))
    }
}

/// The addresses of a client.
pub fn client(number: usize) -> [IpAddr; 2] {
    [v4(1, number, 2).into(), v6(1, number, 2).into()]
}

/// The addresses of a server.
pub fn server(number: usize) -> [IpAddr; 2] {
    [v4(2, number, 2).into(), v6(2, number, 2).into()]
}

/// Those of them that this kernel has: without IPv6 the first.
pub fn server_here(number: usize) -> Vec<IpAddr> {
    let families = if has_ipv6() { 2 } else { 1 };
    server(number).into_iter().take(families).collect()
}

/// The addresses of the sandbox on the link to a server.
pub fn toward_server(number: usize) -> [IpAddr; 2] {
    [v4(2, number, 1).into(), v6(2, number, 1).into()]
}

/// The addresses of the sandbox on the link to a client.
pub fn toward_client(number: usize) -> [IpAddr; 2] {
    [v4(1, number, 1).into(), v6(1, number, 1).into()]
}

fn v4(side: u8, number: usize, host: u8) -> Ipv4Addr {
    let number = u8::try_from(number).expect("a small number");
    Ipv4Addr::new(10, side, number, host)
}

fn v6(side: u8, number: usize, host: u8) -> Ipv6Addr {
    let number = u16::try_from(number).expect("a small number");
    let (side, host) = (u16::from(side), u16::from(host));
    Ipv6Addr::new(0xfd00, side, number, 0, 0, 0, 0, host)
}

/// Has a host count the packets that it gets from a socket to a port.
#[derive(Debug)]
pub struct Witness<'a>(&'a Netns);

impl<'a> Witness<'a> {
    /// Begins to count.
    pub fn of(netns: &'a Netns, from: SocketAddr, port: u16) -> Self {
        let family = if from.is_ipv4() { "ip" } else { "ip6" };
        let (address, from) = (from.ip(), from.port());
        Self::counting(
            netns,
            &format!("{family} saddr {address} tcp sport {from} tcp dport {port}"),
        )
    }

    /// As [`Witness::of`], of all that comes from an address, whatever it is.
    pub fn of_all(netns: &'a Netns, from: IpAddr) -> Self {
        let family = if from.is_ipv4() { "ip" } else { "ip6" };
        Self::counting(netns, &format!("{family} saddr {from}"))
    }

    fn counting(netns: &'a Netns, what: &str) -> Self {
        for command in [
            "add table inet witness",
            "delete table inet witness",
            "add table inet witness",
            "add chain inet witness seen { type filter hook prerouting priority -450 ; }",
            &format!("add rule inet witness seen {what} counter"),
        ] {
            netns.tool("nft", command);
        }
        Self(netns)
    }

    /// How many there were.
    pub fn packets(&self) -> u64 {
        let listed = self.0.within(|| {
            output(Command::new("nft").args(["list", "chain", "inet", "witness", "seen"]))
        });
        packets(&listed)
    }
}

/// Has a server look for connections of a client that it has not seen the beginning of, in both families.
#[derive(Debug)]
pub struct Gatecrashers<'a>(&'a Netns);

impl<'a> Gatecrashers<'a> {
    /// Begins to look.
    pub fn at(netns: &'a Netns, from: [IpAddr; 2]) -> Self {
        netns.tool("nft", "add table inet gate");
        netns.tool(
            "nft",
            "add chain inet gate seen { type filter hook prerouting priority -450 ; }",
        );
        for (address, family, kind) in [(from[0], "ip", "ipv4_addr"), (from[1], "ip6", "ipv6_addr")]
        {
            let key = format!("{family} saddr . tcp sport . tcp dport");
            for command in [
                format!("add counter inet gate begun_{family}"),
                format!("add counter inet gate strange_{family}"),
                format!(
                    "add set inet gate known_{family} {{ type {kind} . inet_service . inet_service ; flags dynamic ; size 65536 ; }}"
                ),
                format!(
                    "add rule inet gate seen {family} saddr {address} tcp flags & ( syn | ack ) == syn counter name begun_{family} add @known_{family} {{ {key} }}"
                ),
                format!(
                    "add rule inet gate seen {family} saddr {address} tcp flags & ( syn | ack ) != syn {key} != @known_{family} counter name strange_{family}"
                ),
            ] {
                netns.tool("nft", &command);
            }
        }
        Self(netns)
    }

    /// How many packets there were that opened a connection, and of others that nobody had opened.
    pub fn packets(&self) -> (u64, u64) {
        let of = |what| {
            let counted = ["ip", "ip6"].map(|family| {
                let name = format!("{what}_{family}");
                let list = ["list", "counter", "inet", "gate", &name];
                packets(&self.0.within(|| output(Command::new("nft").args(list))))
            });
            counted.iter().sum()
        };
        (of("begun"), of("strange"))
    }
}

/// Of a listing of `nft` with one counter.
fn packets(listed: &str) -> u64 {
    let (_, counted) = listed.split_once("packets ").expect("a counter");
    let (number, _) = counted.split_once(' ').expect("a number");
    number.parse().expect("a number")
}

/// Has a host not hear of resets.
pub fn drop_resets(netns: &Netns) {
    netns.tool("nft", "add table inet deaf");
    netns.tool(
        "nft",
        "add chain inet deaf in { type filter hook input priority 0 ; }",
    );
    netns.tool("nft", "add rule inet deaf in tcp flags & rst == rst drop");
}
