//! Which entry takes a name.

use crate::rule::{NameEntry, Pattern};

use super::*;

/// Entries as `sni NAME PROTOCOL,PROTOCOL`; each is for its own text.
fn table(entries: &[&'static str]) -> Table<&'static str> {
    Table::new(entries.iter().map(|text| {
        let mut words = text.split(' ');
        let kind = match words.next() {
            Some("sni") => Kind::Sni,
            _ => Kind::Host,
        };
        let pattern = words.next().unwrap();
        let name = |text| Name::written(text).unwrap();
        let pattern = match pattern.strip_prefix("*.") {
            _ if pattern == "*" => Pattern::Any,
            Some(below) => Pattern::Below(name(below)),
            None => Pattern::Exact(name(pattern)),
        };
        let alpn = words.next().into_iter().flat_map(|alpn| alpn.split(','));
        NameEntry {
            kind,
            pattern,
            alpn: alpn.map(Box::from).collect(),
            to: *text,
        }
    }))
}

fn asked(kind: Kind, name: &str, alpn: &[&str]) -> Flight {
    let coded = |name: &&str| {
        let length = u8::try_from(name.len()).unwrap();
        [&[length], name.as_bytes()].concat()
    };
    Flight {
        kind: Some(kind),
        name: Name::of(name.as_bytes()),
        alpn: alpn.iter().flat_map(coded).collect(),
    }
}

#[test]
fn the_most_specific_entry_takes_a_name() {
    let table = table(&[
        "sni *",
        "sni *.example.com",
        "sni *.b.example.com",
        "sni a.example.com",
        "host *.example.com",
        "host 192.0.2.1",
    ]);
    for (kind, name, expected) in [
        (Kind::Sni, "a.example.com", Some("sni a.example.com")),
        (Kind::Sni, "A.Example.COM.", Some("sni a.example.com")),
        (Kind::Sni, "x.a.example.com", Some("sni *.example.com")),
        (Kind::Sni, "b.example.com", Some("sni *.example.com")),
        (Kind::Sni, "x.b.example.com", Some("sni *.b.example.com")),
        (Kind::Sni, "x.y.b.example.com", Some("sni *.b.example.com")),
        (Kind::Sni, "example.com", Some("sni *")),
        (Kind::Sni, "notexample.com", Some("sni *")),
        (Kind::Host, "x.example.com", Some("host *.example.com")),
        (Kind::Host, "example.com", None),
        (Kind::Host, "192.0.2.1", Some("host 192.0.2.1")),
        (Kind::Host, "10.0.2.1", None),
    ] {
        let found = table.find(&asked(kind, name, &[])).copied();
        assert_eq!(found, expected, "{name}");
    }
    assert_eq!(table.find(&Flight::default()), None);
}

#[test]
fn protocols_choose_among_entries_of_one_name() {
    let table = table(&[
        "sni a.example",
        "sni a.example h2,http/1.1",
        "sni a.example h3",
        "sni a.example acme-tls/1",
        "sni b.example h2",
        "sni *.example http/1.1",
        "sni *",
    ]);
    for (name, alpn, expected) in [
        (
            "a.example",
            ["acme-tls/1"].as_slice(),
            "sni a.example acme-tls/1",
        ),
        (
            "a.example",
            &["acme-tls/1", "h2"],
            "sni a.example h2,http/1.1",
        ),
        ("a.example", &["H2"], "sni a.example"),
        ("a.example", &[], "sni a.example"),
        ("b.example", &["h2", "http/1.1"], "sni b.example h2"),
        ("b.example", &["http/1.1"], "sni *.example http/1.1"),
        ("b.example", &[], "sni *"),
    ] {
        let found = table.find(&asked(Kind::Sni, name, alpn));
        assert_eq!(found, Some(&expected), "{name} {alpn:?}");
    }
}
