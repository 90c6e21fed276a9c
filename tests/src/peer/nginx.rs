//! nginx, serving what a test says.

use std::{fs, path::Path, process::Command};

use crate::process::Running;

/// Runs an nginx of one process, by a command that gets its arguments. All its files are in a directory; `http` is what stands
/// in that section.
pub fn nginx(directory: &Path, http: &str, command: &mut Command) -> Running {
    nginx_with(directory, "", http, command)
}

/// As [`nginx`], with `main` outside of any section.
pub fn nginx_with(directory: &Path, main: &str, http: &str, command: &mut Command) -> Running {
    let place = directory.display();
    // A worker that outlived a killed master would hold the test's pipes.
    let text = format!(
        "{main} daemon off; master_process off; pid {place}/nginx.pid; error_log {place}/error.log;
         events {{ worker_connections 1000; }}
         http {{ access_log off; client_body_temp_path {place}/a; proxy_temp_path {place}/b; fastcgi_temp_path {place}/c;
                 uwsgi_temp_path {place}/d; scgi_temp_path {place}/e;
                 {http} }}"
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, text).expect("the configuration of nginx");
    // Before it has read its configuration it logs elsewhere.
    let early = directory.join("error.log");
    Running::start(command.arg("-e").arg(early).arg("-c").arg(file))
}
