//! The command line: types only, no behaviour. Nouns read, verbs change.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A transparent proxy for Linux: chosen connections go through a relay or a proxy, no client is configured, and
/// nothing is left behind.
#[derive(Debug, Parser)]
#[command(
    name = "culvert",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Say more: -v also debug messages and the causes of errors, -vv everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Form of the log on standard error.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one command with all its TCP connections proxied; exits with the command's status.
    Exec(ExecArgs),
    /// Show where programs connect, live, and proxy nothing; ends with the command, or by Ctrl-C.
    Watch(WatchArgs),
    /// Run the proxy in the foreground: SIGTERM drains and ends it, SIGHUP reloads the file, SIGUSR1 opens the access
    /// log again.
    Run(RunArgs),
    /// Run the proxy as a container beside an app's, in whose pod it captures.
    Sidecar(SidecarArgs),
    /// Tell whether a running daemon captures connections, by the exit code as well: for probes.
    Ready(ReadyArgs),
    /// Read a configuration and print what it means.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
    /// Print what `run` would attach where, and what is missing; changes nothing.
    Plan(ConfigArg),
    /// Examine kernel, cgroups, privileges and hooks, and say what to do.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ask a running daemon how it is: rules, connections, paths, counters.
    Status(StatusArgs),
    /// List the connections that a running daemon relays, with what they move and by which path.
    Conns(ConnsArgs),
    /// Show on the whole screen what a running daemon does: rates, connections, endpoints; ? shows the keys.
    Top(TopArgs),
    /// List the rules of a running daemon, with how many connections each has selected.
    Rules(StatusArgs),
    /// List the upstreams of a running daemon, with the health of their endpoints.
    Upstreams(StatusArgs),
    /// Print the numbers of a running daemon as Prometheus reads them.
    Metrics(DaemonArg),
    /// Tell which rule takes a connection, or the first reason why each does not, and what becomes of it.
    Explain(ExplainArgs),
    /// Reset one connection of a running daemon.
    End(EndArgs),
    /// Give an endpoint or a binding of a running daemon no new connections; those that are there may finish.
    Drain(DrainArgs),
    /// Give what is drained connections again.
    Restore(RestoreArgs),
    /// Intercept real connections between an embedded client and an embedded server, and show what happened.
    Demo,
    /// Remove what a killed daemon left in force (rules with `on_relay_failure = "refuse"`).
    Detach(DetachArgs),
    /// The app of the demonstration.
    #[command(name = "__demo-app", hide = true)]
    DemoApp,
    /// Kill what is left of an `exec` whose process was killed.
    #[command(name = "__reap", hide = true)]
    Reap {
        /// Directory of the cgroup.
        cgroup: PathBuf,
    },
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct ConfigArg {
    /// The configuration file.
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/culvert/culvert.toml"
    )]
    pub config: PathBuf,
}

/// What to serve, and whether in place of another.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration file.
    #[command(flatten)]
    pub file: ConfigArg,

    /// Take the place of the culvert that serves the same cgroup, if there is one: it is told to end once this one serves, and
    /// its connections finish in it. No new connection fails or goes past both.
    #[arg(long)]
    pub takeover: bool,
}

/// What to serve, and whom.
#[derive(Debug, Args)]
pub struct SidecarArgs {
    /// The configuration file.
    #[command(flatten)]
    pub file: ConfigArg,

    /// Serve the cgroup of this process, of a container whose process namespace is shared, instead of the whole pod.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
}

/// What to remove.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Remove what sidecars that are gone have left on this cgroup and those below it (path in the hierarchy), which otherwise goes
    /// with the cgroup.
    #[arg(long, value_name = "CGROUP")]
    pub cgroup: Option<PathBuf>,
}

/// Whom to ask whether it captures, and for how long.
#[derive(Debug, Args)]
pub struct ReadyArgs {
    /// Ask there, `health` in the section `daemon`, instead of at the admin socket.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "admin")]
    pub health: Option<std::net::SocketAddr>,

    /// Ask again until it captures, for so long.
    #[arg(long, value_name = "TIME")]
    pub wait: Option<humantime::Duration>,

    /// Where the daemon is.
    #[command(flatten)]
    pub daemon: DaemonArg,
}

/// Which daemon to ask, and how to print the answer.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,

    /// Where the daemon is.
    #[command(flatten)]
    pub daemon: DaemonArg,
}

/// Which connections, and how to print them.
#[derive(Debug, Args)]
pub struct ConnsArgs {
    /// Only those of which this holds; repeat it for more: id=, role=forward|reverse, rule=NAME, to= and client= with an address,
    /// a prefix or a part of the name, each also with :PORT, process=PID or what it is called, path=PATH, via= with an upstream
    /// or an endpoint, any= with a part of any of these.
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,

    /// By what they are sorted.
    #[arg(long, value_parser = ["rate", "bytes", "age", "rtt", "id"])]
    pub sort: Option<String>,

    /// List so many at most, 1000 if nothing is said.
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<u32>,

    /// List them anew every second.
    #[arg(short, long)]
    pub watch: bool,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,

    /// Where the daemon is.
    #[command(flatten)]
    pub daemon: DaemonArg,
}

/// Which connections to show at first.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Only those of which this holds: KEY=VALUE as for `conns`, or a part of anything that is shown.
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,

    /// By what they are sorted.
    #[arg(long, value_parser = ["rate", "bytes", "age", "rtt", "id"])]
    pub sort: Option<String>,

    /// Where the daemon is.
    #[command(flatten)]
    pub daemon: DaemonArg,
}

/// A connection that there may be.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Where it goes.
    #[arg(value_name = "ADDRESS:PORT")]
    pub to: std::net::SocketAddr,

    /// The process that opens it; if nothing is said the one that calls culvert, and the user who called sudo.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,

    /// As if the process were of this user (name or number).
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,

    /// As if it were in this cgroup (path in the hierarchy, or systemd unit).
    #[arg(long, value_name = "CGROUP")]
    pub cgroup: Option<String>,

    /// The first process of this container (name, as rules have it, id, or the first 12 digits of that), in its cgroup and network.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["pid", "cgroup"])]
    pub container: Option<String>,

    /// As if it ran this executable.
    #[arg(long, value_name = "PATH")]
    pub exe: Option<PathBuf>,

    /// It is one that arrives at this host, from this address.
    #[arg(long, value_name = "SOURCE", group = "from", conflicts_with_all = ["pid", "user", "cgroup", "container", "exe"])]
    pub inbound: Option<std::net::IpAddr>,

    /// It is one that passes through this host, from this address.
    #[arg(long, value_name = "SOURCE", group = "from", requires = "interface", conflicts_with_all = ["pid", "user", "cgroup", "container", "exe"])]
    pub passing: Option<std::net::IpAddr>,

    /// By which interface it comes in.
    #[arg(long, value_name = "NAME", requires = "from")]
    pub interface: Option<String>,

    /// Ask the rules of this file as if they were in force, not those of the running daemon.
    #[arg(short, long, value_name = "FILE", conflicts_with = "admin")]
    pub config: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,

    /// Where the daemon is.
    #[command(flatten)]
    pub daemon: DaemonArg,
}

/// Which connection is to be reset.
#[derive(Debug, Args)]
pub struct EndArgs {
    /// Its number, as `conns` lists it.
    pub id: u64,

    /// Where the daemon is.
    #[command(flatten)]
    pub daemon: DaemonArg,
}

/// Which daemon is meant.
#[derive(Debug, Args)]
pub struct DaemonArg {
    /// The daemon's admin socket, `admin` in its section `daemon`; /run/culvert/admin.sock if nothing is said.
    #[arg(long, value_name = "SOCKET")]
    pub admin: Option<PathBuf>,
}

/// What to drain, and for how long.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// An endpoint as the file lists it (also GROUP/ENDPOINT), a `[[reverse]]` rule by its name, or an address and port that one
    /// listens on (also RULE/ADDRESS:PORT).
    pub target: String,

    /// Reset connections that are left after this time, such as 30s or 5m; `drain_timeout` of the daemon if nothing is said.
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<humantime::Duration>,

    /// Return when no connection is left.
    #[arg(long)]
    pub wait: bool,

    /// Where the daemon is.
    #[command(flatten)]
    pub daemon: DaemonArg,
}

/// What to restore.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// What was drained, written in the same way.
    pub target: String,

    /// Where the daemon is.
    #[command(flatten)]
    pub daemon: DaemonArg,
}

/// What to run, and how.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Proxy to go through: `socks5://`, `http://` or `https://` with `USER:PASSWORD@HOST:PORT`, or `direct://`. Repeat it
    /// for a chain, nearest first. Without any, connections are relayed to where they go, and can be watched.
    #[arg(long, value_name = "URL")]
    pub via: Vec<String>,

    /// Rules and upstreams from a file, instead of sending everything through --via.
    #[arg(short, long, value_name = "FILE", conflicts_with = "via")]
    pub config: Option<PathBuf>,

    /// Write a close record per connection to a file, or to standard error with `-`.
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,

    /// As whom, and until when.
    #[command(flatten)]
    pub run_as: RunAsArgs,

    /// The command and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<std::ffi::OsString>,
}

/// As whom a command runs, and when it is over.
#[derive(Debug, Args)]
pub struct RunAsArgs {
    /// Run the command as this user (name or number) instead of the one who called sudo.
    #[arg(
        long,
        value_name = "USER",
        conflicts_with = "root",
        requires = "command"
    )]
    pub user: Option<String>,

    /// Run the command as root, also when called through sudo.
    #[arg(long, requires = "command")]
    pub root: bool,

    /// When the command ends but processes it started go on, wait for them instead of ending them.
    #[arg(long, requires = "command")]
    pub wait: bool,
}

/// Whom to watch, and how to tell.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Only what runs in this cgroup and those below it (path in the hierarchy, or systemd unit).
    #[arg(long, value_name = "CGROUP", conflicts_with = "command")]
    pub cgroup: Option<String>,

    /// Only this process and what descends from it; ends when they have.
    #[arg(long, value_name = "PID", conflicts_with_all = ["cgroup", "command"])]
    pub pid: Option<u32>,

    /// Tell of each TCP connection what the rules of this file would do about it, which are not put in force.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Tell of each TCP connection what the rules do about it that a running daemon has in force.
    #[arg(long, conflicts_with = "config")]
    pub in_force: bool,

    /// Whose rules.
    #[command(flatten)]
    pub daemon: DaemonArg,

    /// Tell of `connect()` on UDP sockets, too.
    #[arg(long)]
    pub udp: bool,

    /// Write one JSON object a line.
    #[arg(long)]
    pub json: bool,

    /// Write to a file, instead of to standard output, or with a command to standard error.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// As whom, and until when.
    #[command(flatten)]
    pub run_as: RunAsArgs,

    /// A command to run and to watch, and its arguments; without any, what runs on the machine is watched.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<std::ffi::OsString>,
}
