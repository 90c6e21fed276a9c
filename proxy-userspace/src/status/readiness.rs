//! Whether connections are captured.

use serde::{Deserialize, Serialize};

/// What a daemon says to whoever waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether the connections that rules select are captured now.
    pub ready: bool,
    /// Why not.
    pub why: Vec<String>,
}

impl Readiness {
    /// With all that keeps connections from being captured.
    #[must_use]
    pub fn of(why: Vec<String>) -> Self {
        Self {
            ready: why.is_empty(),
            why,
        }
    }

    /// In one line.
    #[must_use]
    pub fn sentence(&self) -> String {
        if self.ready {
            "ready: connections are captured".to_owned()
        } else {
            format!("not ready: {}", self.why.join("; "))
        }
    }
}
