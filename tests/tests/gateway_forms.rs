//! Packets of TCP that a gateway cannot read, or should not, and those whose lifetime ends here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{iter, net::SocketAddr};

use culvert_tests::{
    Sandbox,
    app::Route,
    datagrams::Datagrams,
    eventually,
    frames::{self, VERSION_LENGTH, Wire, padding, part, routing, sum_up},
    hosts::{self, Hosts, LAN, Witness},
    kernel::Maps,
    peer::Server,
    rules::passing,
};
use nix::errno::Errno;

/// Packets that are one, or would be taken for a SYN by whoever reads them wrong, and how many of them are routed.
struct Form {
    name: &'static str,
    packets: Vec<Vec<u8>>,
    arrive: u64,
}

/// A client and a server, and how the client reaches the sandbox.
struct Rig<'a> {
    from: SocketAddr,
    to: SocketAddr,
    wire: Wire<'a>,
    witness: Witness<'a>,
}

impl<'a> Rig<'a> {
    fn new(sandbox: &Sandbox, hosts: &'a Hosts, family: usize) -> Self {
        let from = SocketAddr::new(hosts::client(0)[family], 5000);
        // What has no neighbour yet waits for it.
        Datagrams::both(hosts)[family].assert_arrives(10);
        Self {
            from,
            to: SocketAddr::new(hosts::server(0)[family], 1001),
            wire: Wire::new(hosts.client(0), LAN[0], sandbox.netns()),
            witness: Witness::of_all(hosts.server(0), from.ip()),
        }
    }

    /// Waits for so many packets more than there were.
    fn assert_arrive(&self, form: &Form, before: u64) {
        let arrived = eventually(form.name, || {
            let arrived = self.witness.packets() - before;
            (arrived >= form.arrive).then_some(arrived)
        });
        assert_eq!(arrived, form.arrive, "{} of {}", form.name, self.from);
    }

    /// A SYN of this many bytes that no packet before has had the port of.
    fn syn(&mut self, length: u8) -> Vec<u8> {
        self.from.set_port(self.from.port() + 1);
        frames::syn(self.from, self.to, length)
    }

    fn plain(&mut self) -> Vec<u8> {
        let syn = self.syn(20);
        self.packet(&[], &syn)
    }

    /// A whole packet; in IPv4 there is nothing in between.
    fn packet(&self, extensions: &[frames::Extension], content: &[u8]) -> Vec<u8> {
        let (from, to) = (self.from.ip(), self.to.ip());
        if from.is_ipv4() {
            frames::v4(from, to, content)
        } else {
            frames::v6(from, to, extensions, content)
        }
    }

    fn forms(&mut self) -> Vec<Form> {
        let (from, to) = (self.from.ip(), self.to.ip());
        let whole = self.syn(24);
        // What looks like a SYN from its beginning is the end of another one.
        let end = self.syn(24);
        let part = |at, has_more, content: &[u8]| {
            if from.is_ipv4() {
                frames::part_of_v4(from, to, content, at, has_more)
            } else {
                frames::v6(from, to, &[part(at, has_more)], content)
            }
        };
        let mut forms = vec![
            Form {
                name: "fragments",
                packets: vec![part(0, true, &whole), part(3, false, &end)],
                arrive: 2,
            },
            Form {
                name: "cut off",
                packets: vec![self.packet(&[], &whole[..8])],
                arrive: 1,
            },
        ];
        if from.is_ipv4() {
            let mut short = self.plain();
            short[VERSION_LENGTH] = 0x44;
            sum_up(&mut short);
            forms.push(Form {
                name: "a header that is too short",
                packets: vec![short],
                arrive: 0,
            });
        } else {
            let many: Vec<_> = iter::repeat_with(padding).take(9).collect();
            for (name, extensions) in [
                ("many extension headers", many),
                ("more hosts to go to", vec![routing(1)]),
            ] {
                let syn = self.syn(20);
                forms.push(Form {
                    name,
                    packets: vec![self.packet(&extensions, &syn)],
                    arrive: 1,
                });
            }
        }
        forms
    }

    /// Sends what can be read behind each form, which so has come, too.
    fn assert_pass(&mut self, maps: &Maps, counter: &str) {
        for form in self.forms() {
            let (before, seen) = (maps.counter(counter), self.witness.packets());
            for packet in &form.packets {
                self.wire.send(packet);
            }
            let plain = self.plain();
            self.wire.send(&plain);
            let name = form.name;
            let taken = eventually(name, || {
                let taken = maps.counter(counter) - before;
                (taken > 0).then_some(taken)
            });
            assert_eq!(taken, 1, "{name} of {}", self.from);
            self.assert_arrive(&form, seen);
        }
    }
}

/// Whatever the rule does with those that it selects, while the daemon lives and after.
#[test]
fn what_cannot_be_read_passes_as_if_nobody_were_there() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let mut relaying = sandbox.culvert(&passing(&LAN[..1], "on_relay_failure = \"refuse\""));
    let relayed = relaying.maps();
    for family in [0, 1] {
        Rig::new(&sandbox, &hosts, family).assert_pass(&relayed, "transit");
    }
    relaying.kill();
    for family in [0, 1] {
        Rig::new(&sandbox, &hosts, family).assert_pass(&relayed, "transit_held");
    }
    let refuse = passing(&LAN[..1], "").replace("original", "refuse");
    let refusing = sandbox.culvert(&refuse);
    for family in [0, 1] {
        Rig::new(&sandbox, &hosts, family).assert_pass(&refusing.maps(), "transit_refused");
    }
}

/// As many headers as are looked past, and one that has led to all its hosts.
#[test]
fn what_can_be_read_is_taken_whatever_is_in_front() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&passing(&LAN[..1], ""));
    let mut rig = Rig::new(&sandbox, &hosts, 1);
    let eight: Vec<_> = iter::repeat_with(padding).take(8).collect();
    for extensions in [eight, vec![routing(0)]] {
        let before = culvert.counter("transit_relayed");
        let syn = rig.syn(20);
        rig.wire.send(&rig.packet(&extensions, &syn));
        eventually("a SYN that is taken", || {
            (culvert.counter("transit_relayed") == before + 1).then_some(())
        });
    }
    assert_eq!(rig.witness.packets(), 0);
}

/// A connection that is taken ends here, so nobody counts its hops; of what is routed this host is one.
#[test]
fn lifetimes_end_where_packets_are_routed() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&passing(&LAN[..1], "match = { port = 1001 }"));
    let app = hosts.app(&sandbox, 0);
    for server in hosts::server(0) {
        let [taken, free] =
            [1001, 1002].map(|port| hosts.server(0).within(|| Server::mirror((server, port))));
        let with_lifetime = |lifetime, to: &Server| {
            let socket = app.tcp(to.address());
            let (level, name) = if server.is_ipv4() {
                (libc::IPPROTO_IP, libc::IP_TTL)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS)
            };
            socket.set_option(level, name, lifetime).unwrap();
            socket.connect(to.address()).map(|()| {
                let seen = String::from_utf8(socket.receive_all().unwrap()).unwrap();
                seen.parse() == Ok(socket.local().unwrap())
            })
        };
        assert_eq!(with_lifetime(1, &taken), Ok(false));
        assert_eq!(with_lifetime(1, &free), Err(Errno::EHOSTUNREACH));
        assert_eq!(with_lifetime(2, &free), Ok(true));
        assert_eq!(app.probe(free.address()), Ok(Route::Direct));
    }
    for datagrams in Datagrams::both(&hosts) {
        datagrams.hear_errors();
        datagrams.set_lifetime(1);
        datagrams.send(10);
        assert_eq!(datagrams.error(), Errno::EHOSTUNREACH);
    }
    assert_eq!(culvert.counter("transit_relayed"), 2);
}
