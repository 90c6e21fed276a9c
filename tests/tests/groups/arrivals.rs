//! Groups behind `[[reverse]]` rules: what arrives at this host is balanced.

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    sync::mpsc,
};

use culvert_tests::{
    Load, Sandbox,
    load::assert_flawless,
    peer::{Server, read_all},
    sandbox::{CLIENT_V4, OTHER_V4, SERVER_V4},
};
use socket2::{Domain, Socket, Type};

use super::{
    await_state, group_section,
    proxy_header::{Announced, read_v2},
};

/// What arrives at an address goes to the group.
fn arriving(listen: SocketAddr, endpoints: &[String], more: &str) -> String {
    let group = group_section(endpoints, more);
    format!("{group}\n[[reverse]]\nname = \"site\"\nlisten = \"{listen}\"\nvia = \"web\"\n")
}

/// Connects from an address, has some bytes echoed, and returns the address with its port.
fn exchange(sandbox: &Sandbox, from: Ipv4Addr, to: SocketAddr) -> SocketAddr {
    sandbox.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let local = stream.local_addr().unwrap();
        assert_eq!(read_all(&stream).unwrap(), b"hello");
        local
    })
}

#[test]
fn a_service_and_its_twin_share_what_arrives_at_its_address() {
    let sandbox = Sandbox::new();
    let service = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let twin = sandbox.within(|| Server::echo((OTHER_V4, 0)));
    let endpoints = [service.address().to_string(), twin.address().to_string()];
    // Checks of the service at the address that is taken over must reach it, and not us.
    let more = "balance = \"round-robin\"\nhealth = { tcp = true, interval = \"50ms\", fall = 1, rise = 1 }";
    let culvert = sandbox.culvert(&arriving(service.address(), &endpoints, more));
    for _ in 0..10 {
        exchange(&sandbox, CLIENT_V4, service.address());
    }
    let records = culvert.await_records(10);
    assert_eq!(records.len(), 10, "checks are no connections");
    for endpoint in &endpoints {
        let its = records
            .iter()
            .filter(|record| record.endpoint.as_ref() == Some(endpoint));
        assert_eq!(its.count(), 5);
    }
    drop(twin);
    await_state(&sandbox, &culvert, &endpoints[1], "down");
    for _ in 0..4 {
        exchange(&sandbox, CLIENT_V4, service.address());
    }
    let records = culvert.await_records(14);
    assert!(
        records[10..]
            .iter()
            .all(|record| record.endpoint.as_ref() == Some(&endpoints[0]))
    );
}

#[test]
fn sources_stay_with_their_endpoint_and_are_announced() {
    let sandbox = Sandbox::new();
    let (send, announced) = mpsc::channel();
    let servers: Vec<_> = (0..4)
        .map(|number| {
            let send = send.clone();
            sandbox.within(|| {
                Server::start((SERVER_V4, 0), move |mut stream| {
                    send.send((number, read_v2(&mut stream))).unwrap();
                    let mut reading = stream.try_clone()?;
                    io::copy(&mut reading, &mut stream)?;
                    stream.shutdown(Shutdown::Write)
                })
            })
        })
        .collect();
    let endpoints: Vec<_> = servers
        .iter()
        .map(|one| one.address().to_string())
        .collect();
    let site = SocketAddr::from((OTHER_V4, 443));
    let more = "balance = \"source-hash\"\nsend_proxy = \"v2\"";
    let culvert = sandbox.culvert(&arriving(site, &endpoints, more));
    let mut all = BTreeSet::new();
    for client in 1..=16 {
        let source = Ipv4Addr::new(198, 51, 100, client);
        sandbox.netns().add_address(source.into());
        let mut its = BTreeSet::new();
        for _ in 0..3 {
            let client = exchange(&sandbox, source, site);
            let (server, said) = announced.recv().unwrap();
            let expected = Announced {
                client,
                destination: site,
                unique_id: said.unique_id.clone(),
            };
            assert_eq!(said, expected);
            its.insert(server);
        }
        assert_eq!(its.len(), 1, "{source} changes");
        all.extend(its);
    }
    assert!(all.len() > 1, "all sources go to one");
    let ids: BTreeSet<_> = culvert
        .await_records(48)
        .into_iter()
        .map(|r| r.unique_id)
        .collect();
    assert_eq!(ids.len(), 48, "every connection has its own id");
}

/// Each rule has a name and endpoints of its own, so that its records tell whether it met those of the rule before.
#[test]
fn no_rule_meets_the_endpoints_of_the_one_before() {
    const RELOADS: usize = 25;
    let sandbox = Sandbox::new();
    let servers: Vec<_> = (0..3)
        .map(|_| sandbox.within(|| Server::echo((SERVER_V4, 0))))
        .collect();
    let listen = SocketAddr::from((OTHER_V4, 80));
    let endpoint = |round: usize| servers[round % 3].address().to_string();
    let rules = |round: usize| {
        let rules = arriving(listen, &[endpoint(round)], "");
        rules.replace("\"site\"", &format!("\"{round}\""))
    };
    let culvert = sandbox.culvert(&rules(0));
    let load = Load::under_way(sandbox.app(), &[listen]);
    for round in 1..=RELOADS {
        culvert.reload(&rules(round));
        load.await_rounds(1);
    }
    let rounds = load.finish();
    assert_flawless(&rounds);
    let made: u64 = rounds
        .iter()
        .flat_map(|round| round.outcomes.values())
        .sum();
    let records = culvert.await_records(usize::try_from(made).unwrap());
    let mut met = BTreeSet::new();
    for record in records {
        let round: usize = record.rule.unwrap().parse().unwrap();
        // It may have gone on to those of the next.
        let allowed = [endpoint(round), endpoint(round + 1)];
        let endpoint = record.endpoint.unwrap();
        assert!(allowed.contains(&endpoint), "rule {round} met {endpoint}");
        met.insert(round);
    }
    assert!(met.len() > RELOADS / 2, "{met:?}");
}
