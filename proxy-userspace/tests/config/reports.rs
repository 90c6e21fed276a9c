//! Every kind of error and warning, as its author sees it.
//!
//! `cases/NAME.toml` is what is parsed and `NAME.txt` beside it the whole report; `warnings/` likewise for
//! configurations that can be used. After a deliberate change of the wording, `BLESS=1 cargo test` writes the
//! reports anew: read the difference before it is committed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::world::{SECRET, parse_with_mode};

#[test]
fn errors_are_reported_as_written_down() {
    let reports = check("cases", |text, mode| {
        let error = parse_with_mode(text, mode).expect_err("must be refused");
        error.to_string()
    });
    assert!(reports > 25, "only {reports} cases were found");
}

#[test]
fn warnings_are_given_as_written_down() {
    let reports = check("warnings", |text, mode| {
        let loaded = parse_with_mode(text, mode).unwrap_or_else(|error| panic!("{error}"));
        loaded.warnings.join("\n\n")
    });
    assert!(reports > 2, "only {reports} cases were found");
}

fn check(folder: &str, report: impl Fn(&str, u32) -> String) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/config")
        .join(folder);
    let mut cases: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    cases.sort();
    for case in &cases {
        let text = fs::read_to_string(case).unwrap();
        let found = report(&text, mode(&text)) + "\n";
        assert!(
            !found.contains(SECRET),
            "{} shows a secret:\n{found}",
            case.display()
        );
        let expected = case.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(
            found,
            expected,
            "{}: found first, expected second:\n{found}",
            case.display()
        );
    }
    cases.len()
}

/// The permission bits of the case, from a first line such as `# mode 0644`.
fn mode(text: &str) -> u32 {
    let first = text.lines().next().unwrap_or_default();
    first
        .strip_prefix("# mode ")
        .map_or(0o600, |mode| u32::from_str_radix(mode, 8).unwrap())
}
