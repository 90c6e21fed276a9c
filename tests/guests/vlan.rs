//! Interfaces of VLANs. The running kernel may be built without (`8021q`), which Debian's are not: only guests run this.

use std::sync::Arc;

use culvert_tests::{
    App, Sandbox,
    app::Route,
    daemon::Settings,
    hosts::{self, Hosts},
    netns::Netns,
    peer::Server,
    process::app_binary,
    rules::passing,
};

/// Another client, behind VLAN tags on a link of its own, the outer one first. The interface is `tagged` and a number, the one
/// without a tag `trunk` and the number.
fn tagged(router: &Netns, number: u8, tags: &[(&str, u16)]) -> Arc<Netns> {
    let host = Arc::new(Netns::new());
    let trunk = format!("trunk{number}");
    router.link(
        &trunk,
        &format!("10.8.{number}.1/24"),
        &host,
        &format!("10.8.{number}.2/24"),
    );
    for (netns, own) in [(router, 1), (&*host, 2)] {
        let mut below = trunk.clone();
        for (depth, (kind, tag)) in tags.iter().enumerate() {
            let name = if depth + 1 == tags.len() {
                format!("tagged{number}")
            } else {
                format!("tag{number}-{depth}")
            };
            netns.ip_all(&[
                format!("link add link {below} name {name} type vlan proto {kind} id {tag}"),
                format!("link set {name} up"),
            ]);
            below = name;
        }
        netns.ip_all(&[
            format!("addr add 10.9.{number}.{own}/24 dev {below}"),
            format!("addr add fd09:{number}::{own}/64 dev {below} nodad"),
        ]);
    }
    host.ip(&format!("route add default via 10.9.{number}.1"));
    host.ip(&format!("-6 route add default via fd09:{number}::1"));
    host
}

/// A VLAN is an interface of its own: what is tagged is nothing to a rule for the interface below.
#[test]
fn what_is_tagged_comes_in_by_the_interface_of_its_vlan() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let router = sandbox.netns();
    let single = tagged(router, 1, &[("802.1Q", 5)]);
    let double = tagged(router, 2, &[("802.1ad", 6), ("802.1Q", 7)]);
    let apps = [&single, &double]
        .map(|host| App::start(&mut sandbox.command_elsewhere(host, app_binary())));
    let mirrors =
        hosts::server(0).map(|address| hosts.server(0).within(|| Server::mirror((address, 0))));
    let echoes =
        hosts::server(0).map(|address| hosts.server(0).within(|| Server::echo((address, 0))));
    let below = ["trunk1", "trunk2", "tag2-0"];
    let all = [&below[..], &["tagged1", "tagged2"]].concat();
    for ingress in ["auto", "clsact"] {
        let settings = Settings::daemon(&format!("ingress = \"{ingress}\""));
        for (interfaces, route) in [(&below[..], Route::Direct), (&all[..], Route::Relayed)] {
            let culvert = sandbox.culvert_with(&settings, &passing(interfaces, ""));
            for app in &apps {
                for mirror in &mirrors {
                    assert_eq!(app.probe(mirror.address()), Ok(route), "{interfaces:?}");
                }
                for echo in &echoes {
                    let socket = app.tcp(echo.address());
                    socket.connect(echo.address()).unwrap();
                    socket.exchange(5, 300_000).unwrap();
                    socket.close();
                }
            }
            let relayed = if route == Route::Relayed { 8 } else { 0 };
            assert_eq!(culvert.counter("transit_relayed"), relayed);
        }
    }
}
