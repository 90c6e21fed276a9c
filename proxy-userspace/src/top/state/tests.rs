use super::*;
use crate::live::Query;

fn press(top: &mut Top, keys: &str) -> Step {
    let mut step = Step::Stay;
    for letter in keys.chars() {
        let code = match letter {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\x1b' => KeyCode::Esc,
            '\x08' => KeyCode::Backspace,
            '↓' => KeyCode::Down,
            '↑' => KeyCode::Up,
            '⇟' => KeyCode::PageDown,
            '⤓' => KeyCode::End,
            '⤒' => KeyCode::Home,
            letter => KeyCode::Char(letter),
        };
        step = top.key(code.into());
    }
    step
}

/// A daemon with so many connections, which are called by their place in the order.
struct Daemon {
    ids: Vec<u64>,
}

impl Daemon {
    fn with(count: u64) -> Self {
        Self {
            ids: (0..count).collect(),
        }
    }

    /// Answers as the daemon does.
    fn answer(&self, question: &Question) -> Look {
        let (_, query) = question.connections.split_once('?').unwrap();
        Query::parse(query).unwrap();
        let number = |key: &str| -> usize {
            let (_, rest) = query.split_once(&format!("{key}=")).unwrap();
            rest.split('&').next().unwrap().parse().unwrap()
        };
        let (offset, limit) = (number("offset"), number("limit"));
        let listed = self.ids.iter().skip(offset).take(limit);
        let one = |id: &u64| ConnectionStatus {
            id: *id,
            to: "192.0.2.1:80".into(),
            ..ConnectionStatus::default()
        };
        let inspected = question.inspected.as_ref().map(|path| {
            let id: u64 = path.rsplit_once('=').unwrap().1.parse().unwrap();
            let connections: Vec<_> = self
                .ids
                .iter()
                .filter(|known| **known == id)
                .map(one)
                .collect();
            List {
                matching: connections.len() as u64,
                connections,
            }
        });
        Look {
            list: List {
                matching: self.ids.len() as u64,
                connections: listed.map(one).collect(),
            },
            offset,
            inspected,
            status: Status {
                groups: vec![GroupStatus {
                    name: "web".into(),
                    endpoints: vec![
                        EndpointStatus {
                            source: "dns:web:80".into(),
                            ..EndpointStatus::default()
                        },
                        EndpointStatus {
                            source: "10.0.0.1:80".into(),
                            drained: true,
                            ..EndpointStatus::default()
                        },
                    ],
                    ..GroupStatus::default()
                }],
                ..Status::default()
            },
        }
    }

    fn looked_at(&self, top: &mut Top) {
        let look = self.answer(&top.question());
        top.take(Ok(look), Instant::now());
    }
}

fn shown(count: u64) -> (Daemon, Top) {
    let (daemon, mut top) = (Daemon::with(count), Top::new(Wanted::default()));
    top.connections.height = 10;
    daemon.looked_at(&mut top);
    (daemon, top)
}

/// Connections on the screen.
fn visible(top: &Top) -> Vec<u64> {
    let Cursor { first, height, .. } = top.connections;
    let lines = first..first + height;
    lines.map_while(|at| Some(top.connection(at)?.id)).collect()
}

#[test]
fn a_filter_becomes_a_question() {
    let mut top = Top::new(Wanted {
        filter: "rule=a&b cURL".into(),
        sort: Some(Sort::Age),
    });
    let question = top.question();
    assert_eq!(
        question.connections,
        "/v1/connections?rule=a%26b&any=cURL&sort=age&offset=0&limit=50"
    );
    assert_eq!(press(&mut top, "/\x08\x08\x08\x08x=1\n"), Step::Look);
    assert_eq!(top.filter, "rule=a&b x=1");
    assert_eq!(press(&mut top, "/more\x1b"), Step::Stay, "left");
    assert_eq!(top.filter, "rule=a&b x=1");
    assert_eq!(press(&mut top, "\x1b"), Step::Look);
    assert_eq!(top.filter, "");
    top.take(Err(Trouble::Filter("no such key".into())), Instant::now());
    assert_eq!(top.trouble.as_deref(), Some("no such key"));
}

#[test]
fn the_cursor_stays_with_its_connection() {
    let (mut daemon, mut top) = shown(100);
    press(&mut top, "↓↓");
    assert_eq!(top.connections.at, 2);
    daemon.ids.rotate_right(3);
    daemon.looked_at(&mut top);
    assert_eq!(top.connection(top.connections.at).unwrap().id, 2);
    assert_eq!(top.connections.at, 5);
    // Who is gone leaves it where it was.
    daemon.ids.retain(|id| *id != 2);
    daemon.looked_at(&mut top);
    assert_eq!(top.connections.at, 5);
    // At the top it stays, whoever is there.
    press(&mut top, "⤒");
    daemon.ids.reverse();
    daemon.looked_at(&mut top);
    assert_eq!(top.connections.at, 0);
}

#[test]
fn every_one_of_ten_thousand_can_be_reached() {
    let (daemon, mut top) = shown(10_000);
    let mut seen = std::collections::BTreeSet::from_iter(visible(&top));
    while top.connections.at < 9_999 {
        if press(&mut top, "⇟") == Step::Look {
            assert!(!visible(&top).is_empty(), "it shows what it has until then");
            daemon.looked_at(&mut top);
        }
        seen.extend(visible(&top));
    }
    assert_eq!(seen.len(), 10_000);
    press(&mut top, "⤒");
    daemon.looked_at(&mut top);
    press(&mut top, "⤓");
    daemon.looked_at(&mut top);
    assert_eq!(visible(&top), (9_990..10_000).collect::<Vec<_>>());
    let asked = top.look.as_ref().unwrap().list.connections.len();
    assert!(asked <= 110, "only those around the screen, not {asked}");
    // The list gets shorter than where it was looked at.
    Daemon::with(3).looked_at(&mut top);
    Daemon::with(3).looked_at(&mut top);
    assert_eq!(visible(&top), [0, 1, 2]);
}

#[test]
fn nothing_is_reset_without_a_yes() {
    let (_, mut top) = shown(3);
    for no in ["n", "\x1b", "x", "q"] {
        assert_eq!(press(&mut top, "↓x"), Step::Stay);
        assert_eq!(press(&mut top, no), Step::Stay, "{no:?}");
        assert_eq!(top.dialog, None);
    }
    assert_eq!(press(&mut top, "⤒↓xy"), Step::Tell(Order::End(1)));
    assert_eq!(press(&mut top, "↓\nxy"), Step::Tell(Order::End(2)));
    let (_, mut none) = shown(0);
    assert_eq!(press(&mut none, "xy"), Step::Stay);
    assert_eq!(press(&mut none, "\n"), Step::Look);
    assert_eq!(none.dialog, None);
}

#[test]
fn who_is_looked_at_closely_may_end() {
    let (daemon, mut top) = shown(3);
    assert_eq!(press(&mut top, "\n"), Step::Look);
    assert_eq!(
        top.question().inspected.as_deref(),
        Some("/v1/connections?id=0")
    );
    daemon.looked_at(&mut top);
    assert!(matches!(top.dialog, Some(Dialog::Inspect(_, IsThere::Yes))));
    assert_eq!(press(&mut top, "↓"), Step::Look);
    assert_eq!(
        top.question().inspected.as_deref(),
        Some("/v1/connections?id=1")
    );
    let gone = Daemon { ids: vec![0, 2] };
    gone.looked_at(&mut top);
    assert!(matches!(top.dialog, Some(Dialog::Inspect(_, IsThere::No))));
    assert_eq!(press(&mut top, "x"), Step::Stay, "it cannot be reset again");
    assert_eq!(top.dialog, None);
}

#[test]
fn endpoints_are_drained_and_restored_as_the_file_calls_them() {
    let (_, mut top) = shown(3);
    press(&mut top, "d");
    assert!(
        top.heard.as_ref().unwrap().is_err(),
        "no endpoint is chosen"
    );
    assert_eq!(
        press(&mut top, "\tdy"),
        Step::Tell(Order::Drain("web/dns:web:80".into()))
    );
    assert_eq!(
        press(&mut top, "↓↓dy"),
        Step::Tell(Order::Restore("web/10.0.0.1:80".into()))
    );
    assert_eq!(press(&mut top, "x"), Step::Stay, "that is for connections");
    assert_eq!(top.connections.at, 0);
    assert_eq!(press(&mut top, "\t↓"), Step::Stay);
    assert_eq!(top.connections.at, 1);
}

#[test]
fn it_is_sorted_and_left_by_keys() {
    let (_, mut top) = shown(3);
    for (key, sort) in [
        ("a", Sort::Age),
        ("b", Sort::Bytes),
        ("t", Sort::Rtt),
        ("s", Sort::Id),
        ("s", Sort::Rate),
        ("s", Sort::Bytes),
    ] {
        press(&mut top, "↓");
        assert_eq!(press(&mut top, key), Step::Look);
        assert_eq!((top.sort, top.connections.at), (sort, 0));
    }
    press(&mut top, "p");
    assert!(top.is_paused);
    assert_eq!(press(&mut top, "q"), Step::Quit);
    let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
    assert_eq!(top.key(control('c')), Step::Quit);
    assert_eq!(top.key(control('z')), Step::Suspend);
}
