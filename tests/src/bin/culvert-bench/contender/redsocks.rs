//! redsocks, which asks the kernel for the original destination and a SOCKS proxy for the connection; that one is microsocks.

use anyhow::Result;
use culvert_tests::{Sandbox, process::write_private};

use super::{Form, PROXY_PORT, Peer, Relay, peer::NOT_REDIRECTED};

pub(super) const PROGRAMS: [(&str, &str); 2] = [("redsocks", "-v"), ("microsocks", "-h")];
/// The SOCKS proxy alone.
pub(super) const SOCKS: [(&str, &str); 1] = [("microsocks", "-h")];
pub(super) const SOCKS_PORT: u16 = 1080;

/// redsocks has one thread, and microsocks one for each connection.
pub(super) fn configuration() -> String {
    format!(
        "\
base {{
    log_debug = off;
    log_info = off;
    log = stderr;
    daemon = off;
    redirector = iptables;
}}
redsocks {{
    local_ip = 127.0.0.1;
    local_port = {PROXY_PORT};
    listenq = 4096;
    ip = 127.0.0.1;
    port = {SOCKS_PORT};
    type = socks5;
}}
"
    )
}

pub(super) fn start(sandbox: &Sandbox) -> Result<Relay<'_>> {
    let mut peer = start_socks(sandbox)?;
    peer.redirect(Form::Redirect);
    let file = sandbox.directory().join("redsocks.conf");
    write_private(&file, &configuration());
    peer.run("redsocks", &["-c", &file.to_string_lossy()], PROXY_PORT)?;
    Ok(Relay::Peer(peer))
}

/// The SOCKS proxy; its own connections are not redirected.
pub(super) fn start_socks(sandbox: &Sandbox) -> Result<Peer<'_>> {
    let mut peer = Peer::new(sandbox);
    let (user, group) = (
        format!("--reuid={NOT_REDIRECTED}"),
        format!("--regid={NOT_REDIRECTED}"),
    );
    let port = SOCKS_PORT.to_string();
    let mut arguments = vec![user.as_str(), &group, "--clear-groups"];
    arguments.extend(["microsocks", "-i", "127.0.0.1", "-p", &port]);
    // Not by this process, which could not enter the sandbox as another user.
    peer.run("setpriv", &arguments, SOCKS_PORT)?;
    Ok(peer)
}
