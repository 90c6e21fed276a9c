//! The two processes of a load.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use culvert_tests::{
    Sandbox, cgroup::Cgroup, eventually::in_time, hosts::Hosts, process::Running,
    sandbox::command_at,
};

use super::order::{Done, Order, Reply};
use crate::contender::SERVER_PORT;

/// A client in the cgroup that is intercepted, and a server, in one sandbox or on hosts around it.
pub(crate) struct Pair {
    client: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _server: Running,
    _server_cgroup: Arc<Cgroup>,
}

impl Pair {
    /// Starts both, each with so many threads.
    pub(crate) fn start(sandbox: &Sandbox, hosts: Option<&Hosts>, threads: usize) -> Result<Self> {
        let own = std::env::current_exe().context("the path of this program")?;
        let threads = threads.to_string();
        let server_cgroup = Arc::new(sandbox.cgroup().child("server"));
        let server = start_server(sandbox, hosts, &server_cgroup, &own, &threads)?;
        let mut client = match hosts {
            None => sandbox.command(own),
            Some(hosts) => sandbox.command_elsewhere(hosts.client(0), own),
        };
        let mut client = client
            .args(["client", "--threads", &threads])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the client")?;
        let pipes = client.stdin.take().zip(client.stdout.take());
        let (input, output) = pipes.context("pipes of the client")?;
        Ok(Self {
            client,
            input,
            output: BufReader::new(output),
            _server: server,
            _server_cgroup: server_cgroup,
        })
    }

    /// Has the client do something.
    pub(crate) fn obey(&mut self, order: Order) -> Result<Done> {
        let mut line = serde_json::to_string(&order)?;
        line.push('\n');
        self.input
            .write_all(line.as_bytes())
            .context("the client")?;
        line.clear();
        self.output.read_line(&mut line).context("the client")?;
        let reply: Reply = serde_json::from_str(&line)
            .with_context(|| format!("the client answers {line:?} to {order:?}"))?;
        reply.map_err(|error| anyhow!(error))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

fn start_server(
    sandbox: &Sandbox,
    hosts: Option<&Hosts>,
    cgroup: &Arc<Cgroup>,
    own: &PathBuf,
    threads: &str,
) -> Result<Running> {
    let mut command = match hosts {
        None => sandbox.command_in(cgroup, own),
        Some(hosts) => command_at(hosts.server(0), cgroup, own),
    };
    command
        .args(["server", "--port", &SERVER_PORT.to_string()])
        .args(["--threads", threads]);
    let server = Running::start(&mut command);
    // At an address that is never redirected to a proxy.
    let address = (Ipv4Addr::LOCALHOST, SERVER_PORT);
    let netns = hosts.map_or_else(|| sandbox.netns(), |hosts| &**hosts.server(0));
    let connects = || netns.within(|| TcpStream::connect(address).ok());
    in_time(connects).context("the server does not listen")?;
    Ok(server)
}
