//! Connections that go where the name leads that their clients ask for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod first_bytes;
mod servers;

use std::net::SocketAddr;

use culvert_tests::{App, Culvert, Sandbox, Socket, process::output, sandbox::OTHER_V4};
use serde_json::Value;

/// A rule on [`OTHER_V4`], with entries of `names`, one a line, and other lines.
fn rule(port: u16, via: &str, names: &[String], more: &str) -> String {
    format!(
        "[[reverse]]\nname = \"site\"\nlisten = \"{OTHER_V4}:{port}\"\nvia = \"{via}\"\nnames = [\n{}]\n{more}\n",
        names.concat()
    )
}

fn sni(name: &str, more: &str, via: &str) -> String {
    format!("  {{ sni = \"{name}\"{more}, via = \"{via}\" }},\n")
}

fn host(name: &str, via: &str) -> String {
    format!("  {{ host = \"{name}\", via = \"{via}\" }},\n")
}

/// What came of looking for names.
fn counted(sandbox: &Sandbox, culvert: &Culvert<'_>) -> Value {
    let mut command = sandbox.culvert_command();
    command
        .args(["status", "--json", "--admin"])
        .arg(culvert.admin());
    let told: Value = serde_json::from_str(&output(&mut command)).unwrap();
    told["connections"]["names"].clone()
}

fn connected(app: &App, port: u16) -> Socket<'_> {
    let address = SocketAddr::from((OTHER_V4, port));
    let socket = app.tcp(address);
    socket.connect(address).unwrap();
    socket
}
