//! User names and passwords of proxies, from the URL, a file or an environment variable.

use secrecy::{ExposeSecret, SecretString};

use crate::upstream::{Credentials, Scheme};

use super::{
    Origin,
    environment::{Environment, open_to_others},
    mask::{clean, quoted},
    proxy_url::Address,
    raw::{Table, Value},
    report::{Finding, Findings, Span},
    selector,
};

/// Longest user name and longest password of RFC 1929, in bytes.
const LONGEST_SOCKS5: usize = 255;

/// The keys of a table that give credentials to the proxy named beside them.
#[derive(Default)]
pub(super) struct CredentialKeys<'a> {
    username: Option<Value<'a>>,
    password_file: Option<Value<'a>>,
    password_env: Option<Value<'a>>,
}

impl<'a> CredentialKeys<'a> {
    /// Takes the keys out of a table.
    pub(super) fn take(table: &mut Table<'a>) -> Self {
        Self {
            username: table.get("username"),
            password_file: table.get("password_file"),
            password_env: table.get("password_env"),
        }
    }

    /// Those that were given.
    pub(super) fn given(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        [self.username, self.password_file, self.password_env]
            .into_iter()
            .flatten()
    }
}

/// What credentials are read from, besides the URL and the keys.
pub(super) struct Sources<'e> {
    pub(super) environment: &'e dyn Environment,
    pub(super) origin: &'e Origin,
    /// Whether the open configuration file was reported already.
    open_file_reported: bool,
}

impl<'e> Sources<'e> {
    pub(super) fn new(environment: &'e dyn Environment, origin: &'e Origin) -> Self {
        Self {
            environment,
            origin,
            open_file_reported: false,
        }
    }

    /// The credentials for a proxy. Nothing without a finding means that it needs none.
    pub(super) fn credentials(
        &mut self,
        address: &Address,
        url: &Span,
        keys: &CredentialKeys<'_>,
        findings: &mut Findings,
    ) -> Option<Credentials> {
        if address.password.is_some() {
            self.check_configuration(url, findings);
        }
        let user = user(address, url, keys, findings);
        let password = self.password(address, url, keys, findings);
        let place = keys
            .given()
            .last()
            .map_or_else(|| url.clone(), |key| key.span());
        match (user, password) {
            (Some(user), Ok(password)) => {
                let password = password.unwrap_or_default();
                let credentials = Credentials { user, password };
                findings.keep(fit(credentials, address.scheme), &place)
            }
            (None, Ok(Some(_))) => {
                findings.push(
                    Finding::error("there is a password but no user name")
                        .at(&place)
                        .label("add `username`"),
                );
                None
            }
            (_, Err(Reported)) | (None, Ok(None)) => None,
        }
    }

    /// A password in a file is as safe as the file.
    fn check_configuration(&mut self, url: &Span, findings: &mut Findings) {
        let Origin { path, mode } = self.origin;
        if !open_to_others(*mode) || self.open_file_reported {
            return;
        }
        self.open_file_reported = true;
        let path = clean(&path.to_string_lossy());
        findings.push(
            Finding::error(format!(
                "{path} holds a password, but others than its owner may open it (mode {mode:04o})"
            ))
            .at(url)
            .label("the password is here")
            .help(format!(
                "run `chmod 600 {path}`, or move the password to `password_file` or `password_env`"
            )),
        );
    }

    fn password(
        &self,
        address: &Address,
        url: &Span,
        keys: &CredentialKeys<'_>,
        findings: &mut Findings,
    ) -> Result<Option<SecretString>, Reported> {
        let mut sources: Vec<Span> = Vec::new();
        sources.extend(address.password.as_ref().map(|_| url.clone()));
        sources.extend(keys.password_file.map(|value| value.span()));
        sources.extend(keys.password_env.map(|value| value.span()));
        if let [first, .., last] = sources.as_slice() {
            findings.push(
                Finding::error("the password is given more than once")
                    .at(last)
                    .also(first, "first given here")
                    .label("leave one of them out"),
            );
            return Err(Reported);
        }
        let read = match (keys.password_file, keys.password_env) {
            (Some(file), _) => self.read_file(file, findings),
            (_, Some(name)) => self.read_variable(name, findings),
            (None, None) => return Ok(address.password.clone()),
        };
        read.map(Some).ok_or(Reported)
    }

    fn read_file(&self, value: Value<'_>, findings: &mut Findings) -> Option<SecretString> {
        let text = value.text("/etc/culvert/password", findings)?;
        let path = findings.keep(selector::absolute_path(text), &value.span())?;
        let shown = quoted(text);
        let content = self.environment.read(&path).map_err(|source| {
            Finding::error(format!("cannot read {shown}: {source}"))
                .label("expected a file that holds the password and nothing else")
        });
        let content = findings.keep(content, &value.span())?;
        if content.is_open_to_others() {
            findings.push(
                Finding::error(format!(
                    "others than its owner may open {shown} (mode {:04o})",
                    content.mode
                ))
                .at(&value.span())
                .help(format!("run `chmod 600 {}`", clean(text))),
            );
            return None;
        }
        // An editor ends the line; the line end is not part of the password.
        let secret = String::from_utf8(content.bytes).ok();
        let secret = secret
            .as_deref()
            .map(|text| text.trim_end_matches(['\r', '\n']));
        findings.keep(usable(secret, &shown), &value.span())
    }

    fn read_variable(&self, value: Value<'_>, findings: &mut Findings) -> Option<SecretString> {
        let name = value.text("CULVERT_PASSWORD", findings)?;
        let shown = quoted(name);
        let variable = self.environment.variable(name).ok_or_else(|| {
            Finding::error(format!("the environment variable {shown} is not set"))
                .label("set it for the daemon, or use `password_file`")
        });
        let variable = findings.keep(variable, &value.span())?;
        findings.keep(usable(variable.to_str(), &shown), &value.span())
    }
}

/// The password could not be had, and there is a finding about it.
struct Reported;

fn user(
    address: &Address,
    url: &Span,
    keys: &CredentialKeys<'_>,
    findings: &mut Findings,
) -> Option<String> {
    let Some(value) = keys.username else {
        return address.user.clone();
    };
    if address.user.is_some() {
        findings.push(
            Finding::error("the user name is given more than once")
                .at(&value.span())
                .also(url, "first given here")
                .label("leave one of them out"),
        );
    }
    value.text("alice", findings).map(str::to_owned)
}

fn usable(secret: Option<&str>, shown: &str) -> Result<SecretString, Finding> {
    match secret {
        None => Err(Finding::error(format!("{shown} is not UTF-8"))),
        Some("") => Err(Finding::error(format!("{shown} is empty")).label("expected a password")),
        Some(secret) => Ok(SecretString::from(secret)),
    }
}

/// The credentials that a URL itself holds.
pub(super) fn of_url(address: &Address) -> Result<Option<Credentials>, Finding> {
    let Some(user) = address.user.clone() else {
        return Ok(None);
    };
    let password = address.password.clone().unwrap_or_default();
    fit(Credentials { user, password }, address.scheme).map(Some)
}

/// What the protocol can carry.
fn fit(credentials: Credentials, scheme: Scheme) -> Result<Credentials, Finding> {
    let user = credentials.user.as_str();
    let password = credentials.password.expose_secret();
    let fits = |text: &str| (1..=LONGEST_SOCKS5).contains(&text.len());
    match scheme {
        Scheme::Socks5 if !fits(user) || !fits(password) => Err(Finding::error(
            "SOCKS5 needs a user name and a password of 1 to 255 bytes each",
        )
        .label(if password.is_empty() {
            "there is no password"
        } else {
            "one of them is too long or empty"
        })),
        Scheme::Http | Scheme::Https if user.contains(':') => {
            Err(Finding::error("a user name for HTTP cannot hold a `:`")
                .label("it would end there (RFC 7617)"))
        }
        _ => Ok(credentials),
    }
}
