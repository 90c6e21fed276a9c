//! `HAProxy`, mode tcp.

use anyhow::Result;
use culvert_tests::{Sandbox, process::write_private};

use super::{Form, PROXY_PORT, Peer, Relay};

pub(super) const PROGRAMS: [(&str, &str); 1] = [("haproxy", "-v")];

/// `maxconn` is what the limit of open files allows, as `HAProxy` itself works it out; by default it keeps a quarter of that for
/// pipes, of which every direction of a connection that splices has one.
pub(super) fn configuration(splice: bool, form: Form, workers: usize) -> String {
    written(splice, "", &form.upstream().to_string(), workers)
}

/// With parameters of the listener, and where it connects.
pub(super) fn written(splice: bool, listener: &str, upstream: &str, workers: usize) -> String {
    let (pipes, splice) = if splice {
        ("maxpipes 256", "option splice-auto")
    } else {
        ("", "")
    };
    format!(
        "\
global
    nbthread {workers}
    {pipes}
    tune.bufsize 65536
    tune.maxaccept 100
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    {splice}
listen bench
    bind :{PROXY_PORT} backlog 4096 {listener}
    server server {upstream}
"
    )
}

pub(super) fn start(
    sandbox: &Sandbox,
    splice: bool,
    form: Form,
    workers: usize,
) -> Result<Relay<'_>> {
    let peer = Peer::new(sandbox);
    peer.redirect(form);
    run(sandbox, peer, &configuration(splice, form, workers))
}

pub(super) fn run<'a>(
    sandbox: &Sandbox,
    mut peer: Peer<'a>,
    configuration: &str,
) -> Result<Relay<'a>> {
    let file = sandbox.directory().join("haproxy.cfg");
    write_private(&file, configuration);
    let file = file.to_string_lossy();
    peer.run("haproxy", &["-db", "-f", &file], PROXY_PORT)?;
    Ok(Relay::Peer(peer))
}
