//! The doctor's report, for people and for scripts.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    check::{Check, Section, Status},
    neighbours::Neighbour,
    paths::PathCost,
    programs::Tried,
};
use crate::paint::{Paint, Tone, wrapped};

/// All that was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report {
    /// By subject.
    pub(super) sections: Vec<Section>,
    /// The programs, one by one.
    pub(super) tried: Vec<Tried>,
    /// What the paths cost, as measured.
    pub(super) path_costs: Vec<PathCost>,
    /// Programs of others on our hooks.
    pub(super) neighbours: Vec<Neighbour>,
}

/// The JSON report. The names of the fields are stable.
#[derive(Serialize)]
struct Json<'a> {
    /// Whether forward proxying works.
    forward_proxy: bool,
    checks: Vec<&'a Check>,
    programs: &'a [Tried],
    paths: &'a [PathCost],
    other_programs: &'a [Neighbour],
}

impl Report {
    fn checks(&self) -> impl Iterator<Item = &Check> {
        self.sections.iter().flat_map(|section| &section.checks)
    }

    fn count(&self, status: Status) -> usize {
        self.checks().filter(|check| check.status == status).count()
    }

    /// Whether nothing is missing that forward proxying needs.
    pub(super) fn is_ready(&self) -> bool {
        self.count(Status::Missing) == 0
    }

    /// One JSON object.
    pub(super) fn json(&self) -> String {
        let json = Json {
            forward_proxy: self.is_ready(),
            checks: self.checks().collect(),
            programs: &self.tried,
            paths: &self.path_costs,
            other_programs: &self.neighbours,
        };
        // Plain strings and numbers: there is nothing that could not be written.
        serde_json::to_string_pretty(&json).unwrap_or_default()
    }

    /// A line for each finding, and what to do below it.
    pub(super) fn text(&self, paint: Paint) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text, paint);
        text
    }

    fn write(&self, text: &mut String, paint: Paint) -> std::fmt::Result {
        let width = self.checks().map(|check| check.id.len()).max().unwrap_or(0);
        for section in &self.sections {
            writeln!(text, "{}", paint.text(Tone::Strong, section.title))?;
            for check in &section.checks {
                let status = format!("{:9}", check.status.label());
                let status = paint.text(tone(check.status), status);
                let indent = 2 + 9 + 2 + width + 2;
                let found = wrapped(indent, &check.found);
                writeln!(text, "  {status}  {:width$}  {found}", check.id)?;
                if let Some(advice) = &check.advice {
                    let advice = wrapped(indent + 3, advice);
                    writeln!(text, "{:indent$}-> {advice}", "")?;
                }
            }
            writeln!(text)?;
        }
        if !self.neighbours.is_empty() {
            writeln!(
                text,
                "{}",
                paint.text(Tone::Strong, "Other programs on our hooks")
            )?;
            for neighbour in &self.neighbours {
                writeln!(text, "  {}", neighbour_line(neighbour))?;
            }
            writeln!(text)?;
        }
        writeln!(text, "{}", self.conclusion(paint))
    }

    fn conclusion(&self, paint: Paint) -> String {
        let count = |status, what: &str| match self.count(status) {
            0 => String::new(),
            count => format!(", {count} {what}"),
        };
        let rest = count(Status::Warning, "to be looked at (warning)")
            + &count(Status::Unchecked, "unchecked");
        if self.is_ready() {
            let works = paint.text(Tone::Good, "Forward proxying works here");
            return format!("{works}{rest}. See it work: culvert demo");
        }
        let missing = self.count(Status::Missing);
        let not = paint.text(Tone::Bad, "Forward proxying does not work here");
        format!("{not}: {missing} missing{rest}.")
    }
}

fn tone(status: Status) -> Tone {
    match status {
        Status::Ok => Tone::Good,
        Status::Warning => Tone::Doubtful,
        Status::Missing => Tone::Bad,
        Status::Unchecked => Tone::Faint,
    }
}

fn neighbour_line(neighbour: &Neighbour) -> String {
    let holders: Vec<_> = neighbour
        .held_by
        .iter()
        .map(|process| format!("{}[{}]", process.comm, process.pid))
        .collect();
    let held = if holders.is_empty() {
        "pinned, or attached for good".to_owned()
    } else {
        format!("held by {}", holders.join(", "))
    };
    format!(
        "{:12}  {}  {}. {} (program {}), {held}",
        neighbour.hook,
        neighbour.cgroup,
        neighbour.position,
        neighbour.name.as_deref().unwrap_or("?"),
        neighbour.id,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::neighbours::Process;

    fn report(check: Check) -> Report {
        Report {
            sections: vec![Section {
                title: "Kernel",
                checks: vec![Check::ok("kernel", "Linux"), check],
            }],
            tried: vec![Tried {
                name: "connect4",
                works: true,
                attached: true,
                instructions: Some(100),
                verified_instructions: None,
                load_ms: Some(1.5),
                refusal: None,
            }],
            path_costs: vec![PathCost {
                kind: "bulk",
                path: "splice",
                relative: 0.5,
                is_best: false,
            }],
            neighbours: vec![Neighbour {
                hook: "connect4",
                cgroup: "/a".into(),
                position: 2,
                id: 9,
                name: Some("sock4".into()),
                held_by: vec![Process {
                    pid: 5,
                    comm: "agent".into(),
                }],
            }],
        }
    }

    #[test]
    fn what_is_unchecked_or_doubtful_does_not_keep_it_from_working() {
        assert!(report(Check::unchecked("x", "why")).is_ready());
        assert!(report(Check::warning("x", "why")).is_ready());
        assert!(!report(Check::missing("x", "why")).is_ready());
    }

    #[test]
    fn every_finding_has_a_line_and_its_advice_one_more() {
        let text = report(Check::missing("bpf", "no").advice("do this")).text(Paint::plain());
        assert_eq!(
            text,
            "Kernel\n  ok         kernel  Linux\n  missing    bpf     no\n                     -> do this\n\n\
             Other programs on our hooks\n  connect4      /a  2. sock4 (program 9), held by agent[5]\n\n\
             Forward proxying does not work here: 1 missing.\n"
        );
    }

    #[test]
    fn the_keys_of_the_json_report_stay() {
        let json = report(Check::warning("x", "y").advice("z")).json();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["forward_proxy"], true);
        let check =
            serde_json::json!({"id": "x", "status": "warning", "found": "y", "advice": "z"});
        assert_eq!(value["checks"][1], check);
        let program = serde_json::json!({
            "name": "connect4", "works": true, "attached": true, "instructions": 100, "verified_instructions": null, "load_ms": 1.5,
            "refusal": null,
        });
        assert_eq!(value["programs"][0], program);
        let cost = serde_json::json!({"kind": "bulk", "path": "splice", "relative": 0.5, "is_best": false});
        assert_eq!(value["paths"][0], cost);
        let other = serde_json::json!({
            "hook": "connect4", "cgroup": "/a", "position": 2, "id": 9, "name": "sock4",
            "held_by": [{"pid": 5, "comm": "agent"}],
        });
        assert_eq!(value["other_programs"][0], other);
    }
}
