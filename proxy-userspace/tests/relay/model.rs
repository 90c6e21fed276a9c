//! Properties of the relay over scripted sides: any mix of partial reads, partial writes, waits and failures.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use proptest::{collection::vec, prelude::*};
use proxy_userspace::{
    close::CloseReason,
    relay::{Progress, Relay},
    rule::PathChoice,
};

use crate::{
    payload::Payload,
    scripted::{Script, Scripted, Seen, Step, run},
};

const DOWNSTREAM: u64 = 1;
const UPSTREAM: u64 = 2;

fn steps(failing: bool) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1usize..100).prop_map(Step::Move),
        2 => (1usize..50_000).prop_map(Step::Move),
        4 => Just(Step::Wait),
        u32::from(failing) => Just(Step::Fail),
    ];
    vec(step, 0..40)
}

fn script(failing: bool) -> impl Strategy<Value = Script> {
    (steps(failing), steps(failing), any::<bool>()).prop_map(|(reads, writes, lazy)| Script {
        reads,
        writes,
        lazy,
    })
}

/// Everything `sender` gave must be a beginning of what it has to give, and be counted.
fn check_beginning(seen: &Seen, stream: u64, script: &Script, counted: u64) {
    let length = seen.received.len();
    assert_eq!((length + seen.kept.len()) as u64, counted, "byte count");
    let expected = Payload::new(stream, script.length()).bytes(0, length);
    assert!(seen.received == expected, "wrong bytes within {length}");
    assert!(seen.told_end <= 1);
    if seen.told_end == 1 {
        assert_eq!(length as u64, script.length(), "told the end too early");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn without_a_failure_everything_arrives(
        down_script in script(false),
        up_script in script(false),
        order: u64,
    ) {
        let (mut downstream, app) = Scripted::new(DOWNSTREAM, &down_script);
        let (mut upstream, server) = Scripted::new(UPSTREAM, &up_script);
        let progress = Arc::new(Progress::default());
        let mut relay = Relay::new(Arc::clone(&progress), None);
        let ended = run(relay.run(&mut downstream, &mut upstream, PathChoice::Copy), [&app, &server], order);
        assert_eq!(ended.reason, CloseReason::Done);
        assert!(!ended.must_reset());
        let (app, server) = (app.borrow(), server.borrow());
        assert_eq!((app.told_end, server.told_end), (1, 1));
        check_beginning(&server, DOWNSTREAM, &down_script, progress.up());
        check_beginning(&app, UPSTREAM, &up_script, progress.down());
    }

    #[test]
    fn a_failure_ends_it_and_names_its_side(
        down_script in script(true),
        up_script in script(true),
        order: u64,
    ) {
        let (mut downstream, app) = Scripted::new(DOWNSTREAM, &down_script);
        let (mut upstream, server) = Scripted::new(UPSTREAM, &up_script);
        let progress = Arc::new(Progress::default());
        let mut relay = Relay::new(Arc::clone(&progress), None);
        let ended = run(relay.run(&mut downstream, &mut upstream, PathChoice::Copy), [&app, &server], order);
        let (app, server) = (app.borrow(), server.borrow());
        match ended.reason {
            CloseReason::Done => {
                assert!(!app.failed && !server.failed);
                assert_eq!((app.told_end, server.told_end), (1, 1));
            }
            CloseReason::DownstreamReset => assert!(app.failed && ended.must_reset()),
            CloseReason::UpstreamReset => assert!(server.failed && ended.must_reset()),
            reason => panic!("{reason}"),
        }
        assert_eq!(ended.first_error.is_some(), ended.must_reset());
        check_beginning(&server, DOWNSTREAM, &down_script, progress.up());
        check_beginning(&app, UPSTREAM, &up_script, progress.down());
    }

    /// The relay as a whole is the state: whoever stops a path half-way loses nothing.
    #[test]
    fn it_can_be_stopped_anywhere_and_go_on(
        down_script in script(false),
        up_script in script(false),
        polls in vec(1usize..5, 0..50),
        order: u64,
    ) {
        let (mut downstream, app) = Scripted::new(DOWNSTREAM, &down_script);
        let (mut upstream, server) = Scripted::new(UPSTREAM, &up_script);
        let progress = Arc::new(Progress::default());
        let mut relay = Relay::new(Arc::clone(&progress), None);
        let whole = async {
            for polls in polls {
                tokio::select! {
                    biased;
                    ended = relay.run(&mut downstream, &mut upstream, PathChoice::Copy) => return ended,
                    () = after(polls) => {}
                }
            }
            relay.run(&mut downstream, &mut upstream, PathChoice::Splice).await
        };
        let ended = run(whole, [&app, &server], order);
        assert_eq!(ended.reason, CloseReason::Done);
        let (app, server) = (app.borrow(), server.borrow());
        assert_eq!((app.told_end, server.told_end), (1, 1));
        check_beginning(&server, DOWNSTREAM, &down_script, progress.up());
        check_beginning(&app, UPSTREAM, &up_script, progress.down());
    }
}

/// Ready when it has been polled more than `polls` times.
async fn after(mut polls: usize) {
    poll_fn(|_| match polls.checked_sub(1) {
        None => Poll::Ready(()),
        Some(left) => {
            polls = left;
            Poll::Pending
        }
    })
    .await;
}

/// Bytes taken from an endless sender and not accepted by a receiver that does this and then nothing more.
fn held_after(mut writes: Vec<Step>) -> usize {
    writes.push(Step::Wait);
    let (sends, takes) = (vec![Step::Move(usize::MAX / 2)], vec![Step::Wait]);
    let script = |reads, writes| Script {
        reads,
        writes,
        lazy: false,
    };
    let (mut downstream, app) = Scripted::new(DOWNSTREAM, &script(sends, vec![]));
    let (mut upstream, server) = Scripted::new(UPSTREAM, &script(takes, writes));
    let mut relay = Relay::new(Arc::default(), None);
    let mut running = pin!(relay.run(&mut downstream, &mut upstream, PathChoice::Copy));
    for _ in 0..100 {
        let poll = running
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        assert!(poll.is_pending());
    }
    app.borrow().given - server.borrow().received.len()
}

#[test]
fn a_slow_receiver_makes_it_hold_little() {
    let everything = Step::Move(usize::MAX);
    assert_eq!(held_after(vec![]), 16 << 10, "at first");
    let quick = vec![everything; 10];
    assert_eq!(held_after(quick.clone()), 512 << 10, "for a quick one");
    let slow = [Step::Move(1), everything].repeat(10);
    assert_eq!(
        held_after([quick, slow].concat()),
        16 << 10,
        "for one that became slow"
    );
}
