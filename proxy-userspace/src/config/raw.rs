//! The file as TOML sees it: tables and values that know where they stand and report what they are not.
//!
//! Walked by hand rather than deserialised, so that one run finds every unknown key and every wrong type, and
//! says for each what would be right. Never leaves `config`.

use std::ops::RangeInclusive;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    mask::quoted,
    report::{Finding, Findings, Span},
};

/// Longest name of a rule or an upstream, in bytes.
pub(super) const LONGEST_NAME: usize = 64;

/// A table whose keys are asked for by name; [`Table::finish`] reports those nobody asked for.
pub(super) struct Table<'a> {
    entries: &'a DeTable<'a>,
    /// Where the table is announced: its header, or all of an inline table.
    pub(super) span: Span,
    /// How messages call it.
    place: String,
    asked: Vec<&'static str>,
}

impl<'a> Table<'a> {
    pub(super) fn new(entries: &'a DeTable<'a>, span: Span, place: impl Into<String>) -> Self {
        Self {
            entries,
            span,
            place: place.into(),
            asked: Vec::new(),
        }
    }

    /// The value of a key, if it is there.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Value<'a>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        let inner = self.entries.get(key)?;
        Some(Value { inner, key })
    }

    /// The value of a key that must be there. `example` is the line that is missing.
    pub(super) fn require(
        &mut self,
        key: &'static str,
        example: &str,
        findings: &mut Findings,
    ) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            findings.push(
                Finding::error(format!("{} has no `{key}`", self.place))
                    .at(&self.span)
                    .label(format!("add `{example}`")),
            );
        }
        value
    }

    /// Every key with its value, for tables whose keys are names.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, Span, Value<'a>)> + use<'a> {
        self.entries.iter().map(|(key, inner)| {
            let name = key.get_ref().as_ref();
            (name, key.span(), Value { inner, key: name })
        })
    }

    /// Reports the keys that mean nothing here.
    pub(super) fn finish(self, findings: &mut Findings) {
        for (key, span, _) in self.entries() {
            if self.asked.contains(&key) {
                continue;
            }
            let finding = Finding::error(format!("unknown key {} in {}", quoted(key), self.place));
            let finding = match closest(key, self.asked.iter().copied()) {
                Some(known) => finding.label(format!("did you mean `{known}`?")),
                None => finding,
            };
            let known = listed(&self.asked);
            findings.push(finding.at(&span).help(format!("known here: {known}")));
        }
    }
}

/// A value and the key it stands at.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    inner: &'a Spanned<DeValue<'a>>,
    key: &'a str,
}

impl<'a> Value<'a> {
    pub(super) fn span(&self) -> Span {
        self.inner.span()
    }

    pub(super) fn key(&self) -> &'a str {
        self.key
    }

    /// A string, without a finding where it is something else.
    pub(super) fn as_str(&self) -> Option<&'a str> {
        self.inner.get_ref().as_str()
    }

    /// The digits of an integer, without a finding where it is something else.
    pub(super) fn as_digits(&self) -> Option<String> {
        let integer = self.inner.get_ref().as_integer()?;
        let digits = i128::from_str_radix(integer.as_str(), integer.radix());
        // Beyond 128 bits the text itself is as good for saying that it is too large.
        Some(digits.map_or_else(|_| integer.as_str().to_owned(), |value| value.to_string()))
    }

    /// A string; `example` shows one.
    pub(super) fn text(&self, example: &str, findings: &mut Findings) -> Option<&'a str> {
        let text = self.as_str();
        if text.is_none() {
            findings.push(self.wrong_type(&format!("a string such as `\"{example}\"`")));
        }
        text
    }

    /// A whole number within bounds.
    pub(super) fn number(
        &self,
        bounds: RangeInclusive<u32>,
        findings: &mut Findings,
    ) -> Option<u32> {
        let Some(digits) = self.as_digits() else {
            findings.push(self.wrong_type("a whole number"));
            return None;
        };
        let number = digits.parse().ok().filter(|number| bounds.contains(number));
        if number.is_none() {
            let (least, most) = bounds.into_inner();
            findings.push(
                Finding::error(format!("`{}` is out of range", self.key))
                    .at(&self.span())
                    .label(format!("from {least} to {most}")),
            );
        }
        number
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, findings: &mut Findings) -> Option<bool> {
        let boolean = self.inner.get_ref().as_bool();
        if boolean.is_none() {
            findings.push(self.wrong_type("`true` or `false`"));
        }
        boolean
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &self,
        choices: &[(&str, T)],
        findings: &mut Findings,
    ) -> Option<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let Some(text) = self.as_str() else {
            findings.push(self.wrong_type(&listed(&words)));
            return None;
        };
        let choice = choices.iter().find(|(word, _)| *word == text);
        if choice.is_none() {
            findings.push(unknown_word(self, text, &words));
        }
        choice.map(|(_, meaning)| *meaning)
    }

    /// A table; `place` is how messages call it and `example` what would be right.
    pub(super) fn table(
        &self,
        place: impl Into<String>,
        example: &str,
        findings: &mut Findings,
    ) -> Option<Table<'a>> {
        let DeValue::Table(entries) = self.inner.get_ref() else {
            findings.push(self.wrong_type(example));
            return None;
        };
        Some(Table::new(entries, self.span(), place))
    }

    /// The elements of an array, or the value itself: whatever may be a list may be one value.
    pub(super) fn one_or_many(&self, findings: &mut Findings) -> Vec<Value<'a>> {
        let DeValue::Array(items) = self.inner.get_ref() else {
            return vec![*self];
        };
        if items.is_empty() {
            findings.push(
                Finding::error(format!("`{}` is an empty list", self.key))
                    .at(&self.span())
                    .label("give a value, or leave the key out"),
            );
        }
        self.elements()
    }

    /// The elements of an array of tables (`[[key]]`).
    pub(super) fn tables(&self, findings: &mut Findings) -> Vec<Value<'a>> {
        if !self.inner.get_ref().is_array() {
            let key = self.key;
            findings.push(self.wrong_type(&format!("a list of tables: write `[[{key}]]`")));
        }
        self.elements()
    }

    fn elements(&self) -> Vec<Value<'a>> {
        let items = self.inner.get_ref().as_array();
        let key = self.key;
        items
            .into_iter()
            .flat_map(|items| items.iter())
            .map(|inner| Value { inner, key })
            .collect()
    }

    /// The finding for a value of the wrong type.
    pub(super) fn wrong_type(&self, wanted: &str) -> Finding {
        let found = match self.inner.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        Finding::error(format!("`{}` cannot be {found}", self.key))
            .at(&self.span())
            .label(format!("expected {wanted}"))
    }
}

fn unknown_word(value: &Value<'_>, text: &str, words: &[&str]) -> Finding {
    let finding = Finding::error(format!("{} is no choice for `{}`", quoted(text), value.key))
        .at(&value.span());
    match closest(text, words.iter().copied()) {
        Some(word) => finding.label(format!("did you mean `{word}`?")),
        None => finding.label(format!("expected {}", listed(words))),
    }
}

/// The known word that was probably meant: one that the word begins or is the beginning of, or a slip away.
pub(super) fn closest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    // A slip in each three letters, as rustc does.
    let slips = word.len().max(3) / 3;
    let distance = |candidate: &str| {
        let shorter = word.len().min(candidate.len());
        let begins = word.starts_with(candidate) || candidate.starts_with(word);
        if begins && shorter >= 4 {
            return 0;
        }
        strsim::osa_distance(word, candidate)
    };
    known
        .into_iter()
        // Keeps hostile input cheap: the distance is quadratic.
        .filter(|candidate| word.len().max(candidate.len()) <= LONGEST_NAME)
        .map(|candidate| (distance(candidate), candidate))
        .filter(|(distance, _)| *distance <= slips)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Words for a message: "`a`, `b` or `c`".
pub(super) fn listed(words: &[&str]) -> String {
    let mut words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match words.pop() {
        None => String::new(),
        Some(only) if words.is_empty() => only,
        Some(last) => format!("{} or {last}", words.join(", ")),
    }
}
