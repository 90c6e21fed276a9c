//! The plan as text: two columns in sections.

use std::fmt::Write as _;

use crate::paint::{Paint, Tone, wrapped};

/// Collects the lines.
pub(super) struct Report {
    text: String,
    paint: Paint,
}

impl Report {
    /// An empty one.
    pub(super) fn new(paint: Paint) -> Self {
        Self {
            text: String::new(),
            paint,
        }
    }

    /// A section; without rows it says so.
    pub(super) fn section(&mut self, title: &str, rows: &[(String, String)]) {
        let width = rows.iter().map(|(left, _)| left.chars().count()).max();
        let indent = 2 + width.unwrap_or(0) + 2;
        let width = indent - 4;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "\n{title}");
        if rows.is_empty() {
            let _ = writeln!(self.text, "  none");
        }
        for (left, right) in rows {
            let _ = writeln!(self.text, "  {left:width$}  {}", wrapped(indent, right));
        }
    }

    /// What is missing, which is what matters most.
    pub(super) fn missing(&mut self, missing: &[String]) {
        if missing.is_empty() {
            let ready = self
                .paint
                .text(Tone::Good, "Nothing is missing: `culvert run` would start.");
            let _ = writeln!(self.text, "\n{ready}");
            return;
        }
        let heading = self.paint.text(Tone::Bad, "Missing for this configuration");
        let _ = writeln!(self.text, "\n{heading}");
        for what in missing {
            let _ = writeln!(self.text, "  - {}", wrapped(4, what));
        }
    }

    /// All of it.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_have_to_be() {
        let mut report = Report::new(Paint::plain());
        let row = |left: &str, right: &str| (left.to_owned(), right.to_owned());
        report.section("Names", &[row("a", "1"), row("long", "2")]);
        report.section("Nothing", &[]);
        report.missing(&["a kernel".to_owned()]);
        assert_eq!(
            report.into_text(),
            "\nNames\n  a     1\n  long  2\n\nNothing\n  none\n\nMissing for this configuration\n  - a kernel\n"
        );
    }
}
