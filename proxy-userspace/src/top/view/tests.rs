use std::time::Instant;

use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

use super::*;
use crate::{
    status::{
        EndpointStatus, GroupStatus,
        connections::{ConnectionStatus, List},
    },
    top::{Wanted, ask::Trouble, state::Look},
};

fn look(connections: u64) -> Look {
    let one = |id: u64| ConnectionStatus {
        id,
        age_ms: 3_723_000,
        rule: "everything".into(),
        pid: Some(u32::try_from(4000 + id).unwrap()),
        comm: Some("curl".into()),
        to: format!("192.0.2.1:{}", 1000 + id),
        upstream: Some("corp".into()),
        path: Some("copy".into()),
        path_reason: Some("short".into()),
        up: 1_500_000,
        down_rate: 2048,
        downstream_rtt_us: Some(90),
        upstream_rtt_us: Some(31_000),
        up_backlog: Some(0),
        down_backlog: Some(if id == 0 { 3_000_000 } else { 0 }),
        ..ConnectionStatus::default()
    };
    let mut look = Look {
        list: List {
            matching: 10_000,
            connections: (0..connections).map(one).collect(),
        },
        ..Look::default()
    };
    look.status.version = "1.2.3".into();
    look.status.connections.up = 12 * 1024;
    look.status.connections.live = 10_000;
    look.status.groups = vec![GroupStatus {
        name: "web".into(),
        endpoints: vec![
            EndpointStatus {
                address: "10.0.0.1:80".into(),
                state: "up".into(),
                latency_us: 1250,
                ..EndpointStatus::default()
            },
            EndpointStatus {
                address: "10.0.0.2:80".into(),
                state: "down".into(),
                drained: true,
                last_error: Some("refused".into()),
                ..EndpointStatus::default()
            },
        ],
        ..GroupStatus::default()
    }];
    look
}

fn top(look: Look) -> Top {
    let mut top = Top::new(Wanted::default());
    top.take(Ok(look), Instant::now());
    top
}

/// The screen as text, a line for each of its lines.
fn drawn(top: &mut Top, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let theme = Theme {
        colours: true,
        is_plain: false,
    };
    terminal.draw(|frame| draw(frame, top, theme)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| {
        (0..width)
            .map(|x| buffer[(x, y)].symbol())
            .collect::<String>()
    };
    (0..height).map(|y| line(y).trim_end().to_owned()).collect()
}

fn assert_shows(screen: &[String], parts: &[&str]) {
    for part in parts {
        assert!(
            screen.iter().any(|line| line.contains(part)),
            "{part:?} in\n{}",
            screen.join("\n")
        );
    }
}

#[test]
fn eighty_columns_have_what_matters() {
    let mut top = top(look(60));
    let screen = drawn(&mut top, 80, 24);
    assert_eq!(
        screen[5],
        "process      to                    up/s down/s path     rule      rtt queue  age"
    );
    assert_eq!(
        screen[6],
        "curl[4000]   192.0.2.1:1000           0   2.0K copy     everyt…  31ms  2.8M   1h"
    );
    assert_shows(
        &screen,
        &[
            "culvert 1.2.3",
            "12K in all",
            "10000 open",
            "Connections 10000, by rate, 1 to 13",
            "Endpoints 2, 1 up",
            "web      10.0.0.1:80          up",
            "1.2ms",
            "down, drained",
            KEYS,
        ],
    );
    assert_eq!(KEYS.chars().count(), 80);
    top.key(KeyCode::Char('b').into());
    let screen = drawn(&mut top, 80, 24);
    assert_shows(&screen, &["by bytes", " bytes ", " 1.4M "]);
}

#[test]
fn a_wide_screen_has_all_of_it() {
    let mut top = top(look(3));
    let screen = drawn(&mut top, 180, 40);
    assert_shows(
        &screen,
        &[
            "why",
            "short",
            "corp",
            "bytes",
            "id",
            "everything",
            "refused",
            "weight",
        ],
    );
}

#[test]
fn no_size_is_too_small_or_too_large() {
    let mut top = top(look(60));
    for keys in ["", "\t", "?", "/", "\n", "x"] {
        for key in keys.chars() {
            let code = match key {
                '\t' => KeyCode::Tab,
                '\n' => KeyCode::Enter,
                key => KeyCode::Char(key),
            };
            top.key(code.into());
        }
        for (width, height) in [
            (1, 1),
            (7, 3),
            (20, 5),
            (80, 24),
            (300, 100),
            (3, 200),
            (200, 3),
        ] {
            drawn(&mut top, width, height);
        }
        top.key(KeyCode::Esc.into());
    }
}

#[test]
fn what_strangers_say_is_text() {
    let mut look = look(1);
    look.list.connections[0].comm = Some("\x1b[2Jevil\n\x07".into());
    look.list.connections[0].name = Some("a\u{202e}b".into());
    let mut top = top(look);
    let screen = drawn(&mut top, 80, 24).concat();
    assert!(!screen.chars().any(char::is_control), "{screen:?}");
}

#[test]
fn what_is_old_is_said_to_be() {
    let mut top = top(look(3));
    let trouble = Trouble::Daemon("no culvert answers".into());
    top.take(Err(trouble), Instant::now());
    assert_shows(
        &drawn(&mut top, 80, 24),
        &["no culvert answers", "curl[4000]"],
    );
    top.key(KeyCode::Enter.into());
    let screen = drawn(&mut top, 80, 24);
    assert_shows(
        &screen,
        &[
            "Connection 0, as it was",
            "copy; no better one: short",
            "31ms to the server",
        ],
    );
    top.key(KeyCode::Char('x').into());
    assert_shows(
        &drawn(&mut top, 80, 24),
        &["Reset connection 0 to 192.0.2.1:1000?"],
    );
}

#[test]
fn a_plain_screen_is_of_ascii() {
    let mut top = top(look(60));
    for (keys, is_in_front) in [("", "everyt~"), ("?", "| ^ v pgup"), ("\n", "a second")] {
        for key in keys.chars() {
            let code = if key == '\n' {
                KeyCode::Enter
            } else {
                KeyCode::Char(key)
            };
            top.key(code.into());
        }
        let mut later = look(60);
        later.status.connections.up += 1_000_000;
        top.take(Ok(later), Instant::now() + Duration::from_secs(1));
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let theme = Theme {
            colours: false,
            is_plain: true,
        };
        terminal.draw(|frame| draw(frame, &mut top, theme)).unwrap();
        let cells = &terminal.backend().buffer().content;
        let text: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        assert!(text.is_ascii(), "{text}");
        assert!(text.contains('#'), "{text}");
        assert!(text.contains(is_in_front), "{text}");
        // Closes what was in front.
        top.key(KeyCode::Esc.into());
    }
    assert!(["linux", "vt100", "vt220"].map(plain::is_needed) == [true; 3]);
    assert!(["xterm-256color", "screen", "tmux", ""].map(plain::is_needed) == [false; 4]);
}

#[test]
fn without_colours_there_are_none() {
    let mut top = top(look(3));
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let theme = Theme {
        colours: false,
        is_plain: false,
    };
    terminal.draw(|frame| draw(frame, &mut top, theme)).unwrap();
    let cells = &terminal.backend().buffer().content;
    assert!(
        cells
            .iter()
            .all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset)
    );
}
