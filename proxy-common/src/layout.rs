//! Compile-time proof that no shared type has implicit padding: its size is the sum of its fields.

use crate::{
    Action, Areas, Cell, CellKey, Doubts, FastLink, Hop, KernelSide, KnownRoute, Lane, LaneKey,
    MAX_CANDIDATES, MAX_DEPTH, MemberKey, Membership, OwnKey, PLACES, Passage, Policy, PrefixKey,
    Record, RecordKey, Redirect, Relay, RelaySide, Replies, RuleRef, RuleSet, Seat, SeatKey, Sent,
    Sequence, Sighting, Socket, Space, Traces, WORDS, Wheels,
};

const RULE_SET: usize = WORDS * 8;
const RECORD: usize = 3 * 8 + 16 + 2 + 2 + 3 * 4 + 8 + 8 + 4 + 4 + 16;

const _: () = {
    assert!(size_of::<RuleSet>() == RULE_SET);
    assert!(size_of::<Policy>() == 4 * 4 + 4 * RULE_SET);
    assert!(size_of::<PrefixKey>() == 4 + 4 + 16);
    assert!(size_of::<MemberKey>() == 4 + 4 + 8 + 8);
    assert!(size_of::<Membership>() == 2 * RULE_SET);
    assert!(size_of::<Action>() == 5 * 4);
    assert!(size_of::<Relay>() == 8 + 8 + 2 + 2 + 3 * 4);
    assert!(size_of::<Space>() == 2 + 2);
    assert!(size_of::<Passage>() == 4 + 4);
    assert!(size_of::<Traces>() == 1 + 7 + PLACES);
    assert!(size_of::<FastLink>() == 4 + 4);
    assert!(size_of::<Doubts>() == 64 * 8);
    assert!(size_of::<KnownRoute>() == 6 * 8 + 3 * 4 + 3 * 4);
    assert!(size_of::<Hop>() == 16 + 4 + 4);
    assert!(size_of::<RuleRef>() == 4 + 4);
    assert!(size_of::<Record>() == RECORD);
    assert!(size_of::<Areas>() == MAX_DEPTH * 4);
    assert!(size_of::<CellKey>() == 4 + 4 + 2 + 2);
    assert!(size_of::<Cell>() == MAX_CANDIDATES * 2 + 4);
    assert!(size_of::<OwnKey>() == 16 + 16 + 2 + 2);
    assert!(size_of::<RecordKey>() == 8 + 16 + 2 + 2 + 4);
    assert!(size_of::<Socket>() == 4 + 2 + 2 + 4 * 4 + 16 + RECORD);
    assert!(size_of::<Wheels>() == 2 * (4 + 4));
    assert!(size_of::<SeatKey>() == 4 + 4 + 4);
    assert!(size_of::<Seat>() == 16 + 2 + 2 + 3 * 4);
    assert!(size_of::<Sequence>() == 8 + 4 * 4);
    assert!(size_of::<KernelSide>() == 3 * 8 + (8 + 4 * 4) + 4 + 3 * 4);
    assert!(size_of::<RelaySide>() == 3 * 8 + 4 + 9 * 4);
    assert!(size_of::<Redirect>() == 2 * 64);
    assert!(size_of::<LaneKey>() == 8 + 8);
    assert!(size_of::<Lane>() == 4 + 4);
    assert!(size_of::<Sent>() == 6 * 8 + 4 + 4);
    assert!(size_of::<Sighting>() == 7 * 8 + 3 * 16 + 4 * 2 + 4 * 4 + 16);
    assert!(size_of::<Replies>() == 16 + 3 * 8 + (8 + 4 * 4) + 4 * 4);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        Action, Areas, Cell, CellKey, Doubts, FastLink, Lane, LaneKey, MemberKey, Membership,
        OwnKey, Passage, Policy, PrefixKey, Record, RecordKey, Relay, Replies, RuleSet, Seat,
        SeatKey, Sent, Sighting, Socket, Space, Wheels,
    };

    macro_rules! pod {
        ($($type:ty),+ $(,)?) => {
            $(
                // SAFETY: `repr(C)` of integers and byte arrays: every bit pattern is a value, and the sizes above
                // leave no room for padding.
                unsafe impl aya::Pod for $type {}
            )+
        };
    }

    pod!(
        Action, Areas, Cell, CellKey, Doubts, FastLink, Lane, LaneKey, OwnKey, MemberKey,
        Membership, Passage, Policy, PrefixKey, Record, RecordKey, Relay, Replies, RuleSet, Seat,
        SeatKey, Sent, Sighting, Socket, Space, Wheels,
    );
}
