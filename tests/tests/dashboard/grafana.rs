//! The dashboard that is shipped for Grafana, beside what a daemon tells Prometheus.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::Value;

use super::{ask, connect, with_connection};

const GRAFANA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../xtask/packaging/grafana.json"
);
/// What Prometheus adds to every number.
const ADDED: [&str; 2] = ["job", "instance"];

/// A query of the dashboard, and how its lines are called.
struct Query<'a> {
    text: &'a str,
    legend: &'a str,
}

impl<'a> Query<'a> {
    /// Names of our numbers in it.
    fn numbers(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let words = self
            .text
            .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        words.filter(|word| word.starts_with("culvert_"))
    }

    /// Labels that it asks for, sums by or is called by.
    fn labels(&self) -> BTreeSet<&'a str> {
        let asked = self.text.match_indices('=').map(|(at, _)| {
            let before = &self.text[..at];
            &before[before.rfind(['{', ',']).map_or(0, |at| at + 1)..]
        });
        let by = self.text.split("by (").skip(1);
        let by = by.flat_map(|rest| rest[..rest.find(')').unwrap()].split(", "));
        let called = self.legend.split("{{").skip(1);
        let called = called.map(|rest| &rest[..rest.find("}}").unwrap()]);
        asked.chain(by).chain(called).collect()
    }
}

/// All queries below a value.
fn queries<'a>(value: &'a Value, found: &mut Vec<Query<'a>>) {
    match value {
        Value::Object(fields) => {
            let legend = fields.get("legendFormat").and_then(Value::as_str);
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if ["expr", "query", "definition"].contains(&key.as_str()) => {
                        let legend = legend.unwrap_or_default();
                        found.push(Query { text, legend });
                    }
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(GRAFANA).unwrap()).unwrap()
}

/// Numbers with the labels that they have.
fn exported(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut exported = BTreeMap::<_, BTreeSet<_>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let labels = line.match_indices("=\"").map(|(at, _)| {
            let before = &line[..at];
            &before[before.rfind(['{', ',']).unwrap() + 1..]
        });
        exported.entry(name).or_default().extend(labels);
    }
    exported
}

#[test]
fn what_it_asks_for_is_there() {
    let dashboard = dashboard();
    let mut asked = Vec::new();
    queries(&dashboard, &mut asked);
    let numbers: BTreeSet<_> = asked.iter().flat_map(Query::numbers).collect();
    assert!(numbers.len() > 15, "{numbers:?}");
    with_connection(|sandbox, culvert, app| {
        // Some numbers are there once something has happened.
        connect(app).close();
        culvert.await_records(1);
        let text = ask(sandbox, 9464, "GET /metrics", "culvert");
        let exported = exported(&text);
        for query in &asked {
            let labels = query.labels();
            for number in query.numbers() {
                let Some(there) = exported.get(number) else {
                    panic!("no {number} in\n{text}");
                };
                let mut missing = labels
                    .iter()
                    .filter(|label| !there.contains(**label) && !ADDED.contains(label));
                assert_eq!(missing.next(), None, "{} in\n{text}", query.text);
            }
        }
    });
}

#[test]
fn its_panels_have_places_and_what_they_choose_by_is_to_be_chosen() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels of one id");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = &panel["title"];
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let [x, y, width, height] = ["x", "y", "w", "h"].map(|side| {
            let side = panel["gridPos"][side].as_u64();
            side.unwrap_or_else(|| panic!("{title} has no place"))
        });
        // Grafana has so many columns.
        assert!(x + width <= 24 && width > 0 && height > 0, "{title}");
        for at in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
            assert!(taken.insert(at), "{title} is on another panel");
        }
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{title}");
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables: BTreeSet<_> = variables.map(|one| one["name"].as_str().unwrap()).collect();
    let mut asked = Vec::new();
    queries(&dashboard, &mut asked);
    for Query { text, .. } in asked {
        for rest in text.split('$').skip(1) {
            let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            let name = &rest[..end.unwrap_or(rest.len())];
            // Grafana's own.
            assert!(
                variables.contains(name) || name.starts_with("__"),
                "{name} in {text}"
            );
        }
    }
}
