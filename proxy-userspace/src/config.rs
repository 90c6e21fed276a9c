//! The configuration: one TOML file into the validated types of the modules below.
//!
//! The only module that knows TOML, and the last to see a name, a path or a URL as text that may be wrong. It reports
//! everything that is wrong at once, each with its line and with what would be right. It knows nothing of the kernel
//! and touches the system through [`Environment`] alone.
//!
//! Text becomes tables (`raw`), tables become sections (`daemon`, `upstream`, `forward`, `reverse`, `gateway`, `router`), and what only shows when
//! all of them are there is checked last (`reach`). Findings on the way are gathered in `report`.

mod accounts;
mod credentials;
mod daemon;
mod duration;
mod environment;
mod forward;
mod gateway;
mod group;
mod health;
mod intervals;
mod mask;
mod names;
mod proxy_url;
mod raw;
mod reach;
mod report;
mod reverse;
mod router;
mod rule;
mod selector;
mod size;
mod source;
mod summary;
mod upstream;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::de::DeTable;

use crate::{
    balance::Method,
    group::SettingsByName,
    rule::{Gateway, PathChoice, Reverse, ReverseVia, Roles, Router, Rule, Via},
    upstream::Upstream,
};

use self::{
    accounts::Accounts,
    credentials::Sources,
    forward::{PlacedRule, References},
    gateway::PlacedGateway,
    raw::{Table, Value},
    report::{Finding, Findings, Span},
    reverse::PlacedReverse,
    rule::warn_unusable,
};

pub use self::{
    daemon::{AccessLog, Daemon, LogFormat, LogTarget},
    environment::{Environment, FileContent, System},
    group::endpoint,
    report::Report,
    reverse::listens_of,
    summary::{
        called, goes_to, passes, selects, summary, takes, wanted, wanted_of_arrivals,
        wanted_of_transits, way,
    },
};

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What concerns the daemon as a whole.
    pub daemon: Daemon,
    /// Every upstream by its name. All that rules name are here.
    pub upstreams: BTreeMap<Arc<str>, Arc<Upstream>>,
    /// Those of them that are groups.
    pub groups: SettingsByName,
    /// The rules in the order of the file, which decides.
    pub forward: Vec<Rule>,
    /// The rules for what arrives, in the order of the file.
    pub reverse: Vec<Reverse>,
    /// The rules for what passes through, in the order of the file.
    pub gateway: Vec<Gateway>,
    /// What becomes of the rest of what passes through.
    pub router: Router,
}

impl Config {
    /// The rules.
    #[must_use]
    pub fn roles(&self) -> Roles<'_> {
        Roles {
            forward: &self.forward,
            reverse: &self.reverse,
            gateway: &self.gateway,
        }
    }
}

/// A configuration that can be used, and what looks wrong in it nevertheless.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Each warning as text of several lines, with the line of the file it is about.
    pub warnings: Vec<String>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no valid configuration. Displays every error with its line.
    #[error("{0}")]
    Invalid(Report),
}

/// Why a list of proxy URLs is no upstream. Never repeats a URL, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("proxy URL {position}: {reason}")]
pub struct UrlError {
    /// Which URL, from 1.
    pub position: usize,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file, as reports name it.
    pub path: PathBuf,
    /// Its permission bits: a file that others may read must not hold a password.
    pub mode: u32,
}

/// Reads a configuration file.
///
/// # Errors
/// When the file cannot be read, or is no valid configuration.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let content = System.read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let origin = Origin {
        path: path.to_owned(),
        mode: content.mode,
    };
    match std::str::from_utf8(&content.bytes) {
        Ok(text) => parse(text, &origin, &System),
        Err(broken) => Err(not_utf8(&content.bytes, broken.valid_up_to(), &origin)),
    }
}

/// Reads the text of a configuration. What it refers to is looked up in `environment`.
///
/// # Errors
/// When the text is no valid configuration: [`ConfigError::Invalid`] with everything that is wrong.
pub fn parse(
    text: &str,
    origin: &Origin,
    environment: &dyn Environment,
) -> Result<Loaded, ConfigError> {
    let mut findings = Findings::default();
    let (root, broken) = DeTable::parse_recoverable(text);
    if !broken.is_empty() {
        for error in broken {
            findings.push(syntax(&error));
        }
        let report = findings.errors(&origin.path, mask::broken(text));
        return Err(ConfigError::Invalid(report));
    }
    let config = document(root.get_ref(), origin, environment, &mut findings);
    let shown = mask::document(text, root.get_ref());
    if findings.has_errors() {
        return Err(ConfigError::Invalid(findings.errors(&origin.path, shown)));
    }
    Ok(Loaded {
        config,
        warnings: findings.warnings(&origin.path, shown),
    })
}

/// An upstream of proxy URLs from the command line, nearest proxy first. No URL means no proxy.
///
/// # Errors
/// When a URL is none of a proxy, or the chain cannot be.
pub fn upstream_from_urls(urls: &[String]) -> Result<Upstream, UrlError> {
    upstream::from_urls("via", urls).map_err(|(at, finding)| UrlError {
        position: at + 1,
        reason: finding.sentence(),
    })
}

/// Reads all sections; only without errors among the findings is the result what the author wrote.
fn document(
    root: &DeTable<'_>,
    origin: &Origin,
    environment: &dyn Environment,
    findings: &mut Findings,
) -> Config {
    let mut table = Table::new(root, 0..0, "the configuration");
    let daemon = match table.get("daemon") {
        None => Daemon::defaults(environment),
        Some(value) => Daemon::read(value, environment, findings),
    };
    let declared = declared(table.get("upstream"), findings);
    let mut sources = Sources::new(environment, origin);
    let mut upstreams = BTreeMap::new();
    let mut groups = BTreeMap::new();
    for (name, span, value) in &declared {
        let read = upstream::read(name, span, *value, &daemon, &mut sources, findings);
        let Some((upstream, group)) = read else {
            continue;
        };
        groups.extend(group.map(|group| (Arc::clone(&upstream.name), Arc::new(group))));
        upstreams.insert(Arc::clone(&upstream.name), Arc::new(upstream));
    }
    let names: Vec<&str> = declared.iter().map(|(name, ..)| *name).collect();
    let accounts = Accounts::new(environment);
    let references = References {
        upstreams: &names,
        accounts: &accounts,
    };
    let mut rules = match table.get("forward") {
        None => Vec::new(),
        Some(value) => forward::read(value, &references, findings),
    };
    let arrivals = match table.get("reverse") {
        None => Vec::new(),
        Some(value) => reverse::read(value, &names, &daemon, findings),
    };
    let transits = match table.get("gateway") {
        None => Vec::new(),
        Some(value) => gateway::read(value, &names, &daemon, findings),
    };
    let router = match table.get("router") {
        None => Router::default(),
        Some(value) => router::read(value, findings),
    };
    table.finish(findings);
    if rules.is_empty() && arrivals.is_empty() && transits.is_empty() && !router.is_on() {
        findings.push(
            Finding::warning("there is no rule: every connection goes direct")
                .help("add a `[[forward]]`, a `[[reverse]]` or a `[[gateway]]` section"),
        );
    }
    reach::check(&rules, &daemon.cgroup, findings);
    reach::arrivals::check(&arrivals, findings);
    check_use(&declared, &rules, &arrivals, &transits, findings);
    check_hashes(&declared, &rules, &groups, findings);
    check_rewrites(&mut rules, &upstreams, &groups, findings);
    source::check(&rules, &arrivals, &transits, &upstreams, &groups, findings);
    Config {
        daemon,
        upstreams,
        groups,
        forward: rules.into_iter().map(|placed| placed.rule).collect(),
        reverse: arrivals.into_iter().map(|placed| placed.rule).collect(),
        gateway: transits.into_iter().map(|placed| placed.rule).collect(),
        router,
    }
}

/// The upstreams that the file has sections for.
fn declared<'a>(
    upstream: Option<Value<'a>>,
    findings: &mut Findings,
) -> Vec<(&'a str, Span, Value<'a>)> {
    let wanted = "sections such as `[upstream.NAME]`";
    let table = upstream.and_then(|value| value.table("`[upstream]`", wanted, findings));
    table.iter().flat_map(Table::entries).collect()
}

fn check_use(
    declared: &[(&str, Span, Value<'_>)],
    rules: &[PlacedRule],
    arrivals: &[PlacedReverse],
    transits: &[PlacedGateway],
    findings: &mut Findings,
) {
    for (name, span, _) in declared {
        let used = |placed: &PlacedRule| matches!(&placed.rule.via, Via::Upstream(via) if via.as_ref() == *name);
        let mut others = arrivals
            .iter()
            .flat_map(|placed| placed.rule.vias())
            .chain(transits.iter().flat_map(|placed| placed.rule.vias()));
        let mut used_by_others =
            || others.any(|via| matches!(via, ReverseVia::Upstream(via) if via.as_ref() == *name));
        if !rules.iter().any(used) && !used_by_others() {
            findings.push(
                Finding::warning(format!("upstream `{name}` is never used"))
                    .at(span)
                    .label("no rule has it as its `via`"),
            );
        }
    }
}

/// All connections of forward rules come from this host.
fn check_hashes(
    declared: &[(&str, Span, Value<'_>)],
    rules: &[PlacedRule],
    groups: &SettingsByName,
    findings: &mut Findings,
) {
    for placed in rules {
        let Via::Upstream(via) = &placed.rule.via else {
            continue;
        };
        let upstream = declared.iter().find(|(name, ..)| *name == via.as_ref());
        if groups
            .get(via)
            .is_some_and(|group| group.method == Method::SourceHash)
            && let Some((name, span, _)) = upstream
        {
            findings.push(
                Finding::warning(format!("all connections to `{name}` go to one endpoint"))
                    .at(span)
                    .also(&placed.name, "this rule's connections come from this host")
                    .label("`source-hash` chooses by the source address")
                    .help("`balance = \"maglev\"` chooses by the connection"),
            );
        }
    }
}

/// Rules whose endpoints the hook on `connect()` is to choose, or may, of which not all groups let it.
fn check_rewrites(
    rules: &mut [PlacedRule],
    upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
    groups: &SettingsByName,
    findings: &mut Findings,
) {
    for placed in rules {
        let Via::Upstream(via) = &placed.rule.via else {
            continue;
        };
        let obstacle = match groups.get(via) {
            Some(group) => group.needs_relay(),
            // One that is not there has errors of its own.
            None => upstreams
                .contains_key(via)
                .then_some("it is no group: only its endpoints can be reached without the relay"),
        };
        if let Some(place) = &placed.allow_rewrite {
            match obstacle {
                None => {
                    placed.rule.rewrite = true;
                    // The relay is the exception then.
                    placed.rule.path = PathChoice::Auto;
                }
                Some(why) => warn_unusable("allow_rewrite", place, why, findings),
            }
        } else if let (true, Some(place), Some(why)) = (placed.rule.rewrite, &placed.path, obstacle)
        {
            findings.push(
                Finding::error(format!("`path = \"rewrite\"` cannot be had with `{via}`"))
                    .at(place)
                    .label(why)
                    .help("leave out `path`: connections are relayed then"),
            );
        }
    }
}

fn syntax(error: &toml::de::Error) -> Finding {
    let message = error.message();
    let finding = Finding::error("invalid TOML")
        .at(&error.span().unwrap_or_default())
        .label(message);
    // What a prefix or a duration without quotes is taken for.
    let unquoted = ["float", "integer", "date", "time", "quoted"];
    if unquoted.iter().any(|taken_for| message.contains(taken_for)) {
        return finding.help(
            "everything but numbers, `true` and `false` needs quotes: `\"10.0.0.0/8\"`, `\"30s\"`",
        );
    }
    finding
}

fn not_utf8(bytes: &[u8], at: usize, origin: &Origin) -> ConfigError {
    let text = String::from_utf8_lossy(bytes);
    let mut findings = Findings::default();
    // Up to here every byte of the text is one of the file.
    findings.push(
        Finding::error("the file is not UTF-8")
            .at(&(at..at + 1))
            .label("this byte is not"),
    );
    ConfigError::Invalid(findings.errors(&origin.path, mask::broken(&text)))
}
