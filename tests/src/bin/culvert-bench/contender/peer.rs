//! Somebody else's proxy, in the cgroup of daemons of a sandbox.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use culvert_tests::{Sandbox, eventually::in_time, sandbox::SERVER_V4};

use super::{Form, PROXY_PORT, SERVER_PORT};

/// The user whose connections are not redirected: `nobody`.
pub(super) const NOT_REDIRECTED: u32 = 65_534;

/// The processes of a proxy, which end with it, and all that they have started.
pub(crate) struct Peer<'a> {
    sandbox: &'a Sandbox,
    children: Vec<Child>,
    log: PathBuf,
}

impl<'a> Peer<'a> {
    pub(super) fn new(sandbox: &'a Sandbox) -> Self {
        Self {
            sandbox,
            children: Vec::new(),
            log: sandbox.directory().join("peer.log"),
        }
    }

    /// Starts a program and waits until something accepts connections at its port.
    pub(super) fn run(&mut self, program: &str, arguments: &[&str], port: u16) -> Result<()> {
        let mut command = self.sandbox.command_beside_daemons(program);
        let log = File::create(&self.log).context("the log of a peer")?;
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.children.push(spawn(&mut command)?);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let sandbox = self.sandbox;
        let accepts = || sandbox.within(|| TcpStream::connect(address).ok());
        if in_time(accepts).is_none() {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            bail!("{program} does not listen at port {port}: {}", said.trim());
        }
        Ok(())
    }

    /// Has nftables send the client's connections to the proxy.
    pub(super) fn redirect(&self, form: Form) {
        if form == Form::Redirect {
            for rule in redirect() {
                self.sandbox.netns().tool("nft", &rule);
            }
        }
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        let cgroup = self.sandbox.daemon_cgroup();
        let _ = fs::write(cgroup.path().join("cgroup.kill"), "1");
        for child in &mut self.children {
            let _ = child.wait();
        }
        let _ = in_time(|| cgroup.processes().is_empty().then_some(()));
    }
}

/// The commands of nftables that redirect.
pub(super) fn redirect() -> Vec<String> {
    let server = format!("ip daddr {SERVER_V4} tcp dport {SERVER_PORT}");
    let others = format!("meta skuid != {NOT_REDIRECTED}");
    vec![
        "add table ip bench".to_owned(),
        "add chain ip bench output { type nat hook output priority -100 ; }".to_owned(),
        "flush chain ip bench output".to_owned(),
        format!("add rule ip bench output {server} {others} redirect to :{PROXY_PORT}"),
    ]
}

fn spawn(command: &mut Command) -> Result<Child> {
    let name = command.get_program().to_owned();
    let spawned = command.spawn();
    spawned.with_context(|| format!("cannot start {}", name.display()))
}
