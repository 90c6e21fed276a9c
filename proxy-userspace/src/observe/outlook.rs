//! What rules do about a connection: those of a running daemon, or of a configuration that is not in force.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use proxy_common::Sighting;
use serde::Serialize;

use super::{
    guess,
    line::{destination, pid, protocol},
};
use crate::{
    admin,
    cgroup::Cgroup2,
    config::Config,
    explain::{self, subject},
    record::comm_text,
    status::explanation::{Executable, Explanation, Opener, Request},
};

/// Answers that are remembered, at most.
const CAPACITY: usize = 4096;

/// What becomes of a connection, as `culvert explain` says it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(super) struct Outlook {
    /// `direct`, `refuse`, `relay` or `rewrite`.
    pub(super) verdict: String,
    /// The rule that selects it.
    pub(super) rule: Option<String>,
    /// Where that sends it.
    pub(super) via: Option<String>,
}

impl fmt::Display for Outlook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            None => return write!(formatter, "no rule, {}", self.verdict),
            Some(rule) => write!(formatter, "rule {rule}, {}", self.verdict)?,
        }
        match &self.via {
            Some(via) => write!(formatter, " via {via}"),
            None => Ok(()),
        }
    }
}

/// All that rules look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    to: SocketAddr,
    uid: u32,
    gid: u32,
    cgroup: u64,
    exe: (u64, u64),
    /// One process may be named by a rule, and another not.
    pid: u32,
    network: u64,
}

/// Whose rules.
#[derive(Debug)]
pub(super) enum Rules {
    /// Those of a file, as if they were in force.
    OfFile(Box<Config>, Cgroup2),
    /// Those of the daemon with this admin socket.
    OfDaemon(PathBuf),
}

/// The rules, and what they said last.
#[derive(Debug)]
pub(super) struct Prospect {
    rules: Rules,
    /// The network namespace of this process, by its cookie.
    here: Option<u64>,
    answers: HashMap<Question, Option<Outlook>>,
}

impl Prospect {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            here: guess::own_network(),
            answers: HashMap::new(),
        }
    }

    /// Whether there are any.
    ///
    /// # Errors
    /// When the daemon does not answer whose they are.
    pub(super) async fn check_rules(&self) -> Result<()> {
        if let Rules::OfDaemon(place) = &self.rules {
            admin::ask(place, admin::RULES).await?;
        }
        Ok(())
    }

    /// Rules that are in force may be others by now.
    pub(super) fn ask_anew(&mut self) {
        if let Rules::OfDaemon(_) = self.rules {
            self.answers.clear();
        }
    }

    /// What the rules say; nothing of datagrams, and where the cgroup is gone that the process was in.
    pub(super) async fn of(
        &mut self,
        sighting: &Sighting,
        cgroup: Option<&Path>,
    ) -> Option<&Outlook> {
        if protocol(sighting) != "tcp" {
            return None;
        }
        let question = Question {
            to: destination(sighting),
            uid: sighting.uid,
            gid: sighting.gid,
            cgroup: sighting.cgroup_id,
            exe: (sighting.exe_inode, sighting.exe_device),
            pid: pid(sighting),
            network: sighting.netns_cookie,
        };
        if !self.answers.contains_key(&question) {
            if self.answers.len() >= CAPACITY {
                self.answers.clear();
            }
            let answer = self.ask(sighting, cgroup?).await;
            self.answers.insert(question.clone(), answer);
        }
        self.answers.get(&question)?.as_ref()
    }

    async fn ask(&self, sighting: &Sighting, cgroup: &Path) -> Option<Outlook> {
        let request = self.request(sighting, cgroup)?;
        let explained = match &self.rules {
            Rules::OfFile(config, cgroups) => by_file(config, cgroups, request),
            Rules::OfDaemon(place) => by_daemon(place, request).await,
        };
        match explained {
            Ok(explanation) => Some(Outlook {
                verdict: explanation.verdict,
                rule: explanation.rule,
                via: explanation.via,
            }),
            Err(error) => {
                tracing::debug!("no rule can be asked: {error:#}");
                None
            }
        }
    }

    /// The connection, as far as rules look at it.
    fn request(&self, sighting: &Sighting, cgroup: &Path) -> Option<Request> {
        let exe = (sighting.exe_inode != 0).then(|| Executable {
            path: String::new(),
            inode: sighting.exe_inode,
            device: sighting.exe_device,
        });
        let network_namespace = match &self.rules {
            // No rule of a file looks at it.
            Rules::OfFile(..) => 0,
            Rules::OfDaemon(_) if self.here == Some(sighting.netns_cookie) => {
                subject::own_namespace()?
            }
            Rules::OfDaemon(_) => subject::namespace_of(pid(sighting)).ok()?,
        };
        let process = Opener {
            pid: pid(sighting),
            comm: comm_text(&sighting.comm).to_string(),
            uid: sighting.uid,
            gid: sighting.gid,
            cgroup: cgroup.display().to_string(),
            exe,
            network_namespace,
        };
        Some(Request {
            to: destination(sighting),
            process: Some(process),
            source: None,
            interface: None,
            passes: false,
        })
    }
}

fn by_file(config: &Config, cgroups: &Cgroup2, request: Request) -> Result<Explanation> {
    // What passes through is not asked about.
    let fast_path = explain::FastPath {
        router: &config.router,
        rests: None,
        obstacle: crate::proxy::obstacle,
    };
    Ok(explain::by_file(config, fast_path, cgroups, request)?)
}

async fn by_daemon(place: &Path, request: Request) -> Result<Explanation> {
    let json = admin::tell(place, admin::EXPLAIN, &request).await?;
    Ok(serde_json::from_slice(&json)?)
}
