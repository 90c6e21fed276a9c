//! The `[router]` section.

use std::collections::BTreeSet;

use super::{
    raw::Value,
    report::{Finding, Findings},
    reverse::interface,
    selector,
};
use crate::rule::Router;

/// Reads it. What is wrong is left out.
pub(super) fn read(value: Value<'_>, findings: &mut Findings) -> Router {
    let Some(mut table) = value.table("`[router]`", "the section `[router]`", findings) else {
        return Router::default();
    };
    let fast_path = table
        .require("fast_path", "fast_path = [\"eth0\", \"eth1\"]", findings)
        .and_then(|value| fast_path(value, findings));
    let force = table
        .get("force")
        .map_or(Some(false), |value| value.boolean(findings));
    table.finish(findings);
    Router {
        fast_path: fast_path.unwrap_or_default(),
        force: force.unwrap_or_default(),
    }
}

/// Two interfaces at least, and no exclusions.
fn fast_path(value: Value<'_>, findings: &mut Findings) -> Option<BTreeSet<String>> {
    let read = selector::read(value, "eth1", findings, interface)?;
    let names: BTreeSet<_> = read.include.into_iter().collect();
    let wrong = if !read.exclude.is_empty() {
        Some(
            "packets are sent on between those that it names: leave out what begins with `!`"
                .to_owned(),
        )
    } else if names.contains("lo") {
        Some("nothing passes through by `lo`".to_owned())
    } else if names.len() < 2 {
        Some("name another one: packets that leave by others are routed as ever".to_owned())
    } else {
        None
    };
    let Some(why) = wrong else {
        return Some(names);
    };
    findings.push(
        Finding::error("`fast_path` lists interfaces that packets are sent on between")
            .at(&value.span())
            .label(why),
    );
    None
}
