//! A daemon that intercepts by the real hooks.

use std::net::Ipv4Addr;

use anyhow::Result;
use culvert_tests::{
    Culvert, Sandbox, daemon::Settings, eventually::eventually, sandbox::SERVER_V4,
};

use super::{Form, Job, PROXY_PORT, Relay, redsocks};

/// The part of the configuration that matters here.
pub(super) fn configuration(path: &str, job: Job, workers: usize) -> String {
    format!("[daemon]\n{}\n{}", daemon(workers), rules(path, job))
}

pub(super) fn daemon(workers: usize) -> String {
    format!("workers = {workers}\ncalibrate = \"start\"")
}

fn rules(path: &str, job: Job) -> String {
    let upstream = match job {
        // Only a group can be rewritten to; here it is the server alone.
        Job::Forward if path == "rewrite" => format!("endpoints = \"{}\"", super::server()),
        Job::Forward => "url = \"direct://\"".to_owned(),
        Job::ForwardOverSocks => {
            let port = redsocks::SOCKS_PORT;
            format!("url = \"socks5://{}:{port}\"", Ipv4Addr::LOCALHOST)
        }
        Job::Reverse => return reverse(path),
    };
    format!(
        r#"
[upstream.relay]
{upstream}
[[forward]]
name = "all"
match = {{ dest = "0.0.0.0/0" }}
via = "relay"
path = "{path}"
"#
    )
}

fn reverse(path: &str) -> String {
    let server = Form::Explicit.upstream();
    format!(
        r#"
[[reverse]]
name = "all"
listen = "{SERVER_V4}:{PROXY_PORT}"
via = "{server}"
path = "{path}"
"#
    )
}

pub(super) fn start<'a>(
    sandbox: &'a Sandbox,
    path: &str,
    job: Job,
    workers: usize,
    is_logged: bool,
) -> Result<Relay<'a>> {
    let socks = (job == Job::ForwardOverSocks)
        .then(|| redsocks::start_socks(sandbox))
        .transpose()?;
    let culvert = run(sandbox, path, &rules(path, job), workers, is_logged);
    Ok(Relay::Culvert { culvert, socks })
}

/// A daemon that has measured the paths, if its path asks for that.
pub(super) fn run<'a>(
    sandbox: &'a Sandbox,
    path: &str,
    rules: &str,
    workers: usize,
    is_logged: bool,
) -> Box<Culvert<'a>> {
    let settings = Settings {
        without_access_log: !is_logged,
        ..Settings::daemon(&daemon(workers))
    };
    let culvert = Box::new(sandbox.culvert_with(&settings, rules));
    if path.starts_with("auto") || path.starts_with("shortcut") {
        // In the background, a moment after the start; a daemon has it behind itself for most of its life.
        eventually("the paths to be measured", || {
            culvert.log().contains("measured the paths").then_some(())
        });
    }
    culvert
}
