//! The table of connections.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::Style,
    text::{Line, Span},
};

use super::{
    Theme,
    table::{self, Column, Shown},
};
use crate::{
    paint::{Tone, delay, size, span},
    status::connections::{ConnectionStatus, Sort},
    top::state::{Panel, Top},
};

/// The first nine are what there is room for in 80 columns.
const COLUMNS: [Column<ConnectionStatus>; 13] = [
    Column::left("process", (12, 28), 0, ConnectionStatus::opener),
    Column::left("to", (20, 47), 1, |one| {
        one.name.clone().unwrap_or_else(|| one.to.clone())
    }),
    Column::right("up/s", (5, 5), 2, |one| size(one.up_rate)),
    Column::right("down/s", (6, 6), 3, |one| size(one.down_rate)),
    Column::right("bytes", (5, 5), 10, |one| {
        size(one.up.saturating_add(one.down))
    }),
    Column::left("path", (8, 18), 4, |one| {
        one.path.clone().unwrap_or_else(|| "…".to_owned())
    }),
    Column::left("why", (8, 20), 9, |one| {
        one.path_reason.clone().unwrap_or_default()
    }),
    Column::left("rule", (7, 20), 5, |one| one.rule.clone()),
    Column::left("via", (8, 40), 11, |one| one.way().unwrap_or_default()),
    Column::right("rtt", (5, 5), 6, |one| {
        one.rtt_us().map(delay).unwrap_or_default()
    }),
    Column::right("queue", (5, 5), 7, |one| size(one.backlog())),
    Column::right("age", (4, 4), 8, |one| {
        let age = span(one.age_ms);
        age.split_once(' ')
            .map_or(age.as_str(), |(most, _)| most)
            .to_owned()
    }),
    Column::right("id", (6, 12), 12, |one| one.id.to_string()),
];

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, top: &mut Top, theme: Theme) {
    let [title, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    // Below the heads.
    top.connections.height = usize::from(body.height.saturating_sub(1));
    top.connections.fit(top.total());
    draw_title(frame, title, top, theme);
    let cursor = top.connections;
    let lines = cursor.first..cursor.first + cursor.height;
    let is_old = top.trouble.is_some();
    let lines = lines.map_while(|at| top.connection(at)).map(|one| {
        let style = match one.backlog() {
            _ if is_old => theme.of(Tone::Faint),
            0 => Style::new(),
            _ => theme.of(Tone::Doubtful),
        };
        (one, style)
    });
    let sorted_by: &[_] = match top.sort {
        Sort::Rate => &["up/s", "down/s"],
        Sort::Bytes => &["bytes"],
        Sort::Age => &["age"],
        Sort::Rtt => &["rtt"],
        Sort::Id => &["id"],
    };
    let is_ours = top.panel == Panel::Connections;
    let shown = Shown {
        columns: &COLUMNS,
        sorted_by,
        lines: lines.collect(),
        chosen: is_ours.then(|| cursor.at - cursor.first),
    };
    table::draw(frame, body, &shown, theme);
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, top: &Top, theme: Theme) {
    let mut spans = vec![
        Span::styled("Connections", theme.of(Tone::Strong)),
        Span::raw(format!(" {}, by {}", top.total(), top.sort.label())),
    ];
    if !top.filter.is_empty() {
        let filter = format!(", only {}", top.filter);
        spans.push(Span::styled(filter, theme.of(Tone::Doubtful)));
    }
    let cursor = top.connections;
    if top.total() > cursor.height {
        let last = (cursor.first + cursor.height).min(top.total());
        spans.push(Span::styled(
            format!(", {} to {last}", cursor.first + 1),
            theme.of(Tone::Faint),
        ));
    }
    frame.render_widget(Line::from(spans), area);
}
