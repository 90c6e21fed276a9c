//! How the demonstration is shown.

use std::{
    fmt::{Display, Write as _},
    time::Duration,
};

use nix::errno::Errno;

use super::{
    app::Seen,
    payload,
    steps::{CONFIG, Closed, Observed, Step},
};
use crate::paint::{self, Paint, Tone};

/// Prints the parts one after another, on standard output.
pub(super) struct Table {
    paint: Paint,
}

/// What goes each way.
const MEBIBYTES: usize = payload::SIZE >> 20;

/// Columns with their widths. The widest address is that of an IPv4-mapped destination.
const STEPS: [(&str, usize); 6] = [
    ("app connects to", 24),
    ("kernel", 8),
    ("origin is reached by", 22),
    ("getpeername() says", 24),
    ("verified", 9),
    ("time", 0),
];
const RECORDS: [(&str, usize); 9] = [
    ("destination", 19),
    ("rule", 8),
    ("via", 7),
    ("path", 6),
    ("up", 8),
    ("down", 8),
    ("accepted", 9),
    ("connected", 9),
    ("reason", 0),
];

impl Table {
    pub(super) fn new() -> Self {
        Self {
            paint: Paint::for_stdout(),
        }
    }

    /// What will be shown.
    pub(super) fn title(&self) {
        let title = "culvert demo: real connections, real kernel hooks, a network of its own";
        say(self.paint.text(Tone::Strong, title));
        say("\nConfiguration");
        for line in CONFIG.lines() {
            let line = format!("  {line}");
            say(self.paint.text(Tone::Faint, line.trim_end()));
        }
        say("");
    }

    /// One thing that was set up.
    pub(super) fn fact(&self, what: &str, text: &str) {
        let what = self.paint.text(Tone::Strong, format!("{what:9}"));
        say(format!("{what}  {text}"));
    }

    /// The heads of the columns of [`Table::step`].
    pub(super) fn head(&self) {
        let heads = self.paint.text(Tone::Strong, heads(&STEPS));
        say(format!("\n  {heads}"));
    }

    /// What became of one connection.
    pub(super) fn step(&self, step: &Step, observed: &Observed, is_right: bool) {
        let cells = line(&STEPS, &step_cells(step, observed));
        let mark = if is_right {
            self.paint.text(Tone::Good, "✓")
        } else {
            self.paint.text(Tone::Bad, "✗")
        };
        say(format!("{mark} {cells}"));
    }

    /// What the relay recorded.
    pub(super) fn records(&self, records: &[Closed]) {
        let heads = self.paint.text(Tone::Strong, heads(&RECORDS));
        say(format!("\nWhat the relay recorded\n  {heads}"));
        for record in records {
            say(format!("  {}", line(&RECORDS, &record_cells(record))));
        }
    }

    /// What the hooks counted, without the zeros.
    pub(super) fn counters(&self, counters: &[(&str, u64)]) {
        let counted = counters.iter().filter(|(_, count)| *count > 0);
        let counted: Vec<_> = counted
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let counted = self.paint.text(Tone::Faint, counted.join("  "));
        say(format!("\nWhat the hooks counted\n  {counted}"));
    }

    /// What happens next, or did.
    pub(super) fn remark(&self, text: &str) {
        say(format!("\n{}", self.paint.text(Tone::Strong, text)));
    }

    /// How it ended.
    pub(super) fn end(
        &self,
        connections: usize,
        exchanged: usize,
        took: Duration,
        wrong: &[String],
    ) {
        if wrong.is_empty() {
            let done = self.paint.text(Tone::Good, "Everything was as expected:");
            let bytes = exchanged * 2 * MEBIBYTES;
            say(format!(
                "\n{done} {connections} connections, {bytes} MiB verified, {:.1} s.",
                took.as_secs_f64()
            ));
            say("Next: culvert doctor, or culvert exec -- COMMAND");
            return;
        }
        let not = self
            .paint
            .text(Tone::Bad, "Not everything was as expected:");
        say(format!("\n{not}\n  {}", wrong.join("\n  ")));
    }
}

fn say(line: impl Display) {
    paint::print(format_args!("{line}\n"));
}

fn step_cells(step: &Step, observed: &Observed) -> [String; 6] {
    let kernel = match &observed.verdicts {
        None => "no hook".to_owned(),
        Some(verdicts) => verdicts.join("+"),
    };
    let asked = step.destination.to_string();
    match &observed.seen {
        Seen::NotConnected(errno) => [
            asked,
            kernel,
            "nobody".to_owned(),
            format!("{:?} at connect()", Errno::from_raw(*errno)),
            String::new(),
            String::new(),
        ],
        Seen::Connected {
            peer,
            elapsed,
            error,
            ..
        } => {
            let by = match observed {
                _ if observed.served.is_none() => "nobody",
                _ if observed.is_own_socket() => "the app's own socket",
                Observed { asked: Some(_), .. } => "relay, SOCKS5 proxy",
                _ => "relay",
            };
            let whole = error.is_none()
                && observed
                    .served
                    .as_ref()
                    .is_some_and(|it| it.error.is_none());
            let verified = if whole {
                format!("{MEBIBYTES}+{MEBIBYTES} MiB")
            } else {
                "no".to_owned()
            };
            let time = format!("{:.1} ms", elapsed.as_secs_f64() * 1e3);
            [
                asked,
                kernel,
                by.to_owned(),
                peer.to_string(),
                verified,
                time,
            ]
        }
    }
}

fn record_cells(record: &Closed) -> [String; 9] {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    [
        record
            .orig_dst
            .map_or_else(String::new, |address| address.to_string()),
        text(&record.rule),
        text(&record.upstream),
        text(&record.path),
        record.up.to_string(),
        record.down.to_string(),
        format!("{} us", record.intercept_us),
        format!("{} us", record.connect_us + record.handshake_us),
        record.reason.clone(),
    ]
}

/// Cells below their heads.
fn line<const N: usize>(columns: &[(&str, usize); N], cells: &[String; N]) -> String {
    let mut line = String::new();
    for (cell, (_, width)) in cells.iter().zip(columns) {
        // Writing to a string cannot fail.
        let _ = write!(line, "{cell:width$}  ");
    }
    line.trim_end().to_owned()
}

fn heads<const N: usize>(columns: &[(&str, usize); N]) -> String {
    line(columns, &columns.map(|(name, _)| name.to_owned()))
}
