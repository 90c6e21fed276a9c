//! What sections of rules have in common, whichever their role.

use std::{collections::HashMap, sync::Arc};

use proxy_common::MAX_RULES;

use crate::rule::FailMode;

use super::{
    raw::{Table, Value},
    report::{Finding, Findings, Span},
    upstream::valid_name,
};

/// What `on_relay_failure` says.
const FAIL_MODES: [(&str, FailMode); 2] =
    [("direct", FailMode::Direct), ("refuse", FailMode::Refuse)];

/// The sections of a role, as many as there may be; `rules` and `lists` are what they and their lists are called.
pub(super) fn sections<'a>(
    value: Value<'a>,
    rules: &str,
    lists: &str,
    findings: &mut Findings,
) -> impl Iterator<Item = Value<'a>> + use<'a> {
    let tables = value.tables(findings);
    if let Some(first_beyond) = tables.get(MAX_RULES) {
        findings.push(
            Finding::error(format!("there are {} {rules}", tables.len()))
                .at(&first_beyond.span())
                .label(format!("at most {MAX_RULES}: this one is too many"))
                .help(format!(
                    "rules with the same `via` can often be one: {lists} may be a list"
                )),
        );
    }
    tables.into_iter().take(MAX_RULES)
}

/// The name of a rule, and its place.
pub(super) fn name(
    table: &mut Table<'_>,
    example: &'static str,
    findings: &mut Findings,
) -> Option<(Arc<str>, Span)> {
    let value = table.require("name", &format!("name = \"{example}\""), findings)?;
    let text = value.text(example, findings)?;
    let text = findings.keep(valid_name(text, "a rule"), &value.span())?;
    Some((Arc::from(text), value.span()))
}

/// The fail mode of a rule.
pub(super) fn fail_mode(
    table: &mut Table<'_>,
    relayed: bool,
    findings: &mut Findings,
) -> Option<FailMode> {
    of_relay(table, "on_relay_failure", &FAIL_MODES, relayed, findings)
}

/// Reads a key that only means something to rules with an upstream.
pub(super) fn of_relay<T: Copy + Default>(
    table: &mut Table<'_>,
    key: &'static str,
    choices: &[(&str, T)],
    relayed: bool,
    findings: &mut Findings,
) -> Option<T> {
    let Some(value) = table.get(key) else {
        return Some(T::default());
    };
    warn_unless_relayed(value, relayed, findings);
    value.choice(choices, findings)
}

/// Reads a key that lets `auto` take another path as well, and tells where that stands if it does. `is_auto` is whether the path is
/// `auto`, as far as it could be read; `alone` says what the other path is without the choice.
#[expect(clippy::option_option, reason = "what is not allowed is no error")]
pub(super) fn allowance(
    table: &mut Table<'_>,
    (key, alone): (&'static str, &str),
    is_auto: Option<bool>,
    relayed: bool,
    findings: &mut Findings,
) -> Option<Option<Span>> {
    let Some(value) = table.get(key) else {
        return Some(None);
    };
    warn_unless_relayed(value, relayed, findings);
    let allowed = value.boolean(findings)?;
    if is_auto? {
        return Some(allowed.then(|| value.span()));
    }
    findings.push(
        Finding::error(format!("`{key}` is for `path = \"auto\"`"))
            .at(&value.span())
            .label("this rule has chosen its path")
            .help(format!("leave out one of the two; {alone}")),
    );
    None
}

/// Warns of an allowance of no use.
pub(super) fn warn_unusable(
    key: &str,
    place: &Span,
    why: impl Into<String>,
    findings: &mut Findings,
) {
    findings.push(
        Finding::warning(format!(
            "`{key}` has no effect here: connections are relayed"
        ))
        .at(place)
        .label(why),
    );
}

pub(super) fn warn_unless_relayed(value: Value<'_>, relayed: bool, findings: &mut Findings) {
    if !relayed {
        findings.push(
            Finding::warning(format!("`{}` has no effect here", value.key()))
                .at(&value.span())
                .label("the kernel decides this rule alone: no relay is needed"),
        );
    }
}

/// Reports rules with the same name.
pub(super) fn check_names<'a>(
    names: impl Iterator<Item = (&'a str, &'a Span)>,
    findings: &mut Findings,
) {
    let mut first: HashMap<&str, &Span> = HashMap::new();
    for (rule, name) in names {
        if let Some(earlier) = first.get(rule) {
            findings.push(
                Finding::error(format!("two rules are named `{rule}`"))
                    .at(name)
                    .also(earlier, "first named here")
                    .label("logs and counters could not tell them apart"),
            );
        } else {
            first.insert(rule, name);
        }
    }
}

/// Whether rules together have no more of something than may be. `counts` are how many each has, and where it is named.
pub(super) fn is_affordable<'a>(
    rules: &str,
    counts: impl IntoIterator<Item = (usize, &'a Span)>,
    most: usize,
    what: &str,
    findings: &mut Findings,
) -> bool {
    let mut total = 0;
    let crossing = counts.into_iter().find(|(count, _)| {
        total += count;
        total > most
    });
    if let Some((_, name)) = crossing {
        findings.push(
            Finding::error(format!("the {rules} have more than {most} {what}"))
                .at(name)
                .label("from this rule on"),
        );
    }
    crossing.is_none()
}
