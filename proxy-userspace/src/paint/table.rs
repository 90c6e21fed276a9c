//! Lines of cells below heads, and numbers in few letters.

use std::fmt::Write as _;

use super::{Paint, Tone};

/// A table that is as wide as what is in it.
#[derive(Debug)]
pub(crate) struct Table {
    heads: Vec<&'static str>,
    right: Vec<usize>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these heads.
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        Self {
            heads: heads.to_vec(),
            right: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// With numbers in these columns.
    pub(crate) fn right(mut self, columns: &[usize]) -> Self {
        self.right.extend(columns);
        self
    }

    /// Adds a line. What came from elsewhere may not write anything but letters.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let shown = |cell: String| {
            if cell.chars().any(char::is_control) {
                cell.escape_default().to_string()
            } else {
                cell
            }
        };
        self.rows.push(cells.map(shown).into());
    }

    /// For people; nothing when there is no line.
    pub(crate) fn text(&self, paint: Paint) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            widest.max(self.heads.get(column).map_or(0, |head| head.len()))
        };
        let widths: Vec<_> = (0..self.heads.len()).map(width).collect();
        let heads: Vec<_> = self.heads.iter().map(|head| (*head).to_owned()).collect();
        let heads = self.line(&heads, &widths);
        let mut text = format!("{}\n", paint.text(Tone::Strong, heads));
        for row in &self.rows {
            text.push_str(&self.line(row, &widths));
            text.push('\n');
        }
        text
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            // Writing to a string cannot fail.
            _ = if self.right.contains(&column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:width$}  ")
            };
        }
        line.trim_end().to_owned()
    }
}

/// A number of bytes in at most five letters.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let mut whole = bytes;
    let mut rest = 0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    // What would be written as 1000.
    while whole > 999 {
        (rest, whole) = (whole % 1024 * 10 / 1024, whole / 1024);
        unit = units.next();
    }
    let unit = unit.copied().unwrap_or_default();
    if unit.is_empty() || whole > 9 {
        format!("{whole}{unit}")
    } else {
        format!("{whole}.{rest}{unit}")
    }
}

/// A time in its two largest units.
pub(crate) fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days}d {}h", hours % 24),
        () if hours > 0 => format!("{hours}h {}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m {}s", seconds % 60),
        () if seconds > 9 => format!("{seconds}s"),
        () => format!("{seconds}.{}s", millis % 1000 / 100),
    }
}

/// A time that something takes, in at most six letters.
pub(crate) fn delay(micros: u64) -> String {
    let (millis, seconds) = (micros / 1000, micros / 1_000_000);
    match () {
        () if seconds > 9 => format!("{seconds}s"),
        () if seconds > 0 => format!("{seconds}.{}s", millis % 1000 / 100),
        () if millis > 9 => format!("{millis}ms"),
        () if millis > 0 => format!("{millis}.{}ms", micros % 1000 / 100),
        () => format!("{micros}us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let sizes = [0, 999, 1000, 1024, 1536, 10_240, 1_047_552, u64::MAX];
        assert_eq!(
            sizes.map(size),
            ["0", "999", "0.9K", "1.0K", "1.5K", "10K", "0.9M", "15E"]
        );
        let spans = [0, 1999, 10_500, 61_000, 3_660_000, 90_000_000];
        assert_eq!(
            spans.map(span),
            ["0.0s", "1.9s", "10s", "1m 1s", "1h 1m", "1d 1h"]
        );
        let delays = [7, 999, 1250, 10_999, 1_999_999, 61_000_000];
        assert_eq!(
            delays.map(delay),
            ["7us", "999us", "1.2ms", "10ms", "1.9s", "61s"]
        );
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be_and_nothing_gets_out_of_them() {
        let mut table = Table::new(&["n", "name"]).right(&[0]);
        assert_eq!(table.text(Paint::plain()), "");
        table.row(["7".into(), "a\x1b[2J".into()]);
        table.row(["1234".into(), String::new()]);
        assert_eq!(
            table.text(Paint::plain()),
            "   n  name\n   7  a\\u{1b}[2J\n1234\n"
        );
    }
}
