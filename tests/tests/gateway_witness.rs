//! What was relayed is never half-routed: while connections come and go all the time, and the daemon is killed, started and frozen in the
//! middle of it, the server looks for packets of connections whose beginning it has not seen.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::{net::SocketAddr, thread, time::Duration};

use culvert_tests::{
    Culvert, Load, Sandbox,
    app::protocol::Storm,
    daemon::Settings,
    eventually,
    frames::{self, Wire},
    hosts::{self, Gatecrashers, Hosts, LAN},
    peer::Server,
    rules::passing,
};
use nix::errno::Errno;

/// Long enough that most are in the middle of something when the daemon is killed.
fn storm(servers: &[Server; 2]) -> Storm {
    Storm {
        addresses: servers.each_ref().map(Server::address).into(),
        threads: 8,
        each: 3,
        length: 400_000,
    }
}

const TIMEOUT: Duration = Duration::from_millis(500);

/// What is relayed by now waits, so that only others can open connections.
fn freeze(culvert: &Culvert<'_>) {
    culvert.freeze();
    eventually("a heartbeat that is too old", || {
        (culvert.maps().heartbeat_age() > TIMEOUT).then_some(())
    });
}

fn settings(ingress: &str) -> Settings {
    Settings::daemon(&format!(
        "ingress = \"{ingress}\"\nheartbeat_timeout = \"500ms\""
    ))
}

const INGRESS: [&str; 2] = ["auto", "clsact"];

fn echoes(hosts: &Hosts) -> [Server; 2] {
    hosts::server(0).map(|address| hosts.server(0).within(|| Server::echo((address, 0))))
}

/// A packet of a connection that there has never been, which is what the server looks for.
fn stray(sandbox: &Sandbox, hosts: &Hosts, to: SocketAddr) {
    const FLAGS: usize = 13;
    const ACK: u8 = 0x10;
    let from = SocketAddr::new(hosts::client(0)[0], 5000);
    let mut tcp = frames::syn(from, to, 20);
    tcp[FLAGS] = ACK;
    let wire = Wire::new(hosts.client(0), LAN[0], sandbox.netns());
    wire.send(&frames::v4(from.ip(), to.ip(), &tcp));
}

#[test]
fn under_load_new_connections_are_routed_and_old_ones_never() {
    for ingress in INGRESS {
        let sandbox = Sandbox::new();
        let hosts = Hosts::around(&sandbox);
        let servers = echoes(&hosts);
        let crashers = Gatecrashers::at(hosts.server(0), hosts::client(0));
        let rules = passing(&LAN[..1], "on_relay_failure = \"direct\"");
        let mut culvert = sandbox.culvert_with(&settings(ingress), &rules);
        let load = Load::start(hosts.app(&sandbox, 0), storm(&servers));
        let other = hosts.app(&sandbox, 0);
        for _ in 0..3 {
            let maps = culvert.maps();
            eventually("connections that are relayed", || {
                (maps.counter("transit_relayed") > 20).then_some(())
            });
            let (begun, _) = crashers.packets();
            freeze(&culvert);
            for server in &servers {
                let socket = other.tcp(server.address());
                socket.connect(server.address()).unwrap();
                socket.assert_echo();
            }
            assert!(crashers.packets().0 > begun);
            culvert.thaw();
            let (begun, _) = crashers.packets();
            culvert.kill();
            eventually("connections that are routed", || {
                (crashers.packets().0 > begun).then_some(())
            });
            culvert = sandbox.culvert_with(&settings(ingress), &rules);
        }
        load.finish();
        let (begun, strange) = crashers.packets();
        assert!(begun > 0);
        assert_eq!(strange, 0, "{ingress}, beside {begun} connections");
        stray(&sandbox, &hosts, servers[0].address());
        eventually("a packet out of nowhere", || {
            (crashers.packets().1 > 0).then_some(())
        });
    }
}

#[test]
fn under_load_nothing_passes_a_rule_that_refuses() {
    for ingress in INGRESS {
        let sandbox = Sandbox::new();
        let hosts = Hosts::around(&sandbox);
        let servers = echoes(&hosts);
        let rules = passing(&LAN[..1], "on_relay_failure = \"refuse\"");
        let mut culvert = sandbox.culvert_with(&settings(ingress), &rules);
        let crashers = Gatecrashers::at(hosts.server(0), hosts::client(0));
        let load = Load::start(hosts.app(&sandbox, 0), storm(&servers));
        let maps = culvert.maps();
        let relayed = |more: u64| {
            let before = maps.counter("transit_relayed");
            eventually("connections that are relayed", || {
                (maps.counter("transit_relayed") > before + more).then_some(())
            });
        };
        relayed(20);
        freeze(&culvert);
        let other = hosts.app(&sandbox, 0);
        let refused: Vec<_> = servers
            .iter()
            .map(|server| {
                let socket = other.tcp(server.address());
                socket.set_nonblocking(true);
                assert_eq!(socket.connect(server.address()), Err(Errno::EINPROGRESS));
                socket
            })
            .collect();
        eventually("connections that are refused", || {
            (maps.counter("failed_refused") > 0).then_some(())
        });
        culvert.thaw();
        relayed(5);
        culvert.kill();
        eventually("connections that are held", || {
            (maps.counter("transit_held") + maps.counter("failed_refused") > 4).then_some(())
        });
        // What crosses, and what is sent again.
        thread::sleep(Duration::from_millis(700));
        assert_eq!(crashers.packets(), (0, 0), "{ingress}");
        sandbox.detach();
        drop(refused);
        load.finish();
        assert!(crashers.packets().0 > 0, "those who waited get through");
    }
}
