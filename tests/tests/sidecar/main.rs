//! culvert as a sidecar, in containers made by hand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

mod failures;
mod pods;
mod readiness;

use culvert_tests::{Sandbox, peer::Server, sandbox::SERVER_V4};

/// Relays everything.
fn rules(daemon: &str, mode: &str) -> String {
    format!(
        "[daemon]\ncalibrate = \"demand\"\ndrain_timeout = \"500ms\"\n{daemon}\n\
         [upstream.relay]\nurl = \"direct://\"\n\
         [[forward]]\nname = \"all\"\nmatch = {{ dest = \"0.0.0.0/0\" }}\nvia = \"relay\"\n\
         on_relay_failure = \"{mode}\"\n"
    )
}

fn mirror(sandbox: &Sandbox) -> Server {
    sandbox.within(|| Server::mirror((SERVER_V4, 0)))
}
