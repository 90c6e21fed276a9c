//! Configurations that many tests share.

use std::net::SocketAddr;

/// Every connection, loopback ones included, goes through the relay and from there to where it wanted to go.
pub const ALL: &str = r#"
[upstream.relay]
url = "direct://"
[[forward]]
name = "all"
match = { dest = ["0.0.0.0/0", "::/0", "127.0.0.0/8", "::1"] }
via = "relay"
"#;

/// Every connection goes through a proxy that speaks `scheme`.
pub fn all_via(scheme: &str, proxy: SocketAddr) -> String {
    format!(
        r#"
        [upstream.proxy]
        url = "{scheme}://{proxy}"
        [[forward]]
        name = "all"
        match = {{ dest = ["0.0.0.0/0", "::/0", "127.0.0.0/8", "::1"] }}
        via = "proxy"
        "#
    )
}

/// The rule `name`, which relays what matches.
pub fn relayed(name: &str, matches: &str) -> String {
    format!(
        r#"
        [[forward]]
        name = "{name}"
        match = {{ {matches} }}
        via = "relay"
        "#
    )
}

/// What passes through by these interfaces is relayed to where it goes.
pub fn passing(interfaces: &[&str], more: &str) -> String {
    format!("[[gateway]]\nname = \"lan\"\ninterface = {interfaces:?}\nvia = \"original\"\n{more}\n")
}

/// The upstream of [`relayed`], which must be there once.
pub const RELAY: &str = r#"
[upstream.relay]
url = "direct://"
"#;
