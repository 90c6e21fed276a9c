//! The object in the binary against `proxy-common`: same programs, same maps, same sizes. Needs no privileges, and no
//! kernel: aya looks maps and programs up by name at run time only.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in what it is made of too"
)]

use std::collections::BTreeMap;

use aya_obj::{Object, generated::bpf_map_type};
use proxy_common::{
    ABI_VERSION, Action, Areas, COUNTERS, Cell, CellKey, Doubts, FAST_LINK_NUMBERS, FastLink,
    GATES, HOPS, Hit, Hop, KnownRoute, Lane, LaneKey, MAX_HOSTS, MAX_PORTS, MAX_RULES, MAX_SPACES,
    MemberKey, Membership, OwnKey, Passage, Policy, PrefixKey, ROUTES, Record, RecordKey, Redirect,
    Relay, Replies, RuleRef, RuleSet, Seat, SeatKey, Sent, Sighting, Socket, Space, Traces, Wheels,
    listener, names, relay,
};
use proxy_userspace::intercept::OBJECT;

/// Type, key size, value size and, where both sides count on it, entries.
type Shape = (bpf_map_type, usize, usize, Option<usize>);

fn object() -> Object {
    match Object::parse(OBJECT) {
        Ok(object) => object,
        Err(error) => panic!("the binary holds no object: {error}"),
    }
}

/// What user space takes the maps for.
fn shapes() -> BTreeMap<&'static str, Shape> {
    use bpf_map_type::{
        BPF_MAP_TYPE_ARRAY as ARRAY, BPF_MAP_TYPE_HASH as HASH, BPF_MAP_TYPE_LPM_TRIE as LPM_TRIE,
        BPF_MAP_TYPE_PERCPU_ARRAY as PERCPU_ARRAY, BPF_MAP_TYPE_RINGBUF as RINGBUF,
        BPF_MAP_TYPE_SK_STORAGE as SK_STORAGE, BPF_MAP_TYPE_SOCKHASH as SOCKHASH,
        BPF_MAP_TYPE_SOCKMAP as SOCKMAP,
    };
    const INDEX: usize = size_of::<u32>();
    // User space writes descriptors into it.
    const SOCKETS_BY_KEY: Shape = (SOCKHASH, size_of::<LaneKey>(), size_of::<i32>(), None);
    // A key of an LPM trie starts with its length in bits.
    let prefix = INDEX + size_of::<PrefixKey>();
    BTreeMap::from([
        (names::POLICY, (ARRAY, INDEX, size_of::<Policy>(), Some(1))),
        (
            names::PREFIXES,
            (LPM_TRIE, prefix, size_of::<RuleSet>(), None),
        ),
        (
            names::MEMBERS,
            (HASH, size_of::<MemberKey>(), size_of::<Membership>(), None),
        ),
        (names::DESCENDANTS, (HASH, INDEX, INDEX, None)),
        (
            names::ACTIONS,
            (ARRAY, INDEX, size_of::<Action>(), Some(2 * MAX_RULES)),
        ),
        (
            names::RELAY,
            (ARRAY, INDEX, size_of::<Relay>(), Some(relay::COUNT)),
        ),
        (names::HEARTBEAT, (ARRAY, INDEX, size_of::<u64>(), Some(1))),
        (
            names::RECORDS_FULL,
            (ARRAY, INDEX, size_of::<u64>(), Some(1)),
        ),
        (names::OWN_FULL, (ARRAY, INDEX, size_of::<u64>(), Some(1))),
        (names::OURS, (SK_STORAGE, size_of::<i32>(), INDEX, None)),
        (
            names::SOCKETS,
            (SK_STORAGE, size_of::<i32>(), size_of::<Socket>(), None),
        ),
        (
            names::RECORDS,
            (HASH, size_of::<RecordKey>(), size_of::<Record>(), None),
        ),
        (names::APPS, SOCKETS_BY_KEY),
        (names::UPSTREAMS, SOCKETS_BY_KEY),
        (names::ANSWERS, SOCKETS_BY_KEY),
        (
            names::REPLIES,
            (HASH, size_of::<u64>(), size_of::<Replies>(), None),
        ),
        (
            names::LANES,
            (HASH, size_of::<LaneKey>(), size_of::<Lane>(), None),
        ),
        (
            names::SENT,
            (HASH, size_of::<LaneKey>(), size_of::<Sent>(), None),
        ),
        (
            names::REDIRECTS,
            (ARRAY, INDEX, size_of::<Redirect>(), None),
        ),
        (names::REDIRECT_OF, (HASH, size_of::<u64>(), INDEX, None)),
        (names::PAIRS, (SOCKMAP, INDEX, INDEX, None)),
        (names::REDIRECT_EVENTS, (RINGBUF, 0, 0, None)),
        (names::REPLY_EVENTS, (RINGBUF, 0, 0, None)),
        (
            names::COUNTERS,
            (PERCPU_ARRAY, INDEX, size_of::<u64>(), Some(COUNTERS.len())),
        ),
        (
            names::HITS,
            (
                PERCPU_ARRAY,
                INDEX,
                size_of::<u64>(),
                Some((Hit::COUNT * RuleRef::SLOTS) as usize),
            ),
        ),
    ])
}

/// As [`shapes`], the maps for what arrives.
fn shapes_for_arrivals() -> BTreeMap<&'static str, Shape> {
    use bpf_map_type::{
        BPF_MAP_TYPE_ARRAY as ARRAY, BPF_MAP_TYPE_HASH as HASH, BPF_MAP_TYPE_LPM_TRIE as LPM_TRIE,
        BPF_MAP_TYPE_SOCKHASH as SOCKHASH, BPF_MAP_TYPE_SOCKMAP as SOCKMAP,
    };
    const INDEX: usize = size_of::<u32>();
    let prefix = INDEX + size_of::<PrefixKey>();
    BTreeMap::from([
        (
            names::HOSTS,
            (
                HASH,
                size_of::<PrefixKey>(),
                size_of::<Areas>(),
                Some(2 * MAX_HOSTS),
            ),
        ),
        (names::AREAS, (LPM_TRIE, prefix, size_of::<Areas>(), None)),
        (
            names::PORTS,
            (
                HASH,
                size_of::<CellKey>(),
                size_of::<Cell>(),
                Some(2 * MAX_PORTS),
            ),
        ),
        (
            names::CELLS,
            (
                LPM_TRIE,
                INDEX + size_of::<CellKey>(),
                size_of::<Cell>(),
                None,
            ),
        ),
        (
            names::REVERSE_ACTIONS,
            (ARRAY, INDEX, size_of::<Action>(), Some(2 * MAX_RULES)),
        ),
        (
            names::LISTENERS,
            (SOCKMAP, INDEX, INDEX, Some(listener::COUNT)),
        ),
        (
            names::SERVICES,
            (SOCKHASH, INDEX, size_of::<i32>(), Some(2 * MAX_RULES)),
        ),
        (names::OWN, (HASH, size_of::<OwnKey>(), INDEX, None)),
    ])
}

/// As [`shapes`], the maps for what passes through, and for answers to the addresses of clients.
fn shapes_for_transit() -> BTreeMap<&'static str, Shape> {
    use bpf_map_type::{
        BPF_MAP_TYPE_ARRAY as ARRAY, BPF_MAP_TYPE_LRU_HASH as LRU_HASH,
        BPF_MAP_TYPE_PERCPU_ARRAY as PERCPU_ARRAY, BPF_MAP_TYPE_SK_STORAGE as SK_STORAGE,
        BPF_MAP_TYPE_SOCKMAP as SOCKMAP,
    };
    const INDEX: usize = size_of::<u32>();
    let gates = GATES * listener::COUNT;
    BTreeMap::from([
        (
            names::TRANSIT_ACTIONS,
            (ARRAY, INDEX, size_of::<Action>(), Some(2 * MAX_RULES)),
        ),
        (names::GATES, (SOCKMAP, INDEX, INDEX, Some(gates))),
        (
            names::PASSAGE,
            (ARRAY, INDEX, size_of::<Passage>(), Some(1)),
        ),
        (names::ABROAD, (SK_STORAGE, size_of::<i32>(), INDEX, None)),
        (names::RELAYED, (LRU_HASH, size_of::<OwnKey>(), INDEX, None)),
        (
            names::FAST_LINKS,
            (ARRAY, INDEX, size_of::<FastLink>(), Some(FAST_LINK_NUMBERS)),
        ),
        (names::DOUBTS, (ARRAY, INDEX, size_of::<Doubts>(), Some(1))),
        (
            names::KNOWN_ROUTES,
            (PERCPU_ARRAY, INDEX, size_of::<KnownRoute>(), Some(ROUTES)),
        ),
        (
            names::NEXT_HOPS,
            (PERCPU_ARRAY, INDEX, size_of::<Hop>(), Some(HOPS)),
        ),
        (names::FOREIGN, (SK_STORAGE, size_of::<i32>(), INDEX, None)),
        (names::RETURN_MARK, (ARRAY, INDEX, INDEX, Some(1))),
        (names::TRACES, (ARRAY, INDEX, size_of::<Traces>(), Some(1))),
        (
            names::BEGINNINGS,
            (ARRAY, INDEX, INDEX, Some(FAST_LINK_NUMBERS)),
        ),
    ])
}

/// As [`shapes`], the maps of those who look on.
fn shapes_for_watches() -> BTreeMap<&'static str, Shape> {
    use bpf_map_type::{
        BPF_MAP_TYPE_ARRAY as ARRAY, BPF_MAP_TYPE_LRU_HASH as LRU_HASH,
        BPF_MAP_TYPE_PERCPU_ARRAY as PERCPU_ARRAY, BPF_MAP_TYPE_RINGBUF as RINGBUF,
        BPF_MAP_TYPE_SK_STORAGE as SK_STORAGE,
    };
    const NUMBER: usize = size_of::<u32>();
    let sighting = size_of::<Sighting>();
    BTreeMap::from([
        (names::WATCHED, (ARRAY, NUMBER, NUMBER, Some(1))),
        (
            names::UNDER_WAY,
            (SK_STORAGE, size_of::<i32>(), sighting, None),
        ),
        (names::CALLING, (LRU_HASH, size_of::<u64>(), sighting, None)),
        (names::SIGHTINGS, (RINGBUF, 0, 0, None)),
        (
            names::UNSEEN,
            (PERCPU_ARRAY, NUMBER, size_of::<u64>(), Some(1)),
        ),
    ])
}

/// As [`shapes`], the maps for what is rewritten, and for other network namespaces.
fn shapes_for_endpoints() -> BTreeMap<&'static str, Shape> {
    use bpf_map_type::{
        BPF_MAP_TYPE_HASH as HASH, BPF_MAP_TYPE_PERCPU_HASH as PERCPU_HASH,
        BPF_MAP_TYPE_RINGBUF as RINGBUF,
    };
    const NUMBER: usize = size_of::<u32>();
    BTreeMap::from([
        (names::WHEELS, (HASH, NUMBER, size_of::<Wheels>(), None)),
        (
            names::SEATS,
            (HASH, size_of::<SeatKey>(), size_of::<Seat>(), None),
        ),
        (names::MADE, (PERCPU_HASH, NUMBER, size_of::<u64>(), None)),
        (names::UNMADE_EVENTS, (RINGBUF, 0, 0, None)),
        (
            names::SPACES,
            (HASH, size_of::<u64>(), size_of::<Space>(), Some(MAX_SPACES)),
        ),
        (names::SPACE_EVENTS, (RINGBUF, 0, 0, None)),
    ])
}

#[test]
fn the_object_has_exactly_our_maps() {
    let object = object();
    let mut shapes = shapes();
    shapes.extend(shapes_for_arrivals());
    shapes.extend(shapes_for_transit());
    shapes.extend(shapes_for_endpoints());
    shapes.extend(shapes_for_watches());
    assert_eq!(
        shapes.keys().copied().collect::<Vec<_>>(),
        sorted(&names::MAPS)
    );
    for (name, (kind, key, value, entries)) in &shapes {
        let map = object
            .maps
            .get(*name)
            .unwrap_or_else(|| panic!("no map {name}"));
        assert_eq!(map.map_type(), *kind as u32, "type of {name}");
        assert_eq!(map.key_size() as usize, *key, "key of {name}");
        assert_eq!(map.value_size() as usize, *value, "value of {name}");
        if let Some(entries) = entries {
            assert_eq!(map.max_entries() as usize, *entries, "entries of {name}");
        }
    }
    let ours_or_aya = |name: &&String| {
        !shapes.contains_key(name.as_str()) && *name != "AYA_LOGS" && !name.starts_with('.')
    };
    let others: Vec<_> = object.maps.keys().filter(ours_or_aya).collect();
    assert!(
        others.is_empty(),
        "maps that user space does not know: {others:?}"
    );
}

#[test]
fn the_object_has_exactly_our_programs() {
    let object = object();
    let mut found: Vec<_> = object.programs.keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, sorted(&names::PROGRAMS));
}

#[test]
fn names_fit_into_the_kernels_fields() {
    for name in names::MAPS.iter().chain(&names::PROGRAMS) {
        assert!(name.len() <= 15, "{name} would be cut");
    }
}

#[test]
fn the_object_carries_our_version() {
    let section = b".rodata.ABI\0";
    assert!(
        OBJECT
            .windows(section.len())
            .any(|window| window == section),
        "the object does not tell its version"
    );
    let object = object();
    let map = object
        .maps
        .get(".rodata.ABI")
        .expect("a section of its own");
    assert_eq!(map.data(), ABI_VERSION.to_ne_bytes());
}

fn sorted(names: &[&'static str]) -> Vec<&'static str> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names
}
