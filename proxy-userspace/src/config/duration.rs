//! Durations such as `"30s"`.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    mask::quoted,
    raw::Value,
    report::{Finding, Findings},
};

/// What any timeout may be. Longer ones would overflow clocks and mean "never" anyway.
pub(super) const ANY: RangeInclusive<Duration> = Duration::from_millis(1)..=YEAR;

/// The longest duration: a year, as the format counts it.
pub(super) const YEAR: Duration = Duration::from_hours(8766);

/// Reads a duration within bounds.
pub(super) fn read(
    value: Value<'_>,
    bounds: RangeInclusive<Duration>,
    findings: &mut Findings,
) -> Option<Duration> {
    let Some(text) = value.as_str() else {
        let finding = match value.as_digits() {
            Some(digits) => value.wrong_type(&format!("a unit as well, such as `\"{digits}s\"`")),
            None => value.wrong_type("a duration such as `\"30s\"`"),
        };
        findings.push(finding);
        return None;
    };
    findings.keep(parse(text, value.key(), bounds), &value.span())
}

fn parse(text: &str, key: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, Finding> {
    let duration = humantime::parse_duration(text).map_err(|_| {
        Finding::error(format!("{} is not a duration", quoted(text)))
            .label("expected a number and a unit, such as `500ms`, `30s` or `2m`")
    })?;
    if bounds.contains(&duration) {
        return Ok(duration);
    }
    let (least, most) = bounds.into_inner();
    let (least, most) = (
        humantime::format_duration(least),
        humantime::format_duration(most),
    );
    Err(Finding::error(format!("`{key}` is out of range")).label(format!("from {least} to {most}")))
}
