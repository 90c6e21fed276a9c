//! Every way that a connection can take to one service, each by an address of its own: a client that works by one of them has to
//! work by all.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use crate::{
    Culvert, eventually,
    record::CloseRecord,
    sandbox::{OTHER_V4, SERVER_V4},
};

/// One way to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The name of its rule.
    pub name: &'static str,
    /// The `path` of its rule.
    path: &'static str,
    /// Where clients connect.
    pub address: SocketAddr,
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Original,
    Reverse,
    Forward,
}

/// Name, role and path; each takes the port at its place.
const WAYS: [(&str, Role, &str); 10] = [
    ("original", Role::Original, "auto"),
    ("copy", Role::Reverse, "copy"),
    ("splice", Role::Reverse, "splice"),
    ("sockmap", Role::Reverse, "sockmap"),
    ("auto", Role::Reverse, "auto"),
    ("steer", Role::Reverse, "steer"),
    ("group", Role::Forward, "auto"),
    ("shortcut", Role::Forward, "shortcut"),
    ("both-ways", Role::Forward, "shortcut-both-ways"),
    ("rewrite", Role::Forward, "rewrite"),
];
const FIRST_PORT: u16 = 7000;

/// All of them, to a service that listens on a port of every address.
pub fn ways(service: u16) -> Vec<Way> {
    let way = |(port, (name, role, path))| {
        let address = match role {
            Role::Original => (SERVER_V4, service),
            Role::Reverse | Role::Forward => (OTHER_V4, port),
        };
        Way {
            name,
            path,
            address: address.into(),
            role,
        }
    };
    (FIRST_PORT..).zip(WAYS).map(way).collect()
}

/// The rules for all of them.
pub fn rules(service: u16) -> String {
    let endpoint = SocketAddr::from((Ipv4Addr::LOCALHOST, service));
    let rule = |way: Way| {
        let Way {
            name,
            path,
            address,
            role,
        } = way;
        let (ip, port) = (address.ip(), address.port());
        let (section, via) = match role {
            Role::Original => (
                format!("reverse]]\nlisten = \"{address}\""),
                "original".into(),
            ),
            Role::Reverse => (
                format!("reverse]]\nlisten = \"{address}\""),
                endpoint.to_string(),
            ),
            Role::Forward => (
                format!("forward]]\nmatch = {{ dest = \"{ip}\", port = {port} }}"),
                "service".into(),
            ),
        };
        format!("[[{section}\nname = \"{name}\"\nvia = \"{via}\"\npath = \"{path}\"\n")
    };
    let rules: String = ways(service).into_iter().map(rule).collect();
    format!("[upstream.service]\nendpoints = [\"{endpoint}\"]\n{rules}")
}

impl Way {
    /// Whether nobody is between the client and the service.
    pub fn is_direct(&self) -> bool {
        matches!(self.path, "steer" | "rewrite")
    }

    /// The host of its address, as clients are told it.
    pub fn host(&self) -> String {
        self.address.ip().to_string()
    }

    /// The port of its address, as clients are told it.
    pub fn port(&self) -> String {
        self.address.port().to_string()
    }

    /// Whether its rule asks for this path, and nothing keeps any client from it.
    fn is_sure(&self) -> bool {
        matches!(self.path, "copy" | "splice" | "sockmap")
    }
}

/// Waits until all connections that were relayed have ended, and returns their records.
pub fn await_ended(culvert: &Culvert<'_>) -> Vec<CloseRecord> {
    eventually("the end of all connections", || {
        let status = culvert.status();
        let connections = &status["connections"];
        let records = culvert.records();
        let all = connections["accepted"] == records.len() && connections["live"] == 0;
        all.then_some(records)
    })
}

/// Looks that connections took the ways they should have: that each of them has been used, was on its path, and ended for one of
/// these reasons. Returns the records of each.
pub fn assert_taken(
    culvert: &Culvert<'_>,
    service: u16,
    reasons: &[&str],
) -> BTreeMap<&'static str, Vec<CloseRecord>> {
    let records = await_ended(culvert);
    for record in &records {
        assert!(reasons.contains(&&*record.reason), "{record:#?}");
    }
    let of = |way: Way| {
        let named = |record: &&CloseRecord| record.rule.as_deref() == Some(way.name);
        let records: Vec<_> = records.iter().filter(named).cloned().collect();
        if way.is_direct() {
            assert_eq!(records.len(), 0, "{way:?}");
            return (way.name, records);
        }
        let ended = records.iter().filter_map(|record| record.path.as_deref());
        let mut paths = BTreeMap::<_, usize>::new();
        for path in ended {
            *paths.entry(path).or_default() += 1;
        }
        println!("{}: {paths:?}", way.name);
        assert!(
            !way.is_sure() || paths.contains_key(way.path),
            "{way:?}: {paths:?}"
        );
        (way.name, records)
    };
    let all = ways(service).into_iter().map(of).collect();
    assert!(culvert.counter("arrived_steered") > 0);
    assert!(culvert.counter("rewritten") > 0);
    all
}
