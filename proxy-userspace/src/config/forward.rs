//! The `[[forward]]` sections: one rule each.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use crate::rule::{Departure, Match, PathChoice, Rule, Selector, Via, container_in, of_container};

use super::{
    accounts::{Accounts, Kind},
    mask::quoted,
    raw::{Table, Value, closest},
    report::{Finding, Findings, Span},
    rule::{allowance, check_names, fail_mode, is_affordable, name, of_relay, sections},
    selector,
};

/// What they are called together.
const RULES: &str = "rules";
/// Most destination prefixes of all rules together: what the kernel's tables are made for.
const MOST_PREFIXES: usize = 100_000;
/// Most other values of all rules together.
const MOST_VALUES: usize = 10_000;

/// A rule and where its parts stand.
pub(super) struct PlacedRule {
    pub(super) rule: Rule,
    /// The value of `name`.
    pub(super) name: Span,
    /// The value of `path`, if there is one.
    pub(super) path: Option<Span>,
    /// The value of `allow_rewrite`, where that is allowed.
    pub(super) allow_rewrite: Option<Span>,
    /// The values of the keys of `match`.
    pub(super) selectors: HashMap<&'static str, Span>,
}

/// What rules refer to.
pub(super) struct References<'a> {
    /// The names of the upstreams, also of those that have errors.
    pub(super) upstreams: &'a [&'a str],
    pub(super) accounts: &'a Accounts<'a>,
}

/// Reads all rules. Those with errors are left out; all are where there are too many.
pub(super) fn read(
    value: Value<'_>,
    references: &References<'_>,
    findings: &mut Findings,
) -> Vec<PlacedRule> {
    let sections = sections(value, RULES, "every selector", findings);
    let rules: Vec<_> = sections
        .filter_map(|value| rule(value, references, findings))
        .collect();
    check_names(
        rules
            .iter()
            .map(|placed| (&*placed.rule.name, &placed.name)),
        findings,
    );
    let mut may_have = |most, what: &str, count: fn(&Match) -> usize| {
        let counts = rules
            .iter()
            .map(|placed| (count(&placed.rule.matches), &placed.name));
        is_affordable(RULES, counts, most, what, findings)
    };
    let affordable = may_have(MOST_PREFIXES, "prefixes in `dest`", |matches| {
        matches.dest.count()
    }) & may_have(MOST_VALUES, "values in the other selectors", values);
    // Rules are compared with each other later on, which takes too long beyond these bounds.
    if affordable { rules } else { Vec::new() }
}

fn rule(
    value: Value<'_>,
    references: &References<'_>,
    findings: &mut Findings,
) -> Option<PlacedRule> {
    let mut table = value.table("`[[forward]]`", "the section `[[forward]]`", findings)?;
    let name = name(&mut table, "builds", findings);
    let mut selectors = HashMap::new();
    let matches = match table.get("match") {
        None => Some(Match::default()),
        Some(value) => matches(value, references.accounts, &mut selectors, findings),
    };
    let via = table
        .require("via", "via = \"direct\"", findings)
        .and_then(|value| via(value, references.upstreams, findings));
    let relayed = !matches!(via, Some(Via::Direct | Via::Refuse));
    let on_relay_failure = fail_mode(&mut table, relayed, findings);
    let paths = [
        ("auto", (PathChoice::Auto, false)),
        ("rewrite", (PathChoice::Auto, true)),
        ("copy", (PathChoice::Copy, false)),
        ("splice", (PathChoice::Splice, false)),
        ("sockmap", (PathChoice::Sockmap, false)),
        ("shortcut", (PathChoice::Shortcut, false)),
        (
            "shortcut-without-fionread",
            (PathChoice::ShortcutWithoutFionread, false),
        ),
        ("shortcut-both-ways", (PathChoice::ShortcutBothWays, false)),
    ];
    let path_span = table.get("path").map(|value| value.span());
    let path = of_relay(&mut table, "path", &paths, relayed, findings);
    let allowed = Allowed::read(&mut table, path, relayed, findings);
    let from = from(&mut table, matches.as_ref(), relayed, findings);
    table.finish(findings);
    let (name, place) = name?;
    let (path, allowed) = (path?, allowed?);
    Some(PlacedRule {
        rule: Rule {
            name,
            matches: matches?,
            via: via?,
            on_relay_failure: on_relay_failure?,
            path: match allowed.shortcut {
                Some(_) => PathChoice::AutoOrShortcut,
                None => path.0,
            },
            rewrite: path.1,
            from: from?,
        },
        name: place,
        path: path_span,
        allow_rewrite: allowed.rewrite,
        selectors,
    })
}

/// Reads `from`, which is about the network namespaces of containers.
fn from(
    table: &mut Table<'_>,
    matches: Option<&Match>,
    relayed: bool,
    findings: &mut Findings,
) -> Option<Departure> {
    let places = [
        ("host", Departure::Host),
        ("container", Departure::Container),
    ];
    let span = table.get("from").map(|value| value.span());
    let from = of_relay(table, "from", &places, relayed, findings)?;
    let named = |matches: &Match| {
        let mut cgroups = matches.cgroup.include.iter();
        cgroups.any(|cgroup| container_in(cgroup).is_some())
    };
    if let Some(span) = span
        && matches.is_some_and(|matches| !named(matches))
    {
        findings.push(
            Finding::error("`from` is for rules that name containers")
                .at(&span)
                .help("leave it out, or say which: `match = { container = \"NAME\" }`"),
        );
        return None;
    }
    Some(from)
}

/// What else `auto` may take.
#[derive(Clone, Default)]
struct Allowed {
    shortcut: Option<Span>,
    rewrite: Option<Span>,
}

impl Allowed {
    /// Reads `allow_shortcut` and `allow_rewrite`. A path goes with whether it is for those only whom the hook finds no endpoint for.
    fn read(
        table: &mut Table<'_>,
        path: Option<(PathChoice, bool)>,
        relayed: bool,
        findings: &mut Findings,
    ) -> Option<Self> {
        let is_auto = path.map(|path| path == (PathChoice::Auto, false));
        let shortcut = (
            "allow_shortcut",
            "`path = \"shortcut\"` is the shortcut alone",
        );
        let shortcut = allowance(table, shortcut, is_auto, relayed, findings);
        let rewrite = (
            "allow_rewrite",
            "`path = \"rewrite\"` insists on what the other only allows",
        );
        let rewrite = allowance(table, rewrite, is_auto, relayed, findings);
        Some(Self {
            shortcut: shortcut?,
            // Rules that need no relay have had their word.
            rewrite: rewrite?.filter(|_| relayed),
        })
    }
}

fn via(value: Value<'_>, upstreams: &[&str], findings: &mut Findings) -> Option<Via> {
    let text = value.text("direct", findings)?;
    match text {
        "direct" => return Some(Via::Direct),
        "refuse" => return Some(Via::Refuse),
        name if upstreams.contains(&name) => return Some(Via::Upstream(Arc::from(name))),
        _ => {}
    }
    let finding = Finding::error(format!("no upstream is named {}", quoted(text)));
    let known = upstreams.iter().copied().chain(["direct", "refuse"]);
    let finding = match closest(text, known) {
        Some(known) => finding.label(format!("did you mean `{known}`?")),
        None if text.contains("://") => finding.label("expected a name, not a URL"),
        None => finding.label("expected an upstream, `direct` or `refuse`"),
    };
    let help = "an upstream is declared as `[upstream.NAME]` with `url = \"socks5://HOST:PORT\"`";
    findings.push(finding.at(&value.span()).help(help));
    None
}

fn matches(
    value: Value<'_>,
    accounts: &Accounts<'_>,
    places: &mut HashMap<&'static str, Span>,
    findings: &mut Findings,
) -> Option<Match> {
    let mut table = value.table("`match`", "a table such as `{ uid = 1000 }`", findings)?;
    let mut get = |key: &'static str| {
        let value = table.get(key)?;
        places.insert(key, value.span());
        Some(value)
    };
    let ids =
        |kind: Kind| move |text: &str| selector::ids(text, kind, |name| accounts.id(kind, name));
    let cgroup = selector::optional(get("cgroup"), |value| {
        selector::read(value, "system.slice", findings, selector::cgroup)
    });
    let cgroup = container(get("container"), cgroup, findings);
    let exe: Option<Selector<PathBuf>> = selector::optional(get("exe"), |value| {
        selector::read(value, "/usr/bin/curl", findings, selector::absolute_path)
    });
    let uid = selector::optional(get("uid"), |value| {
        selector::read_numbers(value, "1000-1999", findings, ids(Kind::User))
    });
    let gid = selector::optional(get("gid"), |value| {
        selector::read_numbers(value, "users", findings, ids(Kind::Group))
    });
    let pid = selector::optional(get("pid"), |value| {
        selector::read_numbers(value, "!1", findings, selector::pid)
    });
    let dest = selector::optional(get("dest"), |value| {
        selector::read(value, "10.0.0.0/8", findings, selector::prefix)
    });
    let port = selector::optional(get("port"), |value| {
        selector::read_numbers(value, "8000-8999", findings, selector::ports)
    });
    table.finish(findings);
    Some(Match {
        cgroup: cgroup?,
        exe: exe?,
        uid: uid?,
        gid: gid?,
        pid: pid?,
        dest: dest?,
        port: port?,
    })
}

/// Reads `container`: a container is a cgroup, wherever its runtime has put that.
fn container(
    value: Option<Value<'_>>,
    cgroup: Option<Selector<String>>,
    findings: &mut Findings,
) -> Option<Selector<String>> {
    let Some(value) = value else {
        return cgroup;
    };
    let span = value.span();
    let containers = selector::read(value, "web", findings, selector::container)?;
    if !cgroup?.is_any() {
        findings.push(
            Finding::error("`container` and `cgroup` in one rule")
                .at(&span)
                .label("a container is a cgroup")
                .help("leave out one of the two, or write two rules"),
        );
        return None;
    }
    let named = |names: Vec<String>| names.iter().map(|name| of_container(name)).collect();
    Some(Selector {
        include: named(containers.include),
        exclude: named(containers.exclude),
    })
}

fn values(matches: &Match) -> usize {
    let numbers =
        matches.uid.count() + matches.gid.count() + matches.pid.count() + matches.port.count();
    matches.cgroup.count() + matches.exe.count() + numbers
}
