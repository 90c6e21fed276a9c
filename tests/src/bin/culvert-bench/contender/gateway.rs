//! On a host that client and server are routed by: culvert as a gateway, and what others need nftables and routing rules for.
//!
//! `HAProxy` gets connections by TPROXY. nginx cannot listen so, hence the destination is rewritten to its listener, and it is
//! told the server's address, which is less than the others do. To keep the client's address both need packets of the server's
//! delivered here, which the same marks are for.

use std::net::SocketAddr;

use anyhow::Result;
use culvert_tests::{
    Sandbox,
    hosts::{self, LAN},
};

use super::{Family, PROXY_PORT, Peer, Relay, SERVER_PORT, culvert, haproxy, nginx};

/// What becomes of connections there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The kernel routes their packets.
    Routed,
    Culvert {
        path: &'static str,
        keeps_source: bool,
    },
    Haproxy {
        splice: bool,
        keeps_source: bool,
    },
    Nginx {
        keeps_source: bool,
    },
}

pub(super) const fn relayed(path: &'static str, keeps_source: bool) -> Way {
    Way::Culvert { path, keeps_source }
}

pub(super) const fn by_haproxy(splice: bool, keeps_source: bool) -> Way {
    Way::Haproxy {
        splice,
        keeps_source,
    }
}

pub(super) const fn by_nginx(keeps_source: bool) -> Way {
    Way::Nginx { keeps_source }
}

/// Where clients connect.
pub(super) fn server() -> SocketAddr {
    SocketAddr::new(hosts::server(0)[0], SERVER_PORT)
}

impl Way {
    pub(super) const fn family(self) -> Family {
        match self {
            Self::Routed => Family::Direct,
            Self::Culvert { .. } => Family::Culvert,
            Self::Haproxy { .. } | Self::Nginx { .. } => Family::Peer,
        }
    }

    pub(super) const fn path(self) -> Option<&'static str> {
        match self {
            Self::Culvert { path, .. } => Some(path),
            _ => None,
        }
    }

    pub(super) const fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Haproxy { .. } => &haproxy::PROGRAMS,
            Self::Nginx { .. } => &nginx::PROGRAMS,
            Self::Routed | Self::Culvert { .. } => &[],
        }
    }

    pub(super) fn configuration(self, workers: usize) -> String {
        let commands = self.commands().into_iter();
        let commands = commands.map(|(tool, arguments)| format!("{tool} {arguments}\n"));
        commands.collect::<String>() + &self.own(workers)
    }

    /// What is written into the file of its own.
    fn own(self, workers: usize) -> String {
        match self {
            Self::Routed => String::new(),
            Self::Culvert { path, keeps_source } => {
                format!(
                    "[daemon]\n{}\n{}",
                    culvert::daemon(workers),
                    rules(path, keeps_source)
                )
            }
            Self::Haproxy {
                splice,
                keeps_source,
            } => {
                // Where the client connected to.
                let upstream = format!("*:{SERVER_PORT}");
                let upstream = if keeps_source {
                    format!("{upstream} source 0.0.0.0 usesrc clientip")
                } else {
                    upstream
                };
                haproxy::written(splice, "transparent", &upstream, workers)
            }
            Self::Nginx { keeps_source } => {
                let more = if keeps_source {
                    "proxy_bind $remote_addr transparent;"
                } else {
                    ""
                };
                nginx::written(more, server(), workers)
            }
        }
    }

    /// Has a peer get the connections: a tool, and its arguments.
    pub(super) fn commands(self) -> Vec<(&'static str, String)> {
        const MARK: &str = "meta mark set 1";
        let taken = format!(
            "iifname {} ip daddr {} tcp dport {SERVER_PORT}",
            LAN[0],
            server().ip()
        );
        let nft = |command: &str| ("nft", command.to_owned());
        let chain = |name: &str, kind: &str| {
            let hook = format!(
                "{{ type {kind} hook prerouting priority {} ; }}",
                match kind {
                    "nat" => -100,
                    _ => -150,
                }
            );
            ("nft", format!("add chain ip bench {name} {hook}"))
        };
        let mut commands = Vec::new();
        let (by_mark, by_nat) = match self {
            Self::Routed | Self::Culvert { .. } => return commands,
            Self::Haproxy { .. } => (true, false),
            Self::Nginx { keeps_source } => (keeps_source, true),
        };
        commands.push(nft("add table ip bench"));
        if by_mark {
            commands.extend([
                chain("marked", "filter"),
                nft(&format!(
                    "add rule ip bench marked meta l4proto tcp socket transparent 1 {MARK} accept"
                )),
                ("ip", "rule add fwmark 1 lookup 100".to_owned()),
                ("ip", "route add local default dev lo table 100".to_owned()),
            ]);
        }
        if by_nat {
            commands.push(chain("taken", "nat"));
        }
        commands.push(nft(&if by_nat {
            format!("add rule ip bench taken {taken} redirect to :{PROXY_PORT}")
        } else {
            format!("add rule ip bench marked {taken} tproxy to :{PROXY_PORT} {MARK} accept")
        }));
        commands
    }

    pub(super) fn start(
        self,
        sandbox: &Sandbox,
        workers: usize,
        is_logged: bool,
    ) -> Result<Relay<'_>> {
        let peer = || Peer::new(sandbox);
        match self {
            Self::Routed => Ok(Relay::Nobody),
            Self::Culvert { path, keeps_source } => {
                let rules = rules(path, keeps_source);
                Ok(Relay::Culvert {
                    culvert: culvert::run(sandbox, path, &rules, workers, is_logged),
                    socks: None,
                })
            }
            Self::Haproxy { .. } => haproxy::run(sandbox, peer(), &self.own(workers)),
            Self::Nginx { .. } => nginx::run(sandbox, peer(), &self.own(workers)),
        }
    }
}

fn rules(path: &str, keeps_source: bool) -> String {
    format!(
        r#"
[[gateway]]
name = "all"
interface = "{}"
match = {{ port = {SERVER_PORT} }}
via = "original"
path = "{path}"
keep_source = {keeps_source}
"#,
        LAN[0]
    )
}
