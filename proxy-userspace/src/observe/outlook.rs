//! What a configuration that is not in force would do about a connection.

use std::{collections::HashMap, fmt, net::SocketAddr, path::Path};

use proxy_common::Sighting;
use serde::Serialize;

use super::line::{destination, pid, protocol};
use crate::{
    cgroup::Cgroup2,
    config::Config,
    explain,
    record::comm_text,
    status::explanation::{Executable, Opener, Request},
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
}

/// The configuration, and what it said last.
#[derive(Debug)]
pub(super) struct Prospect {
    config: Config,
    cgroups: Cgroup2,
    answers: HashMap<Question, Option<Outlook>>,
}

impl Prospect {
    pub(super) fn new(config: Config, cgroups: Cgroup2) -> Self {
        Self {
            config,
            cgroups,
            answers: HashMap::new(),
        }
    }

    /// What the rules say; nothing of datagrams, and where the cgroup is gone that the process was in.
    pub(super) fn of(&mut self, sighting: &Sighting, cgroup: Option<&Path>) -> Option<&Outlook> {
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
        };
        if self.answers.len() >= CAPACITY && !self.answers.contains_key(&question) {
            self.answers.clear();
        }
        let Self {
            config,
            cgroups,
            answers,
        } = self;
        let answer = answers
            .entry(question)
            .or_insert_with(|| ask(config, cgroups, sighting, cgroup?));
        answer.as_ref()
    }
}

fn ask(config: &Config, cgroups: &Cgroup2, sighting: &Sighting, cgroup: &Path) -> Option<Outlook> {
    let exe = (sighting.exe_inode != 0).then(|| Executable {
        path: String::new(),
        inode: sighting.exe_inode,
        device: sighting.exe_device,
    });
    let process = Opener {
        pid: pid(sighting),
        comm: comm_text(&sighting.comm).to_string(),
        uid: sighting.uid,
        gid: sighting.gid,
        cgroup: cgroup.display().to_string(),
        exe,
        // No rule looks at it.
        network_namespace: 0,
    };
    let request = Request {
        to: destination(sighting),
        process: Some(process),
        source: None,
        interface: None,
        passes: false,
    };
    // What passes through is not asked about.
    let fast_path = explain::FastPath {
        router: &config.router,
        rests: None,
        obstacle: crate::proxy::obstacle,
    };
    match explain::by_file(config, fast_path, cgroups, request) {
        Ok(explanation) => Some(Outlook {
            verdict: explanation.verdict,
            rule: explanation.rule,
            via: explanation.via,
        }),
        Err(error) => {
            tracing::debug!("no rule can be asked: {error}");
            None
        }
    }
}
