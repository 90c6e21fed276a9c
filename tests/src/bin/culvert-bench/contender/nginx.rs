//! nginx with its stream module.

use std::net::SocketAddr;

use anyhow::Result;
use culvert_tests::{Sandbox, process::write_private};

use super::{Form, PROXY_PORT, Peer, Relay};

pub(super) const PROGRAMS: [(&str, &str); 1] = [("nginx", "-v")];

/// A buffer of 64 KiB is four times the default: larger ones move no more, and cost each connection their size.
pub(super) fn configuration(form: Form, workers: usize) -> String {
    written("", form.upstream(), workers)
}

/// With more directives, and where it connects.
///
/// Without `proxy_half_close` (nginx 1.21.4) it ends both connections when the client has ended its half, and what the server still
/// says is lost, where all others wait for it.
pub(super) fn written(more: &str, upstream: SocketAddr, workers: usize) -> String {
    format!(
        "\
load_module modules/ngx_stream_module.so;
user root;
daemon off;
worker_processes {workers};
error_log stderr crit;
events {{
    worker_connections 65536;
}}
stream {{
    access_log off;
    server {{
        listen {PROXY_PORT} reuseport backlog=4096;
        tcp_nodelay on;
        proxy_pass {upstream};
        {more}
        proxy_buffer_size 64k;
        proxy_half_close on;
        proxy_connect_timeout 10s;
        proxy_timeout 1h;
    }}
}}
"
    )
}

pub(super) fn start(sandbox: &Sandbox, form: Form, workers: usize) -> Result<Relay<'_>> {
    let peer = Peer::new(sandbox);
    peer.redirect(form);
    run(sandbox, peer, &configuration(form, workers))
}

pub(super) fn run<'a>(
    sandbox: &Sandbox,
    mut peer: Peer<'a>,
    configuration: &str,
) -> Result<Relay<'a>> {
    let directory = sandbox.directory();
    let file = directory.join("nginx.conf");
    let pid = format!("pid {};\n", directory.join("nginx.pid").display());
    write_private(&file, &(pid + configuration));
    let file = file.to_string_lossy();
    peer.run("nginx", &["-e", "stderr", "-c", &file], PROXY_PORT)?;
    Ok(Relay::Peer(peer))
}
