//! The table of endpoints.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
};

use super::{
    Theme,
    table::{self, Column, Shown},
};
use crate::{
    paint::{Tone, delay},
    status::{EndpointStatus, GroupStatus},
    top::state::{Panel, Top},
};

type Endpoint<'a> = (&'a GroupStatus, &'a EndpointStatus);

/// A function, as they are of something borrowed.
fn columns<'a>() -> [Column<Endpoint<'a>>; 9] {
    [
        Column::left("group", (8, 20), 0, |(group, _)| group.name.clone()),
        Column::left("endpoint", (20, 47), 1, |(_, one)| one.address.clone()),
        Column::left("state", (13, 16), 2, |(_, one)| one.condition()),
        Column::right("weight", (6, 6), 7, |(_, one)| one.weight.to_string()),
        Column::right("open", (5, 6), 3, |(_, one)| one.live.to_string()),
        Column::right("made", (7, 10), 5, |(_, one)| {
            (one.connections + one.rewritten).to_string()
        }),
        Column::right("failed", (6, 10), 6, |(_, one)| one.failures.to_string()),
        Column::right("latency", (7, 7), 4, |(_, one)| match one.latency_us {
            0 => String::new(),
            micros => delay(micros),
        }),
        Column::left("error", (10, 100), 8, |(_, one)| {
            one.trouble().unwrap_or_default().to_owned()
        }),
    ]
}

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, top: &mut Top, theme: Theme) {
    let [title, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let count = top.all_endpoints().count();
    top.endpoints.height = usize::from(body.height.saturating_sub(1));
    top.endpoints.fit(count);
    let up = top.all_endpoints().filter(|(_, one)| one.state == "up");
    let heading = vec![
        Span::styled("Endpoints", theme.of(Tone::Strong)),
        Span::raw(format!(" {count}, {} up", up.count())),
    ];
    frame.render_widget(Line::from(heading), title);
    let cursor = top.endpoints;
    let all: Vec<_> = top
        .all_endpoints()
        .skip(cursor.first)
        .take(cursor.height)
        .collect();
    let lines = all.iter().map(|endpoint| {
        let tone = match endpoint.1.state.as_str() {
            _ if endpoint.1.drained => Tone::Doubtful,
            "up" => Tone::Good,
            "leaving" => Tone::Faint,
            _ => Tone::Bad,
        };
        (endpoint, theme.of(tone))
    });
    let is_ours = top.panel == Panel::Endpoints;
    let shown = Shown {
        columns: &columns(),
        sorted_by: &[],
        lines: lines.collect(),
        chosen: is_ours.then(|| cursor.at - cursor.first),
    };
    table::draw(frame, body, &shown, theme);
}
