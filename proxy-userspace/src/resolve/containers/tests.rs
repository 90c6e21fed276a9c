use std::fs;

use super::*;
use crate::rule::{Departure, FailMode, Match, PathChoice, Selector, Via, of_container};

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// What is known of `web` after an answer.
fn after(
    tree: &std::path::Path,
    before: Option<&Containers>,
    answer: Option<Answer>,
) -> Containers {
    let cgroups = Cgroup2::pretended(tree);
    let rule = Rule {
        name: "all".into(),
        matches: Match {
            cgroup: Selector {
                include: vec![of_container("web")],
                exclude: Vec::new(),
            },
            ..Match::default()
        },
        via: Via::Refuse,
        on_relay_failure: FailMode::Direct,
        path: PathChoice::Auto,
        rewrite: false,
        from: Departure::Host,
    };
    let name = || "web".to_owned();
    let before = before.map(|it| (name(), it.clone())).into_iter().collect();
    let answers = answer.map(|it| (name(), it)).into_iter().collect();
    let mut known = resolve(&[rule], &cgroups, &before, &answers);
    known.remove("web").unwrap()
}

#[test]
fn what_was_known_holds_until_somebody_knows_better() {
    let tree = tempfile::tempdir().unwrap();
    let cgroup = tree.path().join(format!("docker-{}.scope", id('a')));
    fs::create_dir(&cgroup).unwrap();
    let nobody = || Some(Answer::Unknown("nobody knows".to_owned()));
    let known = after(tree.path(), None, Some(Answer::Id(id('a'))));
    assert_eq!(known.directories, std::slice::from_ref(&cgroup));
    // A runtime that is started anew knows nothing for a moment.
    for answer in [None, nobody()] {
        assert_eq!(after(tree.path(), Some(&known), answer), known);
    }
    // Two are none, also where one was known.
    let several = after(
        tree.path(),
        Some(&known),
        Some(Answer::Several("it may be".to_owned())),
    );
    assert_eq!(several, unknown("it may be".to_owned()));
    assert_eq!(after(tree.path(), Some(&several), None), several);
    // What has gone is asked for until it is back, and that does not change with each look.
    fs::remove_dir(&cgroup).unwrap();
    let stopped = after(tree.path(), Some(&known), None);
    assert_eq!(
        (stopped.id.as_deref(), &stopped.problem),
        (Some(&*id('a')), &None)
    );
    let gone = after(tree.path(), Some(&stopped), nobody());
    assert_eq!(gone.problem.as_deref(), Some("nobody knows"));
    assert_eq!(after(tree.path(), Some(&gone), None), gone);
    let back = after(tree.path(), Some(&gone), Some(Answer::Id(id('b'))));
    assert_eq!(
        (back.id.as_deref(), &back.problem),
        (Some(&*id('b')), &None)
    );
}
