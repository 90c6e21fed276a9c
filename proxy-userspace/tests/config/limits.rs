//! Bounds: of rules, prefixes, values, reports and files.

use std::{fmt::Write, fs, path::Path, time::Instant};

use proxy_userspace::config::{self, ConfigError};

use crate::world::{parse, valid};

fn rules(count: usize) -> String {
    (0..count).fold(String::new(), |mut text, at| {
        let port = at + 1;
        writeln!(
            text,
            "[[forward]]\nname = \"r{at}\"\nvia = \"direct\"\nmatch.port = {port}"
        )
        .unwrap();
        text
    })
}

fn refused(text: &str) -> String {
    parse(text).expect_err("must be refused").to_string()
}

#[test]
fn no_more_than_256_rules() {
    assert_eq!(valid(&rules(256)).config.forward.len(), 256);
    let report = refused(&rules(257));
    assert!(
        report.starts_with("error: there are 257 rules\n    --> culvert.toml:1025:1\n"),
        "{report}"
    );
}

fn prefixes(count: usize) -> String {
    let list: Vec<String> = (0..count)
        .map(|at| format!("\"10.{}.{}.{}\"", at >> 16, at >> 8 & 255, at & 255))
        .collect();
    list.join(", ")
}

#[test]
fn no_more_than_100000_prefixes() {
    let rules = |count: usize| {
        let first = prefixes(60_000);
        let second = prefixes(count - 60_000);
        format!(
            "[[forward]]\nname = \"a\"\nvia = \"direct\"\nmatch = {{ port = 1, dest = [{first}] }}\n\
             [[forward]]\nname = \"b\"\nvia = \"direct\"\nmatch = {{ port = 2, dest = [{second}] }}\n"
        )
    };
    assert_eq!(valid(&rules(100_000)).config.forward.len(), 2);
    let report = refused(&rules(100_001));
    let expected =
        "error: the rules have more than 100000 prefixes in `dest`\n --> culvert.toml:6:8\n";
    assert!(report.starts_with(expected), "{report}");
}

#[test]
fn no_more_than_10000_other_values() {
    let rule = |count: usize| {
        let uids: Vec<String> = (0..count).map(|uid| uid.to_string()).collect();
        let uids = uids.join(", ");
        format!("[[forward]]\nname = \"a\"\nvia = \"direct\"\nmatch.uid = [{uids}]\n")
    };
    valid(&rule(10_000));
    let report = refused(&rule(10_001));
    assert!(
        report.contains("more than 10000 values in the other selectors"),
        "{report}"
    );
}

#[test]
fn a_report_shows_100_errors_and_counts_the_rest() {
    let list = vec!["\"10.0.0.1/8\""; 50_000].join(", ");
    let report = refused(&format!(
        "[[forward]]\nname = \"a\"\nvia = \"direct\"\nmatch.dest = [{list}]\n"
    ));
    assert_eq!(report.matches("has bits set").count(), 100);
    // The line is 700,000 bytes long, so only its number is shown.
    let second = "\n\nerror: `10.0.0.1/8` has bits set behind its prefix\n--> culvert.toml:4:29\n \
                  = note: did you mean `10.0.0.0/8` or `10.0.0.1`?\n\n";
    assert!(report.contains(second), "{}", &report[..999]);
    assert!(
        report.ends_with("\n\nerror: 49900 more errors in culvert.toml"),
        "{}",
        &report[report.len() - 99..]
    );
}

#[test]
fn the_largest_configuration_is_checked_in_seconds() {
    // Half of all prefixes in one rule that all the others have to be compared with.
    let mut text = format!(
        "[[forward]]\nname = \"a\"\nvia = \"direct\"\nmatch = {{ port = \"!1-300\", dest = [{}] }}\n",
        prefixes(50_000)
    );
    text.push_str(&rules(255));
    let started = Instant::now();
    valid(&text);
    assert!(
        started.elapsed().as_secs() < 20,
        "took {:?}",
        started.elapsed()
    );
}

#[test]
fn what_is_beyond_the_bounds_is_refused_in_seconds() {
    let started = Instant::now();
    assert!(refused(&rules(65_535)).starts_with("error: there are 65535 rules\n"));
    let paths = |mark: &str| {
        let paths: Vec<String> = (0..100_000)
            .map(|at| format!("\"{mark}/bin/{at}\""))
            .collect();
        paths.join(", ")
    };
    let (include, exclude) = (paths(""), paths("!/usr"));
    let rule = format!(
        "[[forward]]\nname = \"a\"\nvia = \"direct\"\nmatch.exe = [{include}, {exclude}]\n"
    );
    assert!(refused(&rule).contains("more than 10000 values"));
    assert!(
        started.elapsed().as_secs() < 60,
        "took {:?}",
        started.elapsed()
    );
}

#[test]
fn a_name_that_could_only_be_meant_is_not_searched_for_long() {
    let name = "x".repeat(1 << 20);
    let text = format!(
        "[upstream.{name}y]\nurl = \"direct://\"\n[[forward]]\nname = \"a\"\nvia = \"{name}z\"\n"
    );
    let report = refused(&text);
    assert!(report.len() < 4000, "{} bytes", report.len());
}

#[test]
fn files_are_read_with_their_permissions() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("culvert.toml");
    let rule = "[[forward]]\nname = \"a\"\nvia = \"a\"\n";
    fs::write(
        &path,
        format!("[upstream.a]\nurl = \"http://alice:s3cr3t@10.0.0.5\"\n{rule}"),
    )
    .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let report = config::load(&path).unwrap_err().to_string();
    assert!(
        report.contains(&format!("run `chmod 600 {}`", path.display())),
        "{report}"
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(config::load(&path).unwrap().config.forward.len(), 1);
}

#[test]
fn what_is_no_text_has_a_place_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("culvert.toml");
    fs::write(&path, b"[daemon]\nworkers = \xff\n").unwrap();
    let report = config::load(&path).unwrap_err().to_string();
    let place = format!("{}:2:11", path.display());
    assert!(
        report.contains("the file is not UTF-8") && report.contains(&place),
        "{report}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let missing = config::load(Path::new("/nowhere/culvert.toml")).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "cannot read the configuration /nowhere/culvert.toml"
    );
    assert!(matches!(missing, ConfigError::Read { .. }));
    let endless = config::load(Path::new("/dev/zero")).unwrap_err();
    assert!(
        matches!(endless, ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::FileTooLarge)
    );
}
