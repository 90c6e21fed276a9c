//! What reports to people are written with: colours where they are wanted, and lines that are not too long.

mod table;

use std::{
    error::Error,
    fmt,
    io::{self, IsTerminal, Write},
};

pub(crate) use table::{Table, delay, size, span};

/// Whether a stream is to be coloured: it is a terminal, and nobody asked for none (`NO_COLOR`).
pub(crate) fn is_wanted(stream: &impl IsTerminal) -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && stream.is_terminal()
}

/// Paints text, or leaves it as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    on: bool,
}

/// A colour, by what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// To be looked at.
    Doubtful,
    /// Not as it should be.
    Bad,
    /// Beside the point.
    Faint,
    /// A heading.
    Strong,
}

impl Paint {
    /// For standard output.
    pub(crate) fn for_stdout() -> Self {
        Self::on(&io::stdout())
    }

    /// For what is written to a stream.
    pub(crate) fn on(stream: &impl IsTerminal) -> Self {
        Self {
            on: is_wanted(stream),
        }
    }

    /// Without colours.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { on: false }
    }

    /// Text in a colour. To be padded before it is painted: the codes count as letters.
    pub(crate) fn text<T: fmt::Display>(self, tone: Tone, text: T) -> Painted<T> {
        Painted {
            tone: self.on.then_some(tone),
            text,
        }
    }
}

/// See [`Paint::text`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Painted<T> {
    tone: Option<Tone>,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(tone) = self.tone else {
            return self.text.fmt(formatter);
        };
        // "Select graphic rendition" of ECMA-48: 0 ends what was chosen.
        let code = match tone {
            Tone::Good => 32,
            Tone::Doubtful => 33,
            Tone::Bad => 31,
            Tone::Faint => 2,
            Tone::Strong => 1,
        };
        write!(formatter, "\x1b[{code}m{}\x1b[0m", self.text)
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no reason to fail.
pub(crate) fn print(text: impl fmt::Display) {
    let _ = write!(io::stdout(), "{text}");
}

/// Writes to standard output at once, for whoever would go on writing for ever.
///
/// # Errors
/// When nobody reads any more.
pub(crate) fn write(text: impl fmt::Display) -> io::Result<()> {
    let mut output = io::stdout().lock();
    write!(output, "{text}")?;
    output.flush()
}

/// An error with its causes in one line, without what the kernel's verifier says after its first one.
pub(crate) fn one_line(error: &dyn Error) -> String {
    all_lines(error)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// An error with its causes, and all that they say.
pub(crate) fn all_lines(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Letters in a line, at most.
const WIDTH: usize = 100;

/// A line with `indent` letters before the text; where it is too long the next ones begin below its text.
pub(crate) fn wrapped(indent: usize, text: &str) -> String {
    let mut lines = String::new();
    let mut length = indent;
    for word in text.split(' ') {
        let letters = word.chars().count();
        if length > indent && length + 1 + letters > WIDTH {
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', indent));
            length = indent;
        } else if length > indent {
            lines.push(' ');
            length += 1;
        }
        lines.push_str(word);
        length += letters;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_goes_on_below_itself_and_a_long_word_stays_whole() {
        let words = "word ".repeat(30);
        let text = wrapped(60, words.trim_end());
        let lines: Vec<_> = text.split('\n').collect();
        assert_eq!(
            lines[0],
            "word ".repeat(8).trim_end(),
            "39 letters after 60"
        );
        assert_eq!(lines[1], " ".repeat(60) + "word ".repeat(8).trim_end());
        assert_eq!(text.split_whitespace().count(), 30);
        let path = "x".repeat(200);
        assert_eq!(wrapped(10, &path), path);
    }

    #[test]
    fn an_error_is_told_with_its_causes_but_without_the_verifiers_log() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot load")]
        struct Load(#[source] io::Error);
        let error = Load(io::Error::other("refused\n0: r1 = r2"));
        assert_eq!(one_line(&error), "cannot load: refused");
    }

    #[test]
    fn plain_text_has_no_codes_and_coloured_text_ends_its_own() {
        assert_eq!(Paint::plain().text(Tone::Bad, "no").to_string(), "no");
        let coloured = Paint { on: true }.text(Tone::Bad, "no").to_string();
        assert_eq!(coloured, "\x1b[31mno\x1b[0m");
    }
}
