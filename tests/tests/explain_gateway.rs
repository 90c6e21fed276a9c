//! What `culvert explain` says of connections that pass through, against what becomes of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::{IpAddr, SocketAddr};

use culvert_tests::{
    Culvert, Sandbox,
    app::Route,
    hosts::{self, Hosts, LAN, WAN},
    peer::Server,
};
use serde_json::Value;

struct Asked<'a> {
    sandbox: &'a Sandbox,
    /// Where the rules are: those of a daemon, or of a file.
    rules: [&'a str; 2],
}

impl<'a> Asked<'a> {
    fn a_daemon(sandbox: &'a Sandbox, culvert: &'a Culvert<'_>) -> Self {
        Self {
            sandbox,
            rules: ["--admin", culvert.admin().to_str().unwrap()],
        }
    }

    fn about(&self, from: IpAddr, by: &str, to: SocketAddr) -> Value {
        let (from, to) = (from.to_string(), to.to_string());
        let mut command = self.sandbox.culvert_command();
        command.args(["explain", "--json", "--passing", &from, "--interface", by]);
        let output = command.args(self.rules).arg(&to).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn says(&self, from: IpAddr, by: &str, to: SocketAddr, verdict: &str, why: &[&str]) -> Value {
        let explanation = self.about(from, by, to);
        let reason = explanation["why"].as_str().unwrap();
        assert_eq!(explanation["verdict"], verdict, "{explanation:#}");
        for part in why {
            assert!(reason.contains(part), "{part}: {reason}");
        }
        explanation
    }
}

fn rules(router: &str) -> String {
    format!(
        "[[gateway]]\nname = \"web\"\ninterface = \"{lan}\"\nmatch = {{ port = 1001 }}\nvia = \"original\"\n\
         on_relay_failure = \"refuse\"\n\
         [[gateway]]\nname = \"none\"\ninterface = \"{lan}\"\nmatch = {{ port = 1002 }}\nvia = \"refuse\"\n\
         [[gateway]]\nname = \"free\"\ninterface = \"{lan}\"\nmatch = {{ port = 1003 }}\nvia = \"direct\"\n{router}",
        lan = LAN[0],
    )
}

#[test]
fn what_passes_through_is_explained_as_it_is_decided() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let culvert = sandbox.culvert(&rules(""));
    let asked = Asked::a_daemon(&sandbox, &culvert);
    let app = hosts.app(&sandbox, 0);
    for (index, server) in hosts::server(0).into_iter().enumerate() {
        let client = hosts::client(0)[index];
        let to = |port| SocketAddr::new(server, port);
        let web = asked.says(client, LAN[0], to(1001), "relay", &["\"web\" is the first"]);
        assert_eq!(
            (&web["via"], &web["on_relay_failure"]),
            (&"original".into(), &"refuse".into())
        );
        let first = &web["hooks"][0];
        assert_eq!(
            (&first["hook"], &first["cgroup"], &first["ours"]),
            (&"tcx ingress".into(), &LAN[0].into(), &true.into())
        );
        asked.says(
            client,
            LAN[0],
            to(1002),
            "refuse",
            &["\"none\" is the first"],
        );
        let routed = ["the kernel routes it, by wan0"];
        asked.says(client, LAN[0], to(1003), "direct", &routed);
        let rest = asked.says(client, LAN[0], to(1004), "direct", &routed);
        assert_eq!(rest["rules"][0]["key"], "port");
        assert_eq!(rest["rules"][0]["wanted"], "1001");
        assert_eq!(rest["rules"][0]["seen"], "1004");
        let other = asked.says(client, LAN[1], to(1001), "direct", &["no rule selects it"]);
        assert_eq!(other["rules"][0]["key"], "interface");
        for (port, route) in [
            (1001, Route::Relayed),
            (1003, Route::Direct),
            (1004, Route::Direct),
        ] {
            let mirror = hosts.server(0).within(|| Server::mirror((server, port)));
            assert_eq!(app.probe(mirror.address()), Ok(route), "{port}");
        }
        let near = SocketAddr::new(hosts::toward_client(0)[index], 1001);
        asked.says(client, LAN[0], near, "direct", &["for this host itself"]);
    }
    let nowhere = "203.0.113.9:5".parse().unwrap();
    let client = hosts::client(0)[0];
    asked.says(
        client,
        LAN[0],
        nowhere,
        "direct",
        &["the kernel knows no way for it"],
    );
    sandbox.netns().sysctl("net.ipv4.conf.lan0.forwarding", "0");
    let to = SocketAddr::new(hosts::server(0)[0], 1001);
    asked.says(client, LAN[0], to, "direct", &["lan0 forwards no IPv4"]);
}

#[test]
fn the_fast_path_says_what_it_takes_and_why_not() {
    let sandbox = Sandbox::new();
    let hosts = Hosts::around(&sandbox);
    let fast = rules(&format!(
        "[router]\nfast_path = [\"{}\", \"{}\"]\n",
        LAN[0], WAN[0]
    ));
    let culvert = sandbox.culvert(&fast);
    let asked = Asked::a_daemon(&sandbox, &culvert);
    let app = hosts.app(&sandbox, 0);
    for (index, server) in hosts::server(0).into_iter().enumerate() {
        let client = hosts::client(0)[index];
        let to = SocketAddr::new(server, 1004);
        asked.says(client, LAN[0], to, "fast path", &["on by wan0"]);
        let mirror = hosts.server(0).within(|| Server::mirror((server, 1004)));
        assert_eq!(app.probe(mirror.address()), Ok(Route::Direct));
        let free = SocketAddr::new(server, 1003);
        asked.says(client, LAN[0], free, "fast path", &["on by wan0"]);
        let web = SocketAddr::new(server, 1001);
        asked.says(client, LAN[0], web, "relay", &["\"web\""]);
        let elsewhere = SocketAddr::new(hosts::server(1)[index], 1004);
        let why = ["by wan1, since wan1 is none of", "slow_elsewhere"];
        asked.says(client, LAN[0], elsewhere, "direct", &why);
        let other = hosts::client(1)[index];
        asked.says(other, LAN[1], to, "direct", &["since lan1 is none of"]);
    }
    assert!(culvert.counter("fast") > 0);
    let (client, to) = (
        hosts::client(0)[0],
        SocketAddr::new(hosts::server(0)[0], 1004),
    );
    let router = sandbox.netns();
    router.tool("nft", "add table inet wall");
    router.tool(
        "nft",
        "add chain inet wall through { type filter hook forward priority 0 ; policy drop ; }",
    );
    asked.says(
        client,
        LAN[0],
        to,
        "direct",
        &["while the fast path rests", "netfilter"],
    );
    router.tool("nft", "delete table inet wall");
    drop(culvert);
    let file = sandbox.directory().join("asked.toml");
    std::fs::write(&file, &fast).unwrap();
    let asked = Asked {
        sandbox: &sandbox,
        rules: ["--config", file.to_str().unwrap()],
    };
    asked.says(client, LAN[0], to, "fast path", &["on by wan0"]);
}
