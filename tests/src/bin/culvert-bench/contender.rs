//! What is compared: no proxy at all, each path of culvert, and its peers.

mod copy;
mod culvert;
mod gateway;
mod haproxy;
mod nginx;
mod peer;
mod redsocks;

use std::net::SocketAddr;

use anyhow::Result;
use culvert_tests::{
    Culvert, Sandbox,
    netns::Netns,
    sandbox::{OTHER_V4, SERVER_V4},
};
use serde::{Deserialize, Serialize};

pub(crate) use self::{copy::relay, peer::Peer};

/// Where the server is; it listens at every address of the sandbox.
pub(crate) const SERVER_PORT: u16 = 8000;
/// Where a proxy listens.
const PROXY_PORT: u16 = 7000;

/// Where clients connect that go through no proxy, or do not know that they do.
pub(crate) fn server() -> SocketAddr {
    (SERVER_V4, SERVER_PORT).into()
}

/// How connections get to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The client connects to the proxy.
    Explicit,
    /// The client connects to the server, and nftables redirects that to the proxy.
    Redirect,
}

/// Which connections culvert takes, and where it sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// Those that the client opens, to where they were going.
    Forward,
    /// The same, by a SOCKS proxy.
    ForwardOverSocks,
    /// Those that arrive where others are told to listen, to the server: what an explicit proxy does.
    Reverse,
}

/// Who moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Direct,
    Culvert {
        path: &'static str,
        job: Job,
    },
    /// On a host between client and server.
    OnTheWay(gateway::Way),
    Copy(Form),
    Nginx(Form),
    Haproxy {
        splice: bool,
        form: Form,
    },
    Redsocks,
}

/// One column of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contender {
    /// As it is called in reports.
    pub(crate) name: &'static str,
    kind: Kind,
}

/// What a contender is to culvert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Family {
    /// What all others are compared with.
    Direct,
    /// culvert itself.
    Culvert,
    /// Others.
    Peer,
}

const fn culvert(name: &'static str, path: &'static str) -> Contender {
    let job = Job::Forward;
    Contender {
        name,
        kind: Kind::Culvert { path, job },
    }
}

const fn reverse(name: &'static str, path: &'static str) -> Contender {
    let job = Job::Reverse;
    Contender {
        name,
        kind: Kind::Culvert { path, job },
    }
}

const fn haproxy(name: &'static str, splice: bool, form: Form) -> Contender {
    Contender {
        name,
        kind: Kind::Haproxy { splice, form },
    }
}

/// All of them; what the others are compared with comes first.
pub(crate) const CONTENDERS: [Contender; 24] = [
    Contender {
        name: "direct",
        kind: Kind::Direct,
    },
    // Every value that `path` of a rule has: another one is another line.
    culvert("culvert-auto", "auto"),
    culvert("culvert-rewrite", "rewrite"),
    culvert("culvert-copy", "copy"),
    culvert("culvert-splice", "splice"),
    culvert("culvert-sockmap", "sockmap"),
    culvert("culvert-shortcut", "shortcut"),
    culvert(
        "culvert-shortcut-without-fionread",
        "shortcut-without-fionread",
    ),
    culvert("culvert-shortcut-both-ways", "shortcut-both-ways"),
    // What redsocks has to be compared with, which cannot do without a SOCKS proxy.
    Contender {
        name: "culvert-copy-socks",
        kind: Kind::Culvert {
            path: "copy",
            job: Job::ForwardOverSocks,
        },
    },
    reverse("culvert-reverse-auto", "auto"),
    reverse("culvert-reverse-copy", "copy"),
    reverse("culvert-reverse-splice", "splice"),
    reverse("culvert-reverse-sockmap", "sockmap"),
    reverse("culvert-reverse-steer", "steer"),
    Contender {
        name: "tokio",
        kind: Kind::Copy(Form::Explicit),
    },
    Contender {
        name: "nginx",
        kind: Kind::Nginx(Form::Explicit),
    },
    haproxy("haproxy", false, Form::Explicit),
    haproxy("haproxy-splice", true, Form::Explicit),
    Contender {
        name: "tokio-redirect",
        kind: Kind::Copy(Form::Redirect),
    },
    Contender {
        name: "nginx-redirect",
        kind: Kind::Nginx(Form::Redirect),
    },
    haproxy("haproxy-redirect", false, Form::Redirect),
    haproxy("haproxy-splice-redirect", true, Form::Redirect),
    Contender {
        name: "redsocks-redirect",
        kind: Kind::Redsocks,
    },
];

const fn on_the_way(name: &'static str, way: gateway::Way) -> Contender {
    let kind = Kind::OnTheWay(way);
    Contender { name, kind }
}

/// Those on a host that client and server are routed by; what the others are compared with comes first.
pub(crate) const ON_THE_WAY: [Contender; 12] = [
    on_the_way("routed", gateway::Way::Routed),
    on_the_way("culvert-gateway-auto", gateway::relayed("auto", false)),
    on_the_way("culvert-gateway-copy", gateway::relayed("copy", false)),
    on_the_way("culvert-gateway-splice", gateway::relayed("splice", false)),
    on_the_way(
        "culvert-gateway-sockmap",
        gateway::relayed("sockmap", false),
    ),
    on_the_way(
        "culvert-gateway-keep-source",
        gateway::relayed("auto", true),
    ),
    on_the_way("haproxy-tproxy", gateway::by_haproxy(false, false)),
    on_the_way("haproxy-splice-tproxy", gateway::by_haproxy(true, false)),
    on_the_way(
        "haproxy-tproxy-keep-source",
        gateway::by_haproxy(false, true),
    ),
    on_the_way(
        "haproxy-splice-tproxy-keep-source",
        gateway::by_haproxy(true, true),
    ),
    on_the_way("nginx-gateway", gateway::by_nginx(false)),
    on_the_way("nginx-gateway-keep-source", gateway::by_nginx(true)),
];

/// A proxy that runs.
pub(crate) enum Relay<'a> {
    /// None.
    Nobody,
    /// A daemon, and the proxy behind it if there is one, which outlives it.
    Culvert {
        culvert: Box<Culvert<'a>>,
        #[expect(dead_code, reason = "ends the program when it is dropped")]
        socks: Option<Peer<'a>>,
    },
    /// Somebody else's program.
    Peer(#[expect(dead_code, reason = "ends the program when it is dropped")] Peer<'a>),
}

impl Contender {
    pub(crate) fn family(&self) -> Family {
        match self.kind {
            Kind::Direct => Family::Direct,
            Kind::Culvert { .. } => Family::Culvert,
            Kind::OnTheWay(way) => way.family(),
            _ => Family::Peer,
        }
    }

    /// The path that culvert is told to take.
    pub(crate) fn path(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Culvert { path, .. } => Some(path),
            Kind::OnTheWay(way) => way.path(),
            _ => None,
        }
    }

    /// What the hooks of culvert count when they take a connection as they should.
    pub(crate) fn counter(&self) -> &'static str {
        match self.kind {
            Kind::Culvert { path: "steer", .. } => "arrived_steered",
            Kind::Culvert {
                path: "rewrite", ..
            } => "rewritten",
            Kind::Culvert {
                job: Job::Reverse, ..
            } => "arrived_relayed",
            Kind::OnTheWay(_) => "transit_relayed",
            _ => "relayed",
        }
    }

    /// Programs that it is made of, beside culvert and this one, and the option that makes each tell its version.
    pub(crate) fn programs(&self) -> &'static [(&'static str, &'static str)] {
        match self.kind {
            Kind::Nginx(_) => &nginx::PROGRAMS,
            Kind::Haproxy { .. } => &haproxy::PROGRAMS,
            Kind::Redsocks => &redsocks::PROGRAMS,
            Kind::OnTheWay(way) => way.programs(),
            Kind::Culvert {
                job: Job::ForwardOverSocks,
                ..
            } => &redsocks::SOCKS,
            _ => &[],
        }
    }

    /// Its configuration, with so many threads or processes.
    pub(crate) fn configuration(&self, workers: usize) -> String {
        let rules = match self.form() {
            Some(Form::Redirect) => format!("{}\n", peer::redirect().join("\n")),
            _ => String::new(),
        };
        let own = match self.kind {
            Kind::Direct => String::new(),
            Kind::Culvert { path, job } => culvert::configuration(path, job, workers),
            Kind::OnTheWay(way) => way.configuration(workers),
            Kind::Copy(form) => copy::arguments(form, workers).join(" "),
            Kind::Nginx(form) => nginx::configuration(form, workers),
            Kind::Haproxy { splice, form } => haproxy::configuration(splice, form, workers),
            Kind::Redsocks => redsocks::configuration(),
        };
        rules + &own
    }

    /// Starts the proxy; `is_logged` says whether culvert keeps close records, which cost it something.
    pub(crate) fn start<'a>(
        &self,
        sandbox: &'a Sandbox,
        workers: usize,
        is_logged: bool,
    ) -> Result<Relay<'a>> {
        match self.kind {
            Kind::Direct => Ok(Relay::Nobody),
            Kind::Culvert { path, job } => culvert::start(sandbox, path, job, workers, is_logged),
            Kind::OnTheWay(way) => way.start(sandbox, workers, is_logged),
            Kind::Copy(form) => copy::start(sandbox, form, workers),
            Kind::Nginx(form) => nginx::start(sandbox, form, workers),
            Kind::Haproxy { splice, form } => haproxy::start(sandbox, splice, form, workers),
            Kind::Redsocks => redsocks::start(sandbox),
        }
    }

    /// Where the client connects.
    pub(crate) fn target(&self) -> SocketAddr {
        if self.is_on_the_way() {
            return gateway::server();
        }
        match self.form() {
            Some(Form::Explicit) => (SERVER_V4, PROXY_PORT).into(),
            Some(Form::Redirect) | None => server(),
        }
    }

    /// Whether client and server are other hosts.
    pub(crate) fn is_on_the_way(&self) -> bool {
        matches!(self.kind, Kind::OnTheWay(_))
    }

    /// Has the host between client and server give connections to a peer.
    pub(crate) fn lay_the_way(&self, host: &Netns) {
        if let Kind::OnTheWay(way) = self.kind {
            for (tool, arguments) in way.commands() {
                host.tool(tool, &arguments);
            }
        }
    }

    fn form(&self) -> Option<Form> {
        match self.kind {
            Kind::Culvert {
                job: Job::Reverse, ..
            } => Some(Form::Explicit),
            Kind::Direct | Kind::Culvert { .. } | Kind::OnTheWay(_) => None,
            Kind::Copy(form) | Kind::Nginx(form) | Kind::Haproxy { form, .. } => Some(form),
            Kind::Redsocks => Some(Form::Redirect),
        }
    }
}

impl Form {
    /// Where the proxy connects: to an address that is not redirected again.
    fn upstream(self) -> SocketAddr {
        match self {
            Self::Explicit => server(),
            Self::Redirect => (OTHER_V4, SERVER_PORT).into(),
        }
    }
}
