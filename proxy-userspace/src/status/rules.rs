//! What a daemon tells of its rules, and how that is shown.

use serde::{Deserialize, Serialize};

use crate::paint::{Paint, Table};

/// The rules in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// In file order, those for what apps open first.
    pub rules: Vec<RuleStatus>,
}

/// A rule. The names of the fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// `forward`, `reverse` or `gateway`.
    pub role: String,
    /// Its name.
    pub name: String,
    /// What it selects, as `culvert check` writes it.
    pub selects: String,
    /// What becomes of that: `direct`, `refuse`, `relay`, `rewrite` or `steer`.
    pub action: String,
    /// Where it goes.
    pub via: String,
    /// Connections that it has selected, as the kernel counted them; where they do not begin here a repeated SYN counts again. They stay
    /// through a reload that keeps the name.
    pub hits: u64,
    /// Of those, such as its fail mode was applied to.
    pub failed: u64,
    /// Connections of it that the relay has open.
    pub live: u64,
}

impl Rules {
    /// For people.
    #[must_use]
    pub(crate) fn text(&self, paint: Paint) -> String {
        if self.rules.is_empty() {
            return "no rules\n".to_owned();
        }
        let mut table = Table::new(&[
            "role", "rule", "hits", "failed", "open", "action", "via", "selects",
        ])
        .right(&[2, 3, 4]);
        for rule in &self.rules {
            table.row([
                rule.role.clone(),
                rule.name.clone(),
                rule.hits.to_string(),
                rule.failed.to_string(),
                rule.live.to_string(),
                rule.action.clone(),
                rule.via.clone(),
                rule.selects.clone(),
            ]);
        }
        table.text(paint)
    }
}
