//! Why a connection is captured, or is not: what is asked, what a daemon answers, and how that is shown.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::paint::{Paint, Tone, wrapped};

/// A connection that there may be: one that a process opens, one that arrives, or one that passes through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Where it goes.
    pub to: SocketAddr,
    /// Who opens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Opener>,
    /// Where it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// By which interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Whether it is for another host.
    #[serde(default, skip_serializing_if = "is_false")]
    pub passes: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// A process as rules see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opener {
    /// Its id.
    pub pid: u32,
    /// Its `comm`.
    pub comm: String,
    /// Its real user id.
    pub uid: u32,
    /// Its real group id.
    pub gid: u32,
    /// Its cgroup, as a path in the hierarchy.
    pub cgroup: String,
    /// Its executable; none for threads of the kernel.
    pub exe: Option<Executable>,
    /// Inode number of its network namespace.
    pub network_namespace: u64,
}

/// An executable: the file, whatever it is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Executable {
    /// How it is called.
    pub path: String,
    /// Its inode number.
    pub inode: u64,
    /// Its device, as the kernel's internal `dev_t`.
    pub device: u64,
}

/// What becomes of it. The names of the fields stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The connection.
    pub connection: Request,
    /// `direct`, `refuse`, `relay`, `rewrite`, `steer` or `fast path`.
    pub verdict: String,
    /// Why.
    pub why: String,
    /// The rule that selects it.
    pub rule: Option<String>,
    /// Where that sends it.
    pub via: Option<String>,
    /// The relay's listeners that may get it.
    pub listeners: Vec<SocketAddr>,
    /// What becomes of it while the relay fails.
    pub on_relay_failure: Option<String>,
    /// How its bytes are to be moved.
    pub path: Option<String>,
    /// Every rule, in file order.
    pub rules: Vec<RuleReason>,
    /// The process that serves the rules, if one does.
    pub daemon: Option<u32>,
    /// Programs on the hooks that it passes, in the order they run in.
    #[serde(default)]
    pub hooks: Vec<HookProgram>,
}

/// Whether a rule selects it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReason {
    /// The rule.
    pub name: String,
    /// Whether it would, if it were the only one.
    pub selects: bool,
    /// The first of its keys that does not.
    pub key: Option<String>,
    /// What that wants.
    pub wanted: Option<String>,
    /// What it sees.
    pub seen: Option<String>,
}

/// A program on a hook. The names of the fields are those that `culvert doctor` has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookProgram {
    /// The hook, by the name of our program there.
    pub hook: String,
    /// The cgroup or the interface that it is attached to; `network namespace` for hooks on that.
    pub cgroup: String,
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: Option<String>,
    /// Whether a culvert holds it.
    pub ours: bool,
    /// The processes that keep it attached.
    pub held_by: Vec<String>,
}

impl Explanation {
    /// For people.
    #[must_use]
    pub(crate) fn text(&self, paint: Paint) -> String {
        let mut text = String::new();
        let tone = match self.verdict.as_str() {
            "direct" => Tone::Doubtful,
            "refuse" => Tone::Bad,
            _ => Tone::Good,
        };
        let verdict = paint.text(tone, &self.verdict);
        // Writing to a string cannot fail.
        _ = writeln!(
            text,
            "{verdict}: {}\n",
            wrapped(self.verdict.len() + 2, &self.why)
        );
        section(&mut text, paint, "connection", &self.connection.rows());
        section(&mut text, paint, "rule", &self.of_the_rule());
        let hooks: Vec<_> = self.hooks.iter().map(HookProgram::row).collect();
        section(&mut text, paint, "hooks, in the order they run in", &hooks);
        let rules: Vec<_> = self.rules.iter().map(RuleReason::row).collect();
        section(&mut text, paint, "rules, in file order", &rules);
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }

    fn of_the_rule(&self) -> Vec<Row> {
        let listeners: Vec<_> = self.listeners.iter().map(ToString::to_string).collect();
        let listeners = (!listeners.is_empty()).then(|| listeners.join(" "));
        let rows = [
            ("name", &self.rule),
            ("via", &self.via),
            ("listener", &listeners),
            ("relay fails", &self.on_relay_failure),
            ("path", &self.path),
        ];
        rows.into_iter()
            .filter_map(|(left, right)| Some((left.to_owned(), right.clone()?)))
            .collect()
    }
}

type Row = (String, String);

impl Request {
    fn rows(&self) -> Vec<Row> {
        let mut rows = vec![("to".to_owned(), self.to.to_string())];
        let mut row = |left: &str, right: String| rows.push((left.to_owned(), right));
        if let Some(source) = self.source {
            row("source", source.to_string());
        }
        if let Some(interface) = &self.interface {
            row("interface", interface.clone());
        }
        if let Some(process) = &self.process {
            row("process", format!("{} {}", process.pid, process.comm));
            row("user, group", format!("{}, {}", process.uid, process.gid));
            row("cgroup", process.cgroup.clone());
            let exe = process.exe.as_ref().map(|exe| exe.path.clone());
            row("executable", exe.unwrap_or_else(|| "none".to_owned()));
            row("net namespace", process.network_namespace.to_string());
        }
        rows
    }
}

impl RuleReason {
    fn row(&self) -> Row {
        let says = match (&self.key, &self.wanted, &self.seen) {
            (Some(key), Some(wanted), Some(seen)) => {
                format!("no: {key} is {seen}, and is to be {wanted}")
            }
            _ => "selects it".to_owned(),
        };
        (self.name.clone(), says)
    }
}

impl HookProgram {
    fn row(&self) -> Row {
        let name = self.name.as_deref().unwrap_or("?");
        let whose = if self.ours { "culvert's" } else { "another's" };
        let mut says = format!("{} {name}, id {}, {whose}", self.cgroup, self.id);
        if !self.held_by.is_empty() {
            _ = write!(says, ", held by {}", self.held_by.join(" "));
        }
        (self.hook.clone(), says)
    }
}

fn section(text: &mut String, paint: Paint, title: &str, rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    let width = rows.iter().map(|(left, _)| left.chars().count()).max();
    let width = width.unwrap_or(0);
    _ = writeln!(text, "{}", paint.text(Tone::Strong, title));
    for (left, right) in rows {
        // What came from elsewhere may not write anything but letters.
        let right: String = right
            .chars()
            .filter(|letter| !letter.is_control())
            .collect();
        _ = writeln!(text, "  {left:width$}  {}", wrapped(width + 4, &right));
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_comes_first_and_each_rule_says_why_not() {
        let explanation = Explanation {
            connection: Request {
                to: "192.0.2.1:80".parse().unwrap(),
                process: None,
                source: Some("198.51.100.1".parse().unwrap()),
                interface: None,
                passes: false,
            },
            verdict: "direct".into(),
            why: "no rule selects it".into(),
            rule: None,
            via: None,
            listeners: Vec::new(),
            on_relay_failure: None,
            path: None,
            rules: vec![RuleReason {
                name: "web".into(),
                selects: false,
                key: Some("source".into()),
                wanted: Some("10.0.0.0/8".into()),
                seen: Some("198.51.100.1".into()),
            }],
            daemon: None,
            hooks: Vec::new(),
        };
        assert_eq!(
            explanation.text(Paint::plain()),
            "direct: no rule selects it\n\nconnection\n  to      192.0.2.1:80\n  source  198.51.100.1\n\n\
             rules, in file order\n  web  no: source is 198.51.100.1, and is to be 10.0.0.0/8\n"
        );
    }
}
