//! Which connections rules select: by destination, port and user, and by the order of the rules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use culvert_tests::{
    Sandbox,
    app::{Result, Route},
    peer::Server,
    rules::{RELAY, relayed},
    sandbox::{OTHER_V4, OTHER_V6, SERVER_V4, SERVER_V6},
};
use nix::errno::Errno;

const RELAYED: Result<Route> = Ok(Route::Relayed);
const DIRECT: Result<Route> = Ok(Route::Direct);
const REFUSED: Result<Route> = Err(Errno::ECONNREFUSED);

/// Mirrors at these addresses.
fn mirrors<const N: usize>(sandbox: &Sandbox, addresses: [(IpAddr, u16); N]) -> [Server; N] {
    addresses.map(|address| sandbox.within(|| Server::mirror(address)))
}

fn mapped(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V4(v4) = address else {
        panic!("{address} is no IPv4 address");
    };
    SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
}

/// One relaying rule, with the upstream it needs.
fn one_rule(matches: &str) -> String {
    RELAY.to_owned() + &relayed("rule", matches)
}

#[test]
fn destinations_and_their_exclusions() {
    let sandbox = Sandbox::new();
    let [v4, other_v4, v6, other_v6] = mirrors(
        &sandbox,
        [
            (SERVER_V4.into(), 80),
            (OTHER_V4.into(), 80),
            (SERVER_V6.into(), 80),
            (OTHER_V6.into(), 80),
        ],
    );
    let rule =
        format!(r#"dest = ["192.0.2.0/24", "!{OTHER_V4}", "2001:db8::/32", "!{OTHER_V6}/128"]"#);
    let _culvert = sandbox.culvert(&one_rule(&rule));
    let app = sandbox.app();
    assert_eq!(app.probe(v4.address()), RELAYED);
    assert_eq!(app.probe(v6.address()), RELAYED);
    assert_eq!(app.probe(other_v4.address()), DIRECT);
    assert_eq!(app.probe(other_v6.address()), DIRECT);
    assert_eq!(app.probe(mapped(v4.address())), RELAYED);
    assert_eq!(app.probe(mapped(other_v4.address())), DIRECT);
}

#[test]
fn an_exclusion_alone_selects_all_the_rest() {
    let sandbox = Sandbox::new();
    let [v4, other_v4, v6] = mirrors(
        &sandbox,
        [
            (SERVER_V4.into(), 80),
            (OTHER_V4.into(), 80),
            (SERVER_V6.into(), 80),
        ],
    );
    let _culvert = sandbox.culvert(&one_rule(&format!(r#"dest = "!{SERVER_V4}""#)));
    let app = sandbox.app();
    assert_eq!(app.probe(v4.address()), DIRECT);
    assert_eq!(app.probe(other_v4.address()), RELAYED);
    assert_eq!(app.probe(v6.address()), RELAYED);
}

#[test]
fn loopback_is_direct_unless_a_rule_names_it() {
    let sandbox = Sandbox::new();
    let [v4, v6] = mirrors(
        &sandbox,
        [
            (Ipv4Addr::LOCALHOST.into(), 80),
            (Ipv6Addr::LOCALHOST.into(), 80),
        ],
    );
    let unspecified = [
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80)),
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 80)),
    ];
    let culvert = sandbox.culvert(&one_rule(r#"dest = ["0.0.0.0/0", "::/0"]"#));
    let app = sandbox.app();
    for address in [v4.address(), v6.address(), mapped(v4.address())] {
        assert_eq!(app.probe(address), DIRECT);
    }
    for address in unspecified {
        assert_eq!(app.probe(address), DIRECT);
    }
    culvert.reload(&one_rule(r#"dest = "127.0.0.0/8""#));
    assert_eq!(app.probe(v4.address()), RELAYED);
    assert_eq!(app.probe(mapped(v4.address())), RELAYED);
    assert_eq!(app.probe(v6.address()), DIRECT);
    culvert.reload(&one_rule(r#"dest = "::1""#));
    assert_eq!(app.probe(v4.address()), DIRECT);
    assert_eq!(app.probe(v6.address()), RELAYED);
}

#[test]
fn ports_and_ranges_of_them() {
    let sandbox = Sandbox::new();
    let ports = [79, 80, 443, 7999, 8000, 8443, 8999, 9000];
    let mirrors = mirrors(&sandbox, ports.map(|port| (SERVER_V4.into(), port)));
    let _culvert = sandbox.culvert(&one_rule(r#"port = [80, "443", "8000-8999", "!8443"]"#));
    let app = sandbox.app();
    for mirror in &mirrors {
        let expected = match mirror.address().port() {
            80 | 443 | 8000 | 8999 => RELAYED,
            _ => DIRECT,
        };
        assert_eq!(
            app.probe(mirror.address()),
            expected,
            "{}",
            mirror.address()
        );
    }
}

#[test]
fn users_by_number_range_and_name() {
    let sandbox = Sandbox::new();
    let [mirror] = mirrors(&sandbox, [(SERVER_V4.into(), 80)]);
    let _culvert = sandbox.culvert(&one_rule(r#"uid = ["4000-4999", "!4500", 77, "nobody"]"#));
    let nobody = 65534;
    for (uid, expected) in [
        (0, DIRECT),
        (3999, DIRECT),
        (4000, RELAYED),
        (4500, DIRECT),
        (4999, RELAYED),
        (5000, DIRECT),
        (77, RELAYED),
        (nobody, RELAYED),
    ] {
        let app = sandbox.app();
        app.become_user(uid, 1);
        assert_eq!(app.probe(mirror.address()), expected, "uid {uid}");
    }
}

#[test]
fn groups_by_number_and_name() {
    let sandbox = Sandbox::new();
    let [mirror] = mirrors(&sandbox, [(SERVER_V4.into(), 80)]);
    let _culvert = sandbox.culvert(&one_rule(r#"gid = ["nogroup", "100-199"]"#));
    let nogroup = 65534;
    for (gid, expected) in [
        (0, DIRECT),
        (99, DIRECT),
        (100, RELAYED),
        (199, RELAYED),
        (200, DIRECT),
        (nogroup, RELAYED),
    ] {
        let app = sandbox.app();
        app.become_user(1, gid);
        assert_eq!(app.probe(mirror.address()), expected, "gid {gid}");
    }
}

#[test]
fn all_keys_of_a_rule_must_hold() {
    let sandbox = Sandbox::new();
    let [right, wrong_port, wrong_address] = mirrors(
        &sandbox,
        [
            (SERVER_V4.into(), 80),
            (SERVER_V4.into(), 81),
            (OTHER_V4.into(), 80),
        ],
    );
    let rule = format!(r#"dest = "{SERVER_V4}", port = 80, uid = 4000"#);
    let _culvert = sandbox.culvert(&one_rule(&rule));
    let root = sandbox.app();
    assert_eq!(root.probe(right.address()), DIRECT);
    let user = sandbox.app();
    user.become_user(4000, 1);
    assert_eq!(user.probe(right.address()), RELAYED);
    assert_eq!(user.probe(wrong_port.address()), DIRECT);
    assert_eq!(user.probe(wrong_address.address()), DIRECT);
}

#[test]
fn the_first_rule_in_the_file_decides() {
    let sandbox = Sandbox::new();
    let ports = [80, 81, 82, 83];
    let mirrors = mirrors(&sandbox, ports.map(|port| (SERVER_V4.into(), port)));
    let rules = format!(
        r#"{RELAY}
        [[forward]]
        name = "direct"
        match = {{ port = 80 }}
        via = "direct"
        [[forward]]
        name = "first"
        match = {{ port = "80-81" }}
        via = "relay"
        [[forward]]
        name = "refuse"
        match = {{ port = "80-82" }}
        via = "refuse"
        [[forward]]
        name = "last"
        match = {{ port = "80-83" }}
        via = "relay"
        "#
    );
    let culvert = sandbox.culvert(&rules);
    let app = sandbox.app();
    let routes = mirrors.each_ref().map(|mirror| app.probe(mirror.address()));
    assert_eq!(routes, [DIRECT, RELAYED, REFUSED, RELAYED]);
    let mut records = culvert.await_records(2);
    // Each worker writes its own records, in no order between them.
    records.sort_by_key(|record| record.orig_dst);
    let names: Vec<_> = records
        .iter()
        .map(|record| record.rule.as_deref())
        .collect();
    assert_eq!(names, [Some("first"), Some("last")]);
}

#[test]
fn many_rules_and_prefixes() {
    let sandbox = Sandbox::new();
    let [selected, excluded, unselected] = mirrors(
        &sandbox,
        [
            (SERVER_V4.into(), 1200),
            (OTHER_V4.into(), 1200),
            (SERVER_V4.into(), 1201),
        ],
    );
    let prefixes = |first: u8| {
        let prefixes = (0..5000).map(|number: u16| {
            let [high, low] = number.to_be_bytes();
            format!("\"{first}.{high}.{low}.0/24\"")
        });
        prefixes.collect::<Vec<_>>().join(", ")
    };
    // 200 rules, two of them with 5000 prefixes each, and what is asked for is in the last.
    let others: String = (0..198)
        .map(|number| relayed(&format!("rule-{number}"), &format!("port = {}", number + 1)))
        .collect();
    let rules = [
        RELAY.to_owned(),
        relayed("many", &format!("dest = [{}]", prefixes(10))),
        others,
        relayed(
            "last",
            &format!(
                "dest = [{}, \"192.0.2.0/24\", \"!{OTHER_V4}\"], port = 1200",
                prefixes(11)
            ),
        ),
    ];
    let culvert = sandbox.culvert(&rules.concat());
    let app = sandbox.app();
    assert_eq!(app.probe(selected.address()), RELAYED);
    assert_eq!(app.probe(excluded.address()), DIRECT);
    assert_eq!(app.probe(unselected.address()), DIRECT);
    assert_eq!(culvert.the_record().rule.as_deref(), Some("last"));
}
