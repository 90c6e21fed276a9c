//! The keys `health` and `slow_start` of a group.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    group::{
        Check,
        health::{HealthRules, Passive},
    },
    upstream::{Host, HttpProbe, Probe, TlsProbe},
};

use super::{
    credentials::Sources,
    duration,
    mask::quoted,
    proxy_url,
    raw::{Table, Value},
    report::{Finding, Findings},
    upstream,
};

/// Time between two checks where nothing is said.
const INTERVAL: Duration = Duration::from_secs(2);
/// Limit for a check where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Shorter intervals would be load and no checks.
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(50)..=duration::YEAR;
/// Most checks or connections in a row.
const MOST_IN_A_ROW: u32 = 1000;
/// The statuses that are healthy where nothing is said.
const EXPECTED: RangeInclusive<u16> = 200..=399;

/// Reads both; nothing where there is a finding about one.
pub(super) fn read(
    table: &mut Table<'_>,
    slow_start: Option<Value<'_>>,
    sources: &Sources<'_>,
    findings: &mut Findings,
) -> Option<(HealthRules, Option<Check>)> {
    let slow_start = match slow_start {
        None => Some(Duration::ZERO),
        Some(value) => match value.as_str() {
            Some("off") => Some(Duration::ZERO),
            _ => duration::read(value, duration::ANY, findings),
        },
    };
    let (rules, check) = match table.get("health") {
        None => (HealthRules::default(), None),
        Some(value) => health(value, sources, findings)?,
    };
    let rules = HealthRules {
        slow_start: slow_start?,
        ..rules
    };
    Some((rules, check))
}

fn health(
    value: Value<'_>,
    sources: &Sources<'_>,
    findings: &mut Findings,
) -> Option<(HealthRules, Option<Check>)> {
    let wanted = "a table such as `{ tcp = true, interval = \"2s\" }`";
    let mut table = value.table("`health`", wanted, findings)?;
    let default = HealthRules::default();
    let probe = probe(&mut table, sources, findings);
    let is_checked = !matches!(probe, Some(None));
    let mut of_checks = OfChecks {
        table: &mut table,
        is_checked,
    };
    let interval = of_checks.duration("interval", INTERVAL, INTERVALS, findings);
    let timeout = of_checks.duration("timeout", TIMEOUT, duration::ANY, findings);
    let rise = of_checks.number("rise", default.rise, findings);
    let fall = of_checks.number("fall", default.fall, findings);
    let passive = match table.get("passive") {
        None => Some(default.passive),
        Some(value) if value.as_str() == Some("off") => Some(None),
        Some(value) => passive(value, findings).map(Some),
    };
    let panic = match table.get("panic") {
        None => Some(default.panic),
        Some(value) => percentage(value, findings),
    };
    table.finish(findings);
    let rules = HealthRules {
        rise: rise?,
        fall: fall?,
        passive: passive?,
        panic: panic?,
        slow_start: Duration::ZERO,
    };
    let check = Check {
        interval: interval?,
        timeout: timeout?,
        probe: Probe::default(),
    };
    let check = probe?.map(|probe| Check { probe, ..check });
    Some((rules, check))
}

/// Keys that mean nothing where nothing is checked.
struct OfChecks<'t, 'a> {
    table: &'t mut Table<'a>,
    is_checked: bool,
}

impl<'a> OfChecks<'_, 'a> {
    fn get(&mut self, key: &'static str, findings: &mut Findings) -> Option<Value<'a>> {
        let value = self.table.get(key)?;
        if !self.is_checked {
            findings.push(
                Finding::error(format!("`{key}` is for checks, and there are none"))
                    .at(&value.span())
                    .label("add `tcp = true`, `tls = true` or `http = \"/PATH\"`, or leave it out"),
            );
        }
        Some(value)
    }

    fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        bounds: RangeInclusive<Duration>,
        findings: &mut Findings,
    ) -> Option<Duration> {
        match self.get(key, findings) {
            None => Some(default),
            Some(value) => duration::read(value, bounds, findings),
        }
    }

    fn number(&mut self, key: &'static str, default: u32, findings: &mut Findings) -> Option<u32> {
        match self.get(key, findings) {
            None => Some(default),
            Some(value) => value.number(1..=MOST_IN_A_ROW, findings),
        }
    }
}

/// What is asked of endpoints; nothing inside where they are not checked.
#[expect(
    clippy::option_option,
    reason = "not readable, and readable as no check, are two things"
)]
fn probe(
    table: &mut Table<'_>,
    sources: &Sources<'_>,
    findings: &mut Findings,
) -> Option<Option<Probe>> {
    let tcp = match table.get("tcp") {
        None => Some(false),
        Some(value) => value.boolean(findings),
    };
    let tls = match table.get("tls") {
        None => Some(None),
        Some(value) => tls(value, findings),
    };
    let http = match table.get("http") {
        None => Some(None),
        Some(value) => http_path(value, findings).map(Some),
    };
    let (has_tls, has_http) = (!matches!(tls, Some(None)), !matches!(http, Some(None)));
    let ca_file = only_with("tls", has_tls, table.get("ca_file"), findings)
        .map(|value| upstream::trusted(value, sources, findings));
    let host =
        only_with("http", has_http, table.get("host"), findings).map(|value| host(value, findings));
    let status = only_with("http", has_http, table.get("status"), findings)
        .map(|value| statuses(value, findings));
    let tls = match (tls?, ca_file) {
        (Some(_), Some(None)) => return None,
        (Some(name), ca_file) => Some(TlsProbe {
            name,
            ca_file: ca_file.flatten(),
        }),
        (None, _) => None,
    };
    let http = match (http?, host, status) {
        (_, Some(None), _) | (_, _, Some(None)) => return None,
        (Some(path), host, status) => Some(HttpProbe {
            path,
            host: host.flatten(),
            expected: status.flatten().unwrap_or_else(|| vec![EXPECTED]),
        }),
        (None, ..) => None,
    };
    let is_checked = tcp? || tls.is_some() || http.is_some();
    Some(is_checked.then_some(Probe { tls, http }))
}

/// A key that means nothing without another one.
fn only_with<'a>(
    other: &str,
    is_there: bool,
    value: Option<Value<'a>>,
    findings: &mut Findings,
) -> Option<Value<'a>> {
    let value = value?;
    if is_there {
        return Some(value);
    }
    findings.push(
        Finding::error(format!("`{}` is for checks by `{other}`", value.key()))
            .at(&value.span())
            .label(format!("there is no `{other}` beside it")),
    );
    None
}

/// `true`, or the name that certificates must be for.
#[expect(
    clippy::option_option,
    reason = "TLS by the endpoint's own name is TLS all the same"
)]
fn tls(value: Value<'_>, findings: &mut Findings) -> Option<Option<Option<Host>>> {
    let Some(text) = value.as_str() else {
        return Some(value.boolean(findings)?.then_some(None));
    };
    let name = proxy_url::host_name(text).map_err(|why| {
        Finding::error(format!("{} is no name for `tls`: {why}", quoted(text)))
            .label("expected the name in the certificate, or `true`")
    });
    let name = findings.keep(name, &value.span())?;
    Some(Some(Some(Host::Name(name))))
}

fn http_path(value: Value<'_>, findings: &mut Findings) -> Option<String> {
    let text = value.text("/healthz", findings)?;
    let plain = |byte: u8| byte.is_ascii_graphic();
    let path = if text.starts_with('/') && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(Finding::error(format!("{} is no path", quoted(text)))
            .label("expected a path such as `/healthz`, percent-encoded"))
    };
    findings.keep(path, &value.span())
}

fn host(value: Value<'_>, findings: &mut Findings) -> Option<String> {
    let text = value.text("web.internal", findings)?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let host = if !text.is_empty() && text.bytes().all(good) {
        Ok(text.to_owned())
    } else {
        Err(Finding::error(format!("{} is no host", quoted(text)))
            .label("expected what belongs into the `Host` field, such as `web.internal`"))
    };
    findings.keep(host, &value.span())
}

/// Statuses and ranges of them.
fn statuses(value: Value<'_>, findings: &mut Findings) -> Option<Vec<RangeInclusive<u16>>> {
    let mut all = Some(Vec::new());
    for value in value.one_or_many(findings) {
        let text = match (value.as_digits(), value.as_str()) {
            (Some(digits), _) => digits,
            (None, Some(text)) => text.to_owned(),
            (None, None) => {
                findings.push(value.wrong_type("a status such as `200` or `\"200-299\"`"));
                all = None;
                continue;
            }
        };
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        let range = match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if 100 <= first && first <= last && last <= 999 => {
                Ok(first..=last)
            }
            _ => Err(Finding::error(format!("{} is no status", quoted(&text)))
                .label("expected a status such as `200` or `\"200-299\"`")),
        };
        match (findings.keep(range, &value.span()), &mut all) {
            (Some(range), Some(all)) => all.push(range),
            _ => all = None,
        }
    }
    all.filter(|all| !all.is_empty())
}

fn passive(value: Value<'_>, findings: &mut Findings) -> Option<Passive> {
    let default = Passive::default();
    let wanted = "`\"off\"`, or a table such as `{ failures = 5, eject = \"10s\" }`";
    let mut table = value.table("`passive`", wanted, findings)?;
    let failures = match table.get("failures") {
        None => Some(default.failures),
        Some(value) => value.number(1..=MOST_IN_A_ROW, findings),
    };
    let eject = match table.get("eject") {
        None => Some(default.eject),
        Some(value) => duration::read(value, duration::ANY, findings),
    };
    table.finish(findings);
    Some(Passive {
        failures: failures?,
        eject: eject?,
    })
}

fn percentage(value: Value<'_>, findings: &mut Findings) -> Option<u32> {
    let text = value.text("50%", findings)?;
    let number = text
        .strip_suffix('%')
        .and_then(|digits| digits.parse().ok());
    let number = number.filter(|number| *number <= 100).ok_or_else(|| {
        Finding::error(format!("{} is no percentage", quoted(text)))
            .label("expected `\"0%\"` to `\"100%\"`")
    });
    findings.keep(number, &value.span())
}
