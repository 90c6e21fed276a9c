//! What is in front of the lists: a connection looked at closely, a question, help.

use ratatui::{
    Frame,
    layout::Rect,
    text::{Line, Span},
    widgets::{Block, Clear, Paragraph},
};

use super::Theme;
use crate::{
    paint::{Tone, delay, size, span},
    status::connections::ConnectionStatus,
    top::state::{Dialog, IsThere, Top},
};

/// Letters between the edges of what is drawn in front, where there is room.
const WIDTH: u16 = 74;

const HELP: [(&str, &str); 12] = [
    ("↑ ↓ pgup pgdn", "move; also j and k, home and end"),
    ("/", "show only some: a part of anything, or KEY=VALUE"),
    ("", "as in `culvert conns --filter`; several, with spaces"),
    ("esc", "show all again"),
    ("s", "sort by something else"),
    ("r b a t", "sort by rate, bytes, age, round trip"),
    ("enter", "look at a connection closely"),
    ("x", "reset a connection"),
    ("tab", "go to the endpoints and back"),
    ("d", "drain an endpoint, or give it connections again"),
    ("p", "pause"),
    ("q", "quit"),
];

pub(super) fn draw(frame: &mut Frame<'_>, dialog: &Dialog, top: &Top, theme: Theme) {
    match dialog {
        // Typed in the last line.
        Dialog::Filter(_) => {}
        Dialog::Inspect(one, is_there) => {
            let title = match is_there {
                IsThere::Yes if top.trouble.is_some() => {
                    format!(" Connection {}, as it was ", one.id)
                }
                IsThere::Yes => format!(" Connection {} ", one.id),
                IsThere::No => format!(" Connection {} has ended ", one.id),
            };
            let hint = " x reset  ↑ ↓ others ";
            show(frame, &title, hint, &lines(&facts(one)), theme);
        }
        Dialog::Confirm(question, _) => {
            let lines = [Line::raw(""), Line::raw(question.as_str()), Line::raw("")];
            show(frame, " Sure? ", " y yes  any other key no ", &lines, theme);
        }
        Dialog::Help => {
            let help = HELP.map(|(keys, what)| (keys, what.to_owned()));
            show(frame, " Keys ", "", &lines(&help), theme);
        }
    }
}

fn show(frame: &mut Frame<'_>, title: &str, hint: &str, lines: &[Line<'_>], theme: Theme) {
    let screen = frame.area();
    let (width, height) = (
        (WIDTH + 2).min(screen.width),
        u16::try_from(lines.len() + 2)
            .unwrap_or(u16::MAX)
            .min(screen.height),
    );
    let area = Rect {
        x: (screen.width - width) / 2,
        y: (screen.height - height) / 2,
        width,
        height,
    };
    let block = Block::bordered()
        .title(Span::styled(title, theme.of(Tone::Strong)))
        .title_bottom(Span::styled(hint, theme.of(Tone::Faint)));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines.to_vec()).block(block), area);
}

/// What is known of a connection.
fn facts(one: &ConnectionStatus) -> Vec<(&'static str, String)> {
    let process = one.pid.map(|pid| {
        let comm = one.comm.as_deref().unwrap_or_default();
        let uid = one.uid.map(|uid| format!(", user {uid}"));
        format!("{comm}[{pid}]{}", uid.unwrap_or_default())
    });
    let path = one.path.as_ref().map(|path| match &one.path_reason {
        Some(reason) => format!("{path}; no better one: {reason}"),
        None => path.clone(),
    });
    let rtt = [
        ("to the client", one.downstream_rtt_us),
        ("to the server", one.upstream_rtt_us),
    ];
    let rtt: Vec<_> = rtt
        .into_iter()
        .filter_map(|(whom, micros)| Some(format!("{} {whom}", delay(micros?))))
        .collect();
    let both = |up, down| format!("{} up, {} down", size(up), size(down));
    let backlog = |bytes: Option<u64>| bytes.unwrap_or(0);
    [
        ("role", Some(one.role.clone())),
        ("rule", Some(one.rule.clone())),
        ("process", process),
        ("client", Some(one.client.clone())),
        ("to", Some(one.to.clone())),
        ("name", one.name.clone()),
        ("via", one.way()),
        ("connected to", one.peer.clone()),
        ("path", path),
        (
            "changes",
            Some(format!(
                "{} to a better path, {} back",
                one.promotions, one.demotions
            )),
        ),
        ("moved", Some(both(one.up, one.down))),
        ("a second", Some(both(one.up_rate, one.down_rate))),
        (
            "backlog",
            Some(both(backlog(one.up_backlog), backlog(one.down_backlog))),
        ),
        ("round trip", Some(rtt.join(", "))),
        ("age", Some(span(one.age_ms))),
    ]
    .into_iter()
    .filter_map(|(what, is)| Some((what, is?)))
    .collect()
}

fn lines<'a>(facts: &'a [(&'a str, String)]) -> Vec<Line<'a>> {
    let line = |(what, is): &'a (&'a str, String)| Line::raw(format!(" {what:14} {is}"));
    facts.iter().map(line).collect()
}
