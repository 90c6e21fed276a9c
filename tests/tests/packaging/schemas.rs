//! The manifests, by the schemas of those who read them, without a cluster or an engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use culvert_tests::process::output_of;
use serde_json::Value;

use super::{documents, read};

const SCHEMAS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/");
const VALIDATE: &str = include_str!("validate.py");
/// Debian's, for which Debian's modules are.
const PYTHON: &str = "/usr/bin/python3";
const MODULE: &str = "/usr/lib/python3/dist-packages/jsonschema";

/// Keys that could be written otherwise without the schema's knowing: names that are anybody's to choose. Panics when there is
/// anything else against the document.
fn free(schema: &str, definition: Option<&str>, document: &Value) -> BTreeSet<String> {
    // A test that is skipped looks as if it had passed.
    assert!(
        Path::new(MODULE).exists(),
        "apt-get install python3-jsonschema"
    );
    let mut validate = Command::new(PYTHON);
    validate.args(["-I", "-c", VALIDATE]);
    validate.arg(format!("{SCHEMAS}{schema}")).args(definition);
    let said: Value =
        serde_json::from_str(&output_of(&mut validate, &document.to_string())).unwrap();
    assert_eq!(said["complaints"], Value::Array(Vec::new()));
    let free = said["free"].as_array().unwrap().iter();
    free.map(|key| key.as_str().unwrap().to_owned()).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn kubernetes_takes_the_manifests() {
    let definitions = BTreeMap::from([
        ("ConfigMap", "io.k8s.api.core.v1.ConfigMap"),
        ("DaemonSet", "io.k8s.api.apps.v1.DaemonSet"),
        ("Pod", "io.k8s.api.core.v1.Pod"),
    ]);
    let mut seen = BTreeSet::new();
    for file in ["kubernetes-sidecar.yaml", "kubernetes-daemonset.yaml"] {
        for (kind, document) in documents(file) {
            // The schema would not miss them.
            for key in ["apiVersion", "kind"] {
                assert!(document[key].is_string(), "{file}: {key}");
            }
            let definition = definitions[&*kind];
            let free = free("kubernetes-1.29.json", Some(definition), &document);
            let chosen = match &*kind {
                "ConfigMap" => names(["culvert.toml"]),
                "DaemonSet" => names(["app", "cpu", "memory"]),
                _ => names(["cpu", "memory"]),
            };
            assert_eq!(free, chosen, "{file}: {kind}");
            seen.insert(kind);
        }
    }
    assert_eq!(seen, names(["ConfigMap", "DaemonSet", "Pod"]));
}

#[test]
fn compose_takes_its_file() {
    let document: Value = serde_saphyr::from_str(&read("compose.yaml")).unwrap();
    let free = free("compose.json", None, &document);
    assert_eq!(free, names(["app", "culvert", "network"]));
}
