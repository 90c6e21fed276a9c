//! Hostile input: nothing makes the parser panic, and no report is without a place or with a secret.

use std::{fmt::Write, fs};

use proptest::{collection::vec, prelude::*, sample::select};
use proxy_userspace::config::{self, summary};

use crate::world::{SECRET, parse_with_mode};

const EXAMPLE: &str = include_str!("../../examples/culvert.toml");

/// What every outcome must hold, whatever the text was.
fn check(text: &str, mode: u32) -> Result<(), TestCaseError> {
    match parse_with_mode(text, mode) {
        Ok(loaded) => {
            prop_assert!(!summary(&loaded.config).is_empty());
        }
        Err(error) => {
            let report = error.to_string();
            prop_assert!(report.starts_with("error: "), "{}", report);
            prop_assert!(report.contains("--> culvert.toml:"), "{}", report);
        }
    }
    Ok(())
}

/// Pieces that parsers stumble over.
const PIECES: [&str; 34] = [
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    ",",
    "=",
    ".",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "\\",
    "#",
    "\u{0}",
    "\u{feff}",
    "\u{1b}[31m",
    "\u{202e}",
    "é",
    "🦀",
    "://",
    "@",
    "!",
    "-",
    "/",
    "99999999999999999999",
    "nan",
    "1979-05-27",
    "true",
];

/// Pieces of the language itself.
const WORDS: [&str; 33] = [
    "[daemon]\n",
    "[upstream.a]\n",
    "[[forward]]\n",
    "[forward]\n",
    "name = ",
    "match = ",
    "via = ",
    "url = ",
    "username = ",
    "password_file = ",
    "password_env = ",
    "ca_file = ",
    "workers = ",
    "access_log = ",
    "admin = ",
    "calibrate = ",
    "ingress = ",
    "cgroup = ",
    "exe = ",
    "uid = ",
    "gid = ",
    "pid = ",
    "dest = ",
    "port = ",
    "path = ",
    "idle_timeout = ",
    "{ ",
    " }\n",
    "[ ",
    " ]\n",
    ", ",
    "0\n",
    "4294967296\n",
];

/// Strings that mean something somewhere.
const STRINGS: [&str; 12] = [
    "\"a\"",
    "\"direct\"",
    "\"socks5://u:p@10.0.0.5:1080\"",
    "\"https://[::1]\"",
    "\"10.0.0.0/8\"",
    "\"!::/0\"",
    "\"8000-8999\"",
    "\"30s\"",
    "\"/bin/sh\"",
    "\"alice\"",
    "\"CULVERT_PASSWORD\"",
    "\"/etc/culvert/password\"",
];

/// A change of a valid file.
#[derive(Clone, Debug)]
enum Edit {
    Remove(usize, usize),
    Insert(usize, String),
    Repeat(usize, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = 0..EXAMPLE.len();
    let piece = prop_oneof![
        select(&PIECES[..]).prop_map(str::to_owned),
        select(&WORDS[..]).prop_map(str::to_owned),
        ".{1,3}"
    ];
    let edit = prop_oneof![
        (at.clone(), 1..40_usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        (at.clone(), piece).prop_map(|(at, piece)| Edit::Insert(at, piece)),
        (at, 1..200_usize).prop_map(|(at, length)| Edit::Repeat(at, length)),
    ];
    vec(edit, 1..6)
}

fn edited(edits: &[Edit]) -> String {
    let mut text = EXAMPLE.to_owned();
    for edit in edits {
        let boundary = |at: usize| {
            (0..=at.min(text.len()))
                .rev()
                .find(|at| text.is_char_boundary(*at))
                .unwrap()
        };
        match edit {
            Edit::Remove(at, length) => {
                text.replace_range(boundary(*at)..boundary(at + length), "");
            }
            Edit::Insert(at, piece) => text.insert_str(boundary(*at), piece),
            Edit::Repeat(at, length) => {
                let (start, end) = (boundary(*at), boundary(at + length));
                let piece = text[start..end].to_owned();
                text.insert_str(end, &piece);
            }
        }
    }
    text
}

/// Any TOML value, by preference one that means something.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>()
            .prop_filter("TOML writes these in words", |number| number.is_finite())
            .prop_map(|number| format!("{number:?}")),
        any::<bool>().prop_map(|boolean| boolean.to_string()),
        Just("1979-05-27T07:32:00Z".to_owned()),
        any::<String>().prop_map(|text| toml::Value::String(text).to_string()),
        "!?[a-z0-9./:@%!-]{0,24}".prop_map(|text| toml::Value::String(text).to_string()),
        select(&STRINGS[..]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        let key = prop_oneof![
            select(
                &[
                    "url", "path", "format", "uid", "gid", "pid", "dest", "port", "exe", "cgroup",
                    "username", "x"
                ][..]
            )
            .prop_map(str::to_owned),
            "[a-z_]{1,8}",
        ];
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::btree_map(key, inner, 0..5).prop_map(|entries| {
                let entries: Vec<String> = entries
                    .iter()
                    .map(|(key, value)| format!("{key} = {value}"))
                    .collect();
                format!("{{ {} }}", entries.join(", "))
            }),
        ]
    })
}

/// Every known key with any value.
fn document() -> impl Strategy<Value = String> {
    let keys = |keys: &'static [&'static str]| {
        prop::sample::subsequence(keys.to_vec(), 0..=keys.len()).prop_flat_map(|keys| {
            let count = keys.len();
            vec(value(), count).prop_map(move |values| {
                let pairs = keys.iter().zip(values);
                let lines: Vec<String> = pairs
                    .map(|(key, value)| format!("{key} = {value}\n"))
                    .collect();
                lines.concat()
            })
        })
    };
    let daemon = keys(&[
        "cgroup",
        "workers",
        "max_connections",
        "idle_timeout",
        "drain_timeout",
        "access_log",
        "admin",
        "metrics",
        "health",
        "dashboard",
        "calibrate",
        "ingress",
    ]);
    let upstream = keys(&[
        "url",
        "username",
        "password_file",
        "password_env",
        "ca_file",
        "connect_timeout",
    ]);
    let forward = keys(&[
        "name",
        "match",
        "via",
        "on_relay_failure",
        "path",
        "allow_shortcut",
        "allow_rewrite",
    ]);
    (daemon, vec(upstream, 0..3), vec(forward, 0..3)).prop_map(|(daemon, upstreams, forwards)| {
        let mut text = format!("[daemon]\n{daemon}");
        for (at, upstream) in upstreams.iter().enumerate() {
            write!(text, "[upstream.u{at}]\n{upstream}").unwrap();
        }
        for forward in forwards {
            write!(text, "[[forward]]\n{forward}").unwrap();
        }
        text
    })
}

/// Four times the usual number of cases, which `PROPTEST_CASES` sets.
fn thorough() -> ProptestConfig {
    let usual = ProptestConfig::default();
    let cases = usual.cases.saturating_mul(4);
    ProptestConfig { cases, ..usual }
}

proptest! {
    #![proptest_config(thorough())]

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>(), mode in any::<u32>()) {
        check(&text, mode)?;
    }

    #[test]
    fn any_sequence_of_pieces_is_read_or_refused(pieces in vec(prop_oneof![select(&PIECES[..]), select(&WORDS[..]), select(&STRINGS[..])], 0..60)) {
        check(&pieces.concat(), 0o644)?;
    }

    #[test]
    fn any_change_of_a_valid_file_is_read_or_refused(edits in edits()) {
        check(&edited(&edits), 0o600)?;
    }

    #[test]
    fn any_values_are_read_or_refused(text in document()) {
        check(&text, 0o600)?;
    }

    #[test]
    fn no_report_shows_a_password(edits in edits(), key in select(&["url", "via", "x"][..]), quote in select(&["\"", "'"][..])) {
        let text = edited(&edits);
        // Somewhere in a broken file a URL with a password stands on a line of its own.
        let line = format!("\n{key} = {quote}socks5://alice:{SECRET}@10.0.0.5:99999{quote}\n");
        for text in [format!("{text}{line}"), format!("{line}{text}")] {
            if let Err(error) = parse_with_mode(&text, 0o600) {
                let report = error.to_string();
                prop_assert!(!report.contains(SECRET), "{}", report);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_file_is_read_or_refused(bytes in vec(any::<u8>(), 0..400), cut in 0..EXAMPLE.len()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("culvert.toml");
        let mut content = EXAMPLE.as_bytes()[..cut].to_vec();
        content.extend(bytes);
        fs::write(&path, content).unwrap();
        if let Err(error) = config::load(&path) {
            prop_assert!(error.to_string().starts_with("error: "), "{}", error);
        }
    }
}
