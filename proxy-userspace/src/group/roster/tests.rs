//! What a group decides, by scripted events and time.

use proptest::prelude::*;

use super::*;
use crate::{
    balance::Method,
    group::{
        Limits, Member as Entry,
        health::{HealthRules, Passive},
    },
};

const SECOND: Duration = Duration::from_secs(1);
const NOW: Duration = Duration::from_secs(1000);
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn address(number: usize) -> Address {
    Address::Tcp(([10, 0, 0, u8::try_from(number).unwrap()], 80).into())
}

fn settings(count: usize) -> Settings {
    Settings {
        members: (0..count)
            .map(|number| Entry {
                source: Source::Address(address(number)),
                weight: 1,
            })
            .collect(),
        method: Method::RoundRobin,
        health: HealthRules {
            passive: Some(Passive {
                failures: 2,
                eject: 10 * SECOND,
            }),
            ..HealthRules::default()
        },
        check: None,
        limits: Limits::default(),
        send_proxy: None,
        keep_source: false,
        connect_timeout: SECOND,
    }
}

fn roster(settings: Settings) -> Roster {
    Roster::new(Arc::new(settings), 1, NOW)
}

fn id(number: usize) -> Id {
    hash(address(number).to_string().as_bytes())
}

fn admit(roster: &mut Roster, now: Duration) -> Option<Id> {
    match roster.admit(0, now, &[]) {
        Admission::Chosen { id, .. } => Some(id),
        _ => None,
    }
}

fn fail(roster: &mut Roster, number: usize, now: Duration) {
    roster.used(id(number), Err("refused".into()), SECOND, now);
}

/// Endpoints that so many connections, each over at once, go to.
fn seen(roster: &mut Roster, count: usize, now: Duration) -> BTreeSet<Id> {
    (0..count)
        .map(|_| {
            let id = admit(roster, now).expect("an endpoint");
            roster.closed(id);
            id
        })
        .collect()
}

/// Nodes whose files list the same endpoints in other orders, or resolve them in other orders.
#[test]
fn the_order_of_a_file_makes_no_difference_to_a_hash() {
    for method in [Method::Maglev, Method::SourceHash] {
        let mut forwards = settings(9);
        forwards.method = method;
        for (number, entry) in forwards.members.iter_mut().enumerate() {
            entry.weight = 1 + u32::try_from(number % 3).unwrap();
        }
        let mut backwards = forwards.clone();
        backwards.members.reverse();
        let mut shuffled = forwards.clone();
        shuffled.members.rotate_left(4);
        shuffled.members.swap(0, 7);
        let nodes = [forwards, backwards, shuffled].map(Arc::new);
        // Each has a seed of its own, as each process does.
        let mut nodes: Vec<_> = (0..)
            .zip(nodes)
            .map(|(seed, settings)| Roster::new(settings, seed, NOW))
            .collect();
        for number in [3, 5] {
            for node in &mut nodes {
                for _ in 0..3 {
                    node.checked(id(number), Err("no answer".into()), NOW);
                }
            }
        }
        let mut met = BTreeSet::new();
        for key in 0..1000 {
            let key = hash(&u64::to_be_bytes(key));
            let mut chosen: Vec<_> = nodes
                .iter_mut()
                .map(|node| match node.admit(key, NOW, &[]) {
                    Admission::Chosen { id, .. } => id,
                    other => panic!("{other:?}"),
                })
                .collect();
            chosen.dedup();
            assert_eq!(chosen.len(), 1, "{method:?}");
            met.extend(chosen);
        }
        assert_eq!(met.len(), 7);
    }
}

fn state(roster: &Roster, number: usize) -> State {
    let found = roster.endpoints().find(|(one, _)| one.id == id(number));
    found.expect("an endpoint").1
}

#[test]
fn who_fails_is_left_out_and_comes_back() {
    let mut roster = roster(settings(3));
    for _ in 0..2 {
        fail(&mut roster, 0, NOW);
    }
    assert_eq!(state(&roster, 0), State::Ejected);
    assert_eq!(seen(&mut roster, 30, NOW), [id(1), id(2)].into());
    assert_eq!(roster.next_look(), Some(NOW + 10 * SECOND));
    let later = NOW + 10 * SECOND;
    assert_eq!(seen(&mut roster, 30, later).len(), 3);
    let changes: Vec<_> = roster.take_changes().iter().map(|c| c.state).collect();
    assert_eq!(changes, [State::Ejected, State::Up]);
}

#[test]
fn each_change_names_the_judge_who_made_it() {
    let mut roster = roster(settings(3));
    for _ in 0..2 {
        fail(&mut roster, 0, NOW);
    }
    for _ in 0..3 {
        roster.checked(id(0), Err("check failed".into()), NOW);
    }
    for _ in 0..2 {
        roster.checked(id(0), Ok(()), NOW);
    }
    roster.look(NOW + 10 * SECOND);
    let changes = roster.take_changes();
    let told: Vec<_> = changes
        .iter()
        .map(|change| (change.state, change.cause.as_deref()))
        .collect();
    let but = "checks pass again, but connections failed: refused";
    assert_eq!(
        told,
        [
            (State::Ejected, Some("refused")),
            (State::Down, Some("check failed")),
            (State::Ejected, Some(but)),
            (State::Up, None),
        ]
    );
}

#[test]
fn connections_never_eject_too_many() {
    let mut roster = roster(settings(4));
    for number in 0..4 {
        for _ in 0..5 {
            fail(&mut roster, number, NOW);
        }
    }
    let ejected = (0..4).filter(|number| state(&roster, *number) == State::Ejected);
    assert_eq!(ejected.count(), 2, "half of them may go");
}

#[test]
fn when_nobody_is_up_everybody_is_tried() {
    let mut roster = roster(settings(2));
    for number in 0..2 {
        for _ in 0..3 {
            roster.checked(id(number), Err("no answer".into()), NOW);
        }
    }
    assert_eq!(seen(&mut roster, 10, NOW).len(), 2);
    for _ in 0..2 {
        roster.checked(id(1), Ok(()), NOW);
    }
    assert_eq!(seen(&mut roster, 10, NOW), [id(1)].into());
}

#[test]
fn who_was_tried_is_not_tried_again() {
    let mut roster = roster(settings(3));
    let mut tried = Vec::new();
    for left in [true, true, false] {
        match roster.admit(0, NOW, &tried) {
            Admission::Chosen { id, has_others, .. } => {
                assert_eq!(has_others, left);
                assert!(!tried.contains(&id));
                roster.closed(id);
                tried.push(id);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(roster.admit(0, NOW, &tried), Admission::Exhausted);
}

#[test]
fn who_is_down_is_the_last_to_be_tried() {
    let mut roster = roster(settings(3));
    for _ in 0..3 {
        roster.checked(id(0), Err("no answer".into()), NOW);
    }
    for _ in 0..2 {
        fail(&mut roster, 2, NOW);
    }
    assert_eq!(
        state(&roster, 2),
        State::Up,
        "one of three must not be the last"
    );
    let mut tried = Vec::new();
    while let Admission::Chosen { id, .. } = roster.admit(0, NOW, &tried) {
        roster.closed(id);
        tried.push(id);
    }
    assert_eq!(tried.len(), 3);
    assert_eq!(tried.last(), Some(&id(0)));
}

#[test]
fn limits_hold_and_let_go() {
    let mut limited = settings(2);
    limited.limits.endpoint = Some(1);
    let mut roster = roster(limited.clone());
    let first = admit(&mut roster, NOW).expect("one");
    let second = admit(&mut roster, NOW).expect("the other");
    assert_ne!(first, second);
    assert_eq!(roster.admit(0, NOW, &[]), Admission::Wait);
    roster.closed(first);
    assert_eq!(admit(&mut roster, NOW), Some(first));

    limited.limits = Limits {
        total: Some(2),
        ..Limits::default()
    };
    roster.change(Arc::new(limited), NOW);
    assert_eq!(roster.admit(0, NOW, &[]), Admission::Wait);
}

#[test]
fn a_source_has_as_many_as_it_may_wherever_they_are() {
    let mut limited = settings(2);
    limited.limits.source = Some(2);
    let mut roster = roster(limited.clone());
    assert_eq!(
        [(); 3].map(|()| roster.arrive(CLIENT)),
        [Ok(()), Ok(()), Err(2)]
    );
    let stranger = [192, 0, 2, 1].into();
    assert_eq!(roster.arrive(stranger), Ok(()));
    roster.left(CLIENT);
    assert_eq!([(); 2].map(|()| roster.arrive(CLIENT)), [Ok(()), Err(2)]);
    // Counted all the time, whatever the limit is later.
    limited.limits.source = None;
    roster.change(Arc::new(limited.clone()), NOW);
    assert_eq!(roster.arrive(CLIENT), Ok(()));
    limited.limits.source = Some(3);
    roster.change(Arc::new(limited), NOW);
    assert_eq!(roster.arrive(CLIENT), Err(3));
    for _ in 0..3 {
        roster.left(CLIENT);
    }
    roster.left(stranger);
    assert!(roster.clients.is_empty());
}

#[test]
fn full_is_not_a_reason_to_take_who_is_down() {
    let mut limited = settings(2);
    limited.limits.endpoint = Some(1);
    let mut roster = roster(limited);
    for _ in 0..3 {
        roster.checked(id(0), Err("no answer".into()), NOW);
    }
    assert_eq!(admit(&mut roster, NOW), Some(id(1)));
    assert_eq!(roster.admit(0, NOW, &[]), Admission::Wait);
}

#[test]
fn a_reload_keeps_who_stays_and_lets_who_goes_finish() {
    let mut roster = roster(settings(3));
    for _ in 0..3 {
        roster.checked(id(0), Err("no answer".into()), NOW);
    }
    let taken: BTreeSet<_> = (0..2).filter_map(|_| admit(&mut roster, NOW)).collect();
    assert_eq!(taken, [id(1), id(2)].into());

    let mut fewer = settings(2);
    fewer.members[1].weight = 7;
    roster.change(Arc::new(fewer), NOW);
    assert_eq!(state(&roster, 0), State::Down, "its health stays");
    assert_eq!(state(&roster, 2), State::Leaving);
    assert_eq!(roster.live(), 2);
    assert_eq!(seen(&mut roster, 10, NOW), [id(1)].into());
    roster.closed(id(2));
    assert_eq!(
        roster.endpoints().count(),
        2,
        "gone with its last connection"
    );
    assert_eq!(roster.live(), 1);

    roster.change(Arc::new(settings(3)), NOW);
    assert_eq!(state(&roster, 2), State::Up);
    assert_eq!(state(&roster, 0), State::Down);
}

#[test]
fn who_is_new_or_up_again_starts_slowly() {
    let mut slow = settings(2);
    slow.health.slow_start = 100 * SECOND;
    let mut roster = roster(slow.clone());
    let part = |roster: &mut Roster, number, now| {
        let hits = (0..1000).filter(|_| {
            let picked = admit(roster, now).expect("an endpoint");
            roster.closed(picked);
            picked == id(number)
        });
        hits.count()
    };
    assert_eq!(part(&mut roster, 0, NOW), 500, "nobody is new at the start");
    slow.members = settings(3).members;
    roster.change(Arc::new(slow), NOW);
    let first = part(&mut roster, 2, NOW);
    assert!((30..70).contains(&first), "a tenth of its part: {first}");
    let middle = part(&mut roster, 2, NOW + 50 * SECOND);
    assert!((190..240).contains(&middle), "{middle}");
    let whole = part(&mut roster, 2, NOW + 101 * SECOND);
    assert!((330..340).contains(&whole), "{whole}");
}

#[test]
fn who_is_drained_gets_nothing_until_it_is_restored() {
    let mut roster = roster(settings(3));
    roster.drain(&address(0).to_string(), NOW);
    assert_eq!(seen(&mut roster, 30, NOW), [id(1), id(2)].into());
    // Not even when others fail, or are tried in vain.
    for number in [1, 2] {
        for _ in 0..3 {
            roster.checked(id(number), Err("no".into()), NOW);
        }
    }
    assert_eq!(seen(&mut roster, 30, NOW), [id(1), id(2)].into());
    let tried = [id(1), id(2)];
    assert_eq!(roster.admit(0, NOW, &tried), Admission::Exhausted);
    roster.restore(&address(0).to_string(), NOW);
    assert_eq!(seen(&mut roster, 30, NOW), [id(0)].into());
}

#[test]
fn connections_wait_while_everybody_is_drained() {
    let mut roster = roster(settings(2));
    let names = [0, 1].map(|number| address(number).to_string());
    let first = admit(&mut roster, NOW).unwrap();
    for name in &names {
        roster.drain(name, NOW);
    }
    assert_eq!(roster.admit(0, NOW, &[]), Admission::Wait);
    let left = |roster: &Roster| {
        names
            .each_ref()
            .map(|name| roster.drained(name).unwrap().live)
    };
    assert_eq!(left(&roster).iter().sum::<u32>(), 1);
    roster.closed(first);
    assert_eq!(left(&roster), [0, 0]);
    roster.restore(&names[1], NOW);
    assert_eq!(seen(&mut roster, 4, NOW), [id(1)].into());
    assert_eq!(roster.drained(&names[1]), None);
}

#[test]
fn who_stands_by_is_taken_when_nobody_else_is_up() {
    for (_, method) in Method::ALL {
        let mut some = settings(3);
        some.method = method;
        some.members[2].weight = 0;
        let mut roster = roster(some);
        let all = |roster: &mut Roster| {
            let pick = |key| match roster.admit(key, NOW, &[]) {
                Admission::Chosen { id, .. } => id,
                other => panic!("{other:?}"),
            };
            (0..50).map(pick).collect::<BTreeSet<_>>()
        };
        assert_eq!(all(&mut roster), [id(0), id(1)].into(), "{method:?}");
        for _ in 0..3 {
            roster.checked(id(0), Err("no".into()), NOW);
        }
        assert_eq!(all(&mut roster), [id(1)].into(), "{method:?}");
        roster.drain(&address(1).to_string(), NOW);
        assert_eq!(all(&mut roster), [id(2)].into(), "{method:?}");
        let parts: Vec<_> = roster.candidates().iter().map(|one| one.part).collect();
        assert_eq!(parts, [0, 0, u64::from(FULL)], "{method:?}");
        roster.restore(&address(1).to_string(), NOW);
        assert_eq!(all(&mut roster), [id(1)].into(), "{method:?}");
    }
}

#[test]
fn a_reload_forgets_what_was_said_of_who_goes() {
    let mut roster = roster(settings(3));
    for number in [0, 2] {
        roster.drain(&address(number).to_string(), NOW);
    }
    roster.change(Arc::new(settings(2)), NOW);
    assert_eq!(seen(&mut roster, 10, NOW), [id(1)].into());
    roster.change(Arc::new(settings(3)), NOW);
    assert_eq!(seen(&mut roster, 10, NOW), [id(1), id(2)].into());
}

#[test]
fn names_are_waited_for_and_followed() {
    let name = Source::Name {
        name: "web.test".into(),
        port: 80,
    };
    let mut named = settings(0);
    named.members.push(Entry {
        source: name.clone(),
        weight: 3,
    });
    let mut roster = roster(named);
    assert_eq!(roster.admit(0, NOW, &[]), Admission::Wait);
    let found = |numbers: &[usize]| {
        let resolved = numbers.iter().map(|number| Resolved {
            address: address(*number),
            weight: 1,
        });
        resolved.collect::<Vec<_>>()
    };
    roster.resolved(&name, found(&[1, 2]), NOW);
    assert_eq!(seen(&mut roster, 10, NOW), [id(1), id(2)].into());
    // An entry is drained with all that it stands for, and will.
    roster.drain("dns:web.test:80", NOW);
    roster.resolved(&name, found(&[1, 2, 3]), NOW);
    assert_eq!(roster.admit(0, NOW, &[]), Admission::Wait);
    roster.restore("dns:web.test:80", NOW);
    roster.resolved(&name, found(&[1, 2]), NOW);
    assert_eq!(seen(&mut roster, 10, NOW), [id(1), id(2)].into());
    for _ in 0..3 {
        roster.checked(id(1), Err("no answer".into()), NOW);
    }
    roster.resolved(&name, found(&[3, 1]), NOW);
    assert_eq!(
        seen(&mut roster, 10, NOW),
        [id(3)].into(),
        "1 is down still"
    );
    roster.resolved(&name, found(&[]), NOW);
    assert_eq!(roster.admit(0, NOW, &[]), Admission::Exhausted);
}

/// What may happen to a group of four.
#[derive(Clone, Debug)]
enum Event {
    Admit,
    Close(usize),
    Used(usize, bool),
    Checked(usize, bool),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Admit),
        2 => (0..100_usize).prop_map(Event::Close),
        2 => (0..4_usize, any::<bool>()).prop_map(|(number, good)| Event::Used(number, good)),
        2 => (0..4_usize, any::<bool>()).prop_map(|(number, good)| Event::Checked(number, good)),
        1 => (0..20_000_u64).prop_map(Event::Pass),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_healthy_are_preferred_and_counts_are_right(
        method in prop::sample::select(Method::ALL.map(|(_, method)| method).to_vec()),
        endpoint in prop::option::of(1..4_u32),
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut settings = settings(4);
        settings.method = method;
        settings.limits.endpoint = endpoint;
        settings.health.slow_start = SECOND;
        let mut roster = roster(settings);
        let (mut open, mut now): (Vec<Id>, _) = (Vec::new(), NOW);
        for (key, event) in (0..).zip(events) {
            match event {
                Event::Pass(millis) => now += Duration::from_millis(millis),
                Event::Close(_) if open.is_empty() => {}
                Event::Close(at) => {
                    let id = open.swap_remove(at % open.len());
                    roster.closed(id);
                }
                Event::Used(number, good) => {
                    let outcome = if good { Ok(()) } else { Err("refused".into()) };
                    roster.used(id(number), outcome, SECOND / 1000, now);
                }
                Event::Checked(number, good) => {
                    let outcome = if good { Ok(()) } else { Err("no answer".into()) };
                    roster.checked(id(number), outcome, now);
                }
                Event::Admit => {
                    let admission = roster.admit(key, now, &[]);
                    let has_room = |one: &Endpoint| endpoint.is_none_or(|most| one.live < most);
                    let up = |state| state == State::Up;
                    let anybody = roster.endpoints().any(|(_, state)| up(state));
                    match admission {
                        Admission::Chosen { id, .. } => {
                            let (one, state) = roster.endpoints().find(|(one, _)| one.id == id).unwrap();
                            prop_assert!(up(state) || !anybody, "one that is {state:?}");
                            prop_assert!(endpoint.is_none_or(|most| one.live <= most));
                            open.push(id);
                        }
                        other => {
                            prop_assert_eq!(other, Admission::Wait);
                            let free = |(one, state): (&Endpoint, State)| (up(state) || !anybody) && has_room(one);
                            prop_assert!(!roster.endpoints().any(free), "it waits while there is room");
                        }
                    }
                }
            }
            prop_assert_eq!(roster.live() as usize, open.len());
            for (one, _) in roster.endpoints() {
                prop_assert_eq!(one.live as usize, open.iter().filter(|id| **id == one.id).count());
            }
        }
    }
}
