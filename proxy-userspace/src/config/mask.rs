//! Hides secrets in the text of a configuration before any of it is shown, and quotes values safely.
//!
//! A mask is as long as what it hides: the columns of a report stay true, at the price of telling a length to whoever
//! may read the report. Doubtful text is masked: showing too little costs nothing.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::report::Span;

/// Longest part of a value that a message repeats, in characters.
const LONGEST: usize = 80;

/// The text of a file that parsed as TOML, with its secrets masked.
pub(super) fn document(text: &str, root: &DeTable<'_>) -> String {
    let mut secrets = Vec::new();
    in_table(text, root, false, &mut secrets);
    masked(text, &secrets)
}

/// The text of a file that did not parse, with everything masked that may be a secret.
pub(super) fn broken(text: &str) -> String {
    let mut secrets = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        secrets.extend(credentials(line, start));
        if let Some((key, value)) = line.split_once('=').filter(|(key, _)| is_secret(key)) {
            let blank = value.len() - value.trim_start().len();
            let from = key.len() + 1 + blank;
            secrets.push(start + from..start + line.trim_end().len().max(from));
        }
        start += line.len();
    }
    masked(text, &secrets)
}

/// A value of the file for a message, between backquotes.
pub(super) fn quoted(value: &str) -> String {
    format!("`{}`", clean(value))
}

/// A value of the file for a message: without secrets, line ends or control characters, and not too long.
pub(super) fn clean(value: &str) -> String {
    let value = masked(value, credentials(value, 0).as_slice());
    let mut shown = String::new();
    for (count, letter) in value.chars().enumerate() {
        match letter {
            _ if count == LONGEST => {
                shown.push_str("...");
                break;
            }
            '"' | '\'' | '\\' => shown.push(letter),
            _ => shown.extend(letter.escape_debug()),
        }
    }
    shown
}

fn in_table(text: &str, table: &DeTable<'_>, secret: bool, secrets: &mut Vec<Span>) {
    for (key, value) in table {
        let secret = secret || is_secret(key.get_ref());
        in_value(text, value, secret, secrets);
    }
}

fn in_value(text: &str, value: &Spanned<DeValue<'_>>, secret: bool, secrets: &mut Vec<Span>) {
    match value.get_ref() {
        DeValue::Table(table) => in_table(text, table, secret, secrets),
        DeValue::Array(items) => {
            for item in items {
                in_value(text, item, secret, secrets);
            }
        }
        DeValue::String(parsed) => {
            let span = value.span();
            let raw = text.get(span.clone()).unwrap_or_default();
            if secret || credentials(parsed, 0).is_some() {
                // Escapes may hide the form of a URL in the raw text: then all of it goes.
                let whole = span.start + 1..span.end.saturating_sub(1);
                let part = credentials(raw, span.start).filter(|_| !secret && !raw.contains('\\'));
                secrets.push(part.unwrap_or(whole));
            }
        }
        _ if secret => secrets.push(value.span()),
        _ => {}
    }
}

/// The password in `scheme://user:password@host`, also where the scheme is missing.
fn credentials(text: &str, offset: usize) -> Option<Span> {
    let from = text
        .find("://")
        .filter(|at| ends_in_scheme(text.get(..*at).unwrap_or_default()))
        .map_or(0, |at| at + "://".len());
    let colon = from + text.get(from..)?.find(':')?;
    let at = text.rfind('@').filter(|at| *at > colon)?;
    Some(offset + colon + 1..offset + at)
}

fn ends_in_scheme(text: &str) -> bool {
    let before = text
        .trim_end_matches(|letter: char| letter.is_ascii_alphanumeric() || "+-.".contains(letter));
    before.is_empty() || before.ends_with(['"', '\'', ' ', '\t', '='])
}

fn is_secret(key: &str) -> bool {
    let key = key.trim().to_ascii_lowercase();
    let names_one = ["password", "passwd", "secret", "token"]
        .iter()
        .any(|word| key.contains(word));
    // These say where the secret is.
    names_one && !key.ends_with("_file") && !key.ends_with("_env")
}

fn masked(text: &str, secrets: &[Span]) -> String {
    let mut secrets = secrets.to_vec();
    secrets.sort_by_key(|secret| secret.start);
    let mut shown = String::with_capacity(text.len());
    let mut done = 0;
    for secret in secrets {
        let start = secret.start.max(done);
        shown.push_str(text.get(done..start).unwrap_or_default());
        done = start.max(secret.end);
        for letter in text.get(start..done).unwrap_or_default().chars() {
            match letter {
                // Lines stay lines.
                '\n' | '\r' => shown.push(letter),
                _ => shown.extend(std::iter::repeat_n('*', letter.len_utf8())),
            }
        }
    }
    shown.push_str(text.get(done..).unwrap_or_default());
    shown
}
