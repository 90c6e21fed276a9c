//! One thing that was looked at.

use serde::Serialize;

/// What the doctor says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As it should be, or just to be known.
    Ok,
    /// Something works less well, or not at all, that forward proxying can do without.
    Warning,
    /// Forward proxying does not work without it.
    Missing,
    /// It could not be looked at.
    Unchecked,
}

impl Status {
    /// As in the JSON report.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
            Self::Unchecked => "unchecked",
        }
    }
}

/// One finding. The names of the fields are those of the JSON report, which scripts depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// What was looked at; stable.
    pub(super) id: String,
    /// How it is.
    pub(super) status: Status,
    /// What was found.
    pub(super) found: String,
    /// What to do.
    pub(super) advice: Option<String>,
}

impl Check {
    fn new(id: impl Into<String>, status: Status, found: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            status,
            found: found.into(),
            advice: None,
        }
    }

    /// All is well.
    pub(super) fn ok(id: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(id, Status::Ok, found)
    }

    /// It could be better.
    pub(super) fn warning(id: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(id, Status::Warning, found)
    }

    /// It has to be better.
    pub(super) fn missing(id: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(id, Status::Missing, found)
    }

    /// Nobody knows.
    pub(super) fn unchecked(id: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(id, Status::Unchecked, why)
    }

    /// What to do about it.
    pub(super) fn advice(self, advice: impl Into<String>) -> Self {
        Self {
            advice: Some(advice.into()),
            ..self
        }
    }
}

/// Findings that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    /// Its heading, in the text report.
    pub(super) title: &'static str,
    /// Its findings.
    pub(super) checks: Vec<Check>,
}
