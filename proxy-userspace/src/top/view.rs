//! Draws what is on the screen. Nothing is kept here but how many lines of each list there is room for.

mod connections;
mod dialog;
mod endpoints;
pub(super) mod plain;
mod table;

use std::time::Duration;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, RenderDirection, Sparkline},
};

use super::{
    history::Counted,
    state::{Dialog, Panel, Top},
};
use crate::paint::{Tone, size};

/// Lines of the table of connections that are there however small the screen is: a title, heads and a connection.
const LEAST: u16 = 3;
/// Columns before a line of bars, and behind it.
const BEFORE: u16 = 14;
const BEHIND: u16 = 24;

/// How things look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    pub(super) colours: bool,
    /// Of ASCII alone.
    pub(super) is_plain: bool,
}

impl Theme {
    fn of(self, tone: Tone) -> Style {
        match tone {
            Tone::Strong => Style::new().add_modifier(Modifier::BOLD),
            Tone::Faint => Style::new().add_modifier(Modifier::DIM),
            Tone::Good => self.coloured(Color::Green),
            Tone::Doubtful => self.coloured(Color::Yellow),
            Tone::Bad => self.coloured(Color::Red),
        }
    }

    fn coloured(self, colour: Color) -> Style {
        if self.colours {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, top: &mut Top, theme: Theme) {
    let lines = endpoint_lines(top, frame.area().height);
    let [title, rates, connections, endpoints, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(3),
        Constraint::Min(LEAST),
        Constraint::Length(lines),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_title(frame, title, top, theme);
    draw_rates(frame, rates, top, theme);
    connections::draw(frame, connections, top, theme);
    if lines > 0 {
        endpoints::draw(frame, endpoints, top, theme);
    }
    draw_foot(frame, foot, top, theme);
    if let Some(dialog) = &top.dialog {
        dialog::draw(frame, dialog, top, theme);
    }
    if theme.is_plain {
        plain::redraw(frame.buffer_mut());
    }
}

/// What the endpoints take: a third, or a half while somebody looks at them.
fn endpoint_lines(top: &Top, height: u16) -> u16 {
    let share = match top.panel {
        Panel::Endpoints => height / 2,
        Panel::Connections => height / 3,
    };
    match top.all_endpoints().count() {
        0 => 0,
        count => u16::try_from(count + 2).unwrap_or(u16::MAX).min(share),
    }
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, top: &Top, theme: Theme) {
    let Some(look) = &top.look else { return };
    let status = &look.status;
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let mut spans = vec![
        Span::styled(
            format!("culvert {}", status.version),
            theme.of(Tone::Strong),
        ),
        Span::raw(format!(
            "  process {}  {} rules  for {uptime}",
            status.pid, status.rules
        )),
    ];
    if top.is_paused {
        spans.push(Span::styled("  paused", theme.of(Tone::Doubtful)));
    }
    frame.render_widget(Line::from(spans), area);
}

fn draw_rates(frame: &mut Frame<'_>, area: Rect, top: &Top, theme: Theme) {
    let Some(look) = &top.look else { return };
    let connections = &look.status.connections;
    let [up, down, opened] = Layout::vertical([Constraint::Length(1); 3]).areas(area);
    let per_second = |what| format!("{}/s", size(top.history.now(what)));
    let total = |bytes| format!("{} in all", size(bytes));
    let opened_total = format!("{} open, {} in all", connections.live, connections.accepted);
    for (area, name, what, total) in [
        (up, "up", Counted::Up, total(connections.up)),
        (down, "down", Counted::Down, total(connections.down)),
        (opened, "opened", Counted::Opened, opened_total),
    ] {
        let [before, bars, behind] = Layout::horizontal([
            Constraint::Length(BEFORE),
            Constraint::Min(0),
            Constraint::Length(BEHIND),
        ])
        .areas(area);
        let now = format!("{name:6}{:>7}", per_second(what));
        frame.render_widget(Line::raw(now), before);
        let rates: Vec<_> = top
            .history
            .rates(what)
            .take(usize::from(bars.width))
            .collect();
        let bars_of = Sparkline::default()
            .data(&rates)
            .direction(RenderDirection::RightToLeft)
            .style(theme.of(Tone::Good));
        frame.render_widget(bars_of, bars);
        frame.render_widget(Line::raw(total).right_aligned(), behind);
    }
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, top: &Top, theme: Theme) {
    let line = match (&top.dialog, &top.trouble, &top.heard) {
        (Some(Dialog::Filter(text)), ..) => {
            let hint = "  enter: apply, esc: leave it";
            Line::from(vec![
                Span::styled("filter: ", theme.of(Tone::Strong)),
                Span::raw(format!("{text}_")),
                Span::styled(hint, theme.of(Tone::Faint)),
            ])
        }
        (_, Some(trouble), _) => Line::styled(trouble.clone(), theme.of(Tone::Bad)),
        (_, _, Some(Err(refused))) => Line::styled(refused.clone(), theme.of(Tone::Bad)),
        (_, _, Some(Ok(done))) => Line::styled(done.clone(), theme.of(Tone::Good)),
        _ => Line::styled(KEYS, theme.of(Tone::Faint)),
    };
    frame.render_widget(Paragraph::new(line), area);
}

/// In 80 letters.
const KEYS: &str =
    "q quit  / filter  s sort  enter inspect  x reset  tab endpoints  d drain  ? help";

#[cfg(test)]
mod tests;
