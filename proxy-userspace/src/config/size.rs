//! Numbers of bytes such as `"64KiB"`.

use std::ops::RangeInclusive;

use super::{
    mask::quoted,
    raw::Value,
    report::{Finding, Findings},
};

/// Largest unit first, so that a size is written with the one that suits it.
const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Reads a size within bounds.
pub(super) fn read(
    value: Value<'_>,
    bounds: RangeInclusive<u64>,
    findings: &mut Findings,
) -> Option<u64> {
    let Some(text) = value.as_str() else {
        let finding = match value.as_digits() {
            Some(digits) => value.wrong_type(&format!("a unit as well, such as `\"{digits}B\"`")),
            None => value.wrong_type("a size such as `\"64KiB\"`"),
        };
        findings.push(finding);
        return None;
    };
    findings.keep(parse(text, value.key(), bounds), &value.span())
}

fn parse(text: &str, key: &str, bounds: RangeInclusive<u64>) -> Result<u64, Finding> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit = text.get(digits.len()..).unwrap_or_default().trim_start();
    let unit = UNITS.iter().find(|(name, _)| *name == unit);
    // Empty and overlong numbers do not parse either, but only the latter are numbers.
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let Some((_, factor)) = unit.filter(|_| is_number) else {
        return Err(Finding::error(format!("{} is not a size", quoted(text)))
            .label("expected a whole number and a unit: `B`, `KiB`, `MiB`, `GiB` or `TiB`"));
    };
    let size = digits
        .parse()
        .ok()
        .and_then(|number: u64| number.checked_mul(*factor));
    size.filter(|size| bounds.contains(size)).ok_or_else(|| {
        let (least, most) = (write(*bounds.start()), write(*bounds.end()));
        Finding::error(format!("`{key}` is out of range")).label(format!("from {least} to {most}"))
    })
}

/// A size in the largest unit of which it is a whole number.
pub(super) fn write(size: u64) -> String {
    let unit = UNITS
        .iter()
        .find(|(_, factor)| size >= *factor && size.is_multiple_of(*factor));
    match unit {
        Some((name, factor)) => format!("{}{name}", size / factor),
        None => format!("{size}B"),
    }
}
