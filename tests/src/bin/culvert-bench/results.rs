//! What a run found, as it is written to a file and read again.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    contender::Family, intercept::Cost, machine::Machine, metric::Metric, targets::Target,
    work::Effort,
};

/// Everything about a run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Of this structure.
    pub(crate) format: u32,
    pub(crate) machine: Machine,
    /// Everything ran on one core.
    pub(crate) pinned: bool,
    /// Threads or processes of each proxy, and of client and server each.
    pub(crate) relay_threads: usize,
    pub(crate) load_threads: usize,
    pub(crate) effort: Effort,
    pub(crate) contenders: Vec<Entrant>,
    /// Contenders that could not be measured, and why.
    pub(crate) missing: Vec<Missing>,
    /// The kinds of work, in order.
    pub(crate) works: Vec<WorkDone>,
    /// Every figure of every round.
    pub(crate) samples: Vec<Sample>,
    /// What the hooks cost.
    pub(crate) intercept: Vec<Cost>,
    /// Measurements that failed.
    pub(crate) failures: Vec<Failure>,
    /// What culvert's close records say about its connections.
    pub(crate) ways: Vec<Way>,
    /// What culvert is to reach.
    #[serde(default)]
    pub(crate) targets: Vec<Target>,
    /// Limits that this run met.
    pub(crate) remarks: Vec<String>,
}

/// The format written and read here.
pub(crate) const FORMAT: u32 = 2;

/// A contender that was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entrant {
    pub(crate) name: String,
    pub(crate) family: Family,
    pub(crate) version: String,
    pub(crate) configuration: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Missing {
    pub(crate) name: String,
    pub(crate) reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkDone {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) headline: Metric,
}

/// One measurement.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) work: String,
    pub(crate) contender: String,
    pub(crate) round: u32,
    pub(crate) figures: BTreeMap<Metric, f64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) work: String,
    pub(crate) contender: String,
    pub(crate) round: u32,
    pub(crate) error: String,
}

/// Connections that went the same way.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Way {
    pub(crate) work: String,
    pub(crate) contender: String,
    /// Of the close records.
    pub(crate) path: String,
    /// Why it was not a better path.
    pub(crate) reason: Option<String>,
    pub(crate) connections: u64,
    /// Bytes of both directions, and those of them that the kernel moved by itself or that took the shortcut.
    pub(crate) bytes: u64,
    pub(crate) past_relay: u64,
    /// Whether the path is not the one that was asked for.
    pub(crate) is_other: bool,
}

impl Way {
    /// The path and its reason, as the close record names them.
    pub(crate) fn kind(&self) -> String {
        match &self.reason {
            Some(reason) => format!("path = {}, path_reason = {reason}", self.path),
            None => format!("path = {}", self.path),
        }
    }

    /// In words.
    pub(crate) fn describe(&self) -> String {
        let share = self.past_relay as f64 / self.bytes.max(1) as f64 * 100.0;
        format!(
            "{} connections: {}; {share:.0} % of the bytes past the relay",
            self.connections,
            self.kind()
        )
    }
}

impl Results {
    /// The text of a file, after a look whether it can be read again.
    pub(crate) fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self)?;
        Self::from_json(&text).context("the results cannot be read back")?;
        Ok(text)
    }

    /// From the text of a file.
    pub(crate) fn from_json(text: &str) -> Result<Self> {
        let results: Self = serde_json::from_str(text)?;
        ensure!(
            results.format == FORMAT,
            "format {} instead of {FORMAT}",
            results.format
        );
        Ok(results)
    }
}
