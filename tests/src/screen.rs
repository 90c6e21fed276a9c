//! A program that draws on the whole screen of a terminal: what somebody in front of it would see.

use std::{
    num::NonZeroU16,
    process::{Command, ExitStatus},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vt100::Parser;

use crate::{
    eventually::{eventually, in_time},
    terminal::Terminal,
};

/// What tells programs the kind of a terminal.
pub const TERM: &str = "TERM";

/// A side of a screen.
fn letters(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).expect("a screen has a size")
}

/// The terminal that it draws on.
pub struct Screen {
    terminal: Terminal,
    parser: Parser,
}

impl Screen {
    /// Starts a program on a screen of so many columns and lines, of the kind that the command says, or else an ordinary one.
    pub fn start(command: &mut Command, columns: u16, lines: u16) -> Self {
        if command.get_envs().all(|(name, _)| name != TERM) {
            command.env(TERM, "xterm-256color");
        }
        Self {
            terminal: Terminal::open(command, Some((columns, lines))),
            parser: Parser::new(letters(lines), letters(columns), 0),
        }
    }

    /// Types.
    pub fn type_in(&mut self, keys: &str) {
        self.terminal.type_in(keys);
    }

    /// Gives it another size.
    pub fn resize(&mut self, columns: u16, lines: u16) {
        self.parser
            .screen_mut()
            .set_size(letters(lines), letters(columns));
        self.terminal.resize(columns, lines);
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.terminal.pid()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("cannot signal the program");
    }

    /// Waits until what is seen is as it should be, and returns what was found in it.
    pub fn await_seen<T>(&mut self, what: &str, seen: impl Fn(&str) -> Option<T>) -> T {
        let Self { terminal, parser } = self;
        let found = in_time(|| {
            parser.process(&terminal.read().unwrap_or_default());
            seen(&parser.screen().contents())
        });
        found.unwrap_or_else(|| panic!("no {what} on the screen:\n{}", parser.screen().contents()))
    }

    /// Waits until a text is seen.
    pub fn await_text(&mut self, text: &str) {
        self.await_seen(&format!("{text:?}"), |screen| {
            screen.contains(text).then_some(())
        });
    }

    /// Waits until a text is not seen any more.
    pub fn await_no_text(&mut self, text: &str) {
        let what = format!("screen without {text:?}");
        self.await_seen(&what, |screen| (!screen.contains(text)).then_some(()));
    }

    /// The line that is highlighted.
    pub fn highlighted(&self) -> Option<String> {
        let screen = self.parser.screen();
        let (lines, columns) = screen.size();
        let (lines, columns) = (lines.get(), columns.get());
        let line =
            (0..lines).find(|line| screen.cell(*line, 0).is_some_and(vt100::Cell::inverse))?;
        screen.rows(0, columns).nth(usize::from(line))
    }

    /// Waits until the program has ended, and says how, and whether the terminal is as it was before.
    pub fn end(&mut self) -> (ExitStatus, bool) {
        let Self { terminal, parser } = self;
        let status = eventually("the end of the program", || {
            parser.process(&terminal.read().unwrap_or_default());
            terminal.ended()
        });
        parser.process(&terminal.read().unwrap_or_default());
        let screen = parser.screen();
        (status, !screen.alternate_screen() && !screen.hide_cursor())
    }
}
