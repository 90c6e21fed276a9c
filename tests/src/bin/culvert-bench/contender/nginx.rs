//! nginx with its stream module.

use anyhow::Result;
use culvert_tests::{Sandbox, process::write_private};

use super::{Form, PROXY_PORT, Peer, Relay};

pub(super) const PROGRAMS: [(&str, &str); 1] = [("nginx", "-v")];

/// A buffer of 64 KiB is four times the default: larger ones move no more, and cost each connection their size.
pub(super) fn configuration(form: Form, workers: usize) -> String {
    let upstream = form.upstream();
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
        proxy_buffer_size 64k;
        proxy_connect_timeout 10s;
        proxy_timeout 1h;
    }}
}}
"
    )
}

pub(super) fn start(sandbox: &Sandbox, form: Form, workers: usize) -> Result<Relay<'_>> {
    let mut peer = Peer::new(sandbox);
    peer.redirect(form);
    let directory = sandbox.directory();
    let file = directory.join("nginx.conf");
    let pid = format!("pid {};\n", directory.join("nginx.pid").display());
    write_private(&file, &(pid + &configuration(form, workers)));
    let file = file.to_string_lossy();
    peer.run("nginx", &["-e", "stderr", "-c", &file], PROXY_PORT)?;
    Ok(Relay::Peer(peer))
}
