//! Every map, and the typed accesses that more than one hook needs.
//!
//! Capacities are upper bounds; the daemon sets the ones that its configuration decides.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage,
        SockHash, SockMap,
    },
    helpers::generated::{bpf_sk_storage_get, bpf_skc_to_mptcp_sock},
    macros::btf_map,
};
use proxy_common::{
    Action, Areas, COUNTERS as COUNTER_NAMES, Cell, CellKey, Counter, Doubts, FAST_LINK_NUMBERS,
    FastLink, GATES as GATE_COUNT, HOPS, Hit, Hop, KnownRoute, Lane, LaneKey, MAX_HOSTS, MAX_PORTS,
    MAX_RULES, MAX_SPACES, MemberKey, Membership, OwnKey, Passage, Policy, PrefixKey, ROUTES,
    Record, RecordKey, Redirect, Relay, Replies, RuleRef, RuleSet, Seat, SeatKey, Sent, Sighting,
    Socket, Space, Traces, Wheels, listener, ours, relay,
};

use crate::{globals::has_mptcp, inherited::InheritedStorage};

#[btf_map]
pub static POLICY: Array<Policy, 1> = Array::new();

#[btf_map]
pub static PREFIXES: LpmTrie<PrefixKey, RuleSet, 262_144> = LpmTrie::new();

#[btf_map]
pub static MEMBERS: HashMap<MemberKey, Membership, 16_384, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

// Preallocated: it is written from a tracepoint, where older kernels refuse to allocate.
#[btf_map]
pub static DESCENDANTS: HashMap<u32, u32, 16_384> = HashMap::new();

#[btf_map]
pub static ACTIONS: Array<Action, { 2 * MAX_RULES }> = Array::new();

// Two generations.
#[btf_map]
pub static HOSTS: HashMap<PrefixKey, Areas, { 2 * MAX_HOSTS }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
pub static AREAS: LpmTrie<PrefixKey, Areas, 262_144> = LpmTrie::new();

#[btf_map]
pub static PORTS: HashMap<CellKey, Cell, { 2 * MAX_PORTS }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

// Several prefixes of ports for a range, and two generations.
#[btf_map]
pub static CELLS: LpmTrie<CellKey, Cell, 1_048_576> = LpmTrie::new();

#[btf_map]
pub static REVERSE_ACTIONS: Array<Action, { 2 * MAX_RULES }> = Array::new();

#[btf_map]
pub static LISTENERS: SockMap<{ listener::COUNT }> = SockMap::new();

#[btf_map]
pub static SERVICES: SockHash<u32, { 2 * MAX_RULES }> = SockHash::new();

#[btf_map]
pub static TRANSIT_ACTIONS: Array<Action, { 2 * MAX_RULES }> = Array::new();

#[btf_map]
pub static GATES: SockMap<{ GATE_COUNT * listener::COUNT }> = SockMap::new();

#[btf_map]
pub static PASSAGE: Array<Passage, 1> = Array::new();

#[btf_map]
pub static ABROAD: InheritedStorage<u32> = InheritedStorage::new();

#[btf_map]
pub static RELAYED: LruHashMap<OwnKey, u32, 65_536> = LruHashMap::new();

#[btf_map]
pub static TRACES: Array<Traces, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
pub static BEGINNINGS: Array<u32, FAST_LINK_NUMBERS> = Array::new();

// By number, although most are of other interfaces: a hash is looked up in twice for each packet, at three times the cost.
#[btf_map]
pub static FAST_LINKS: Array<FastLink, FAST_LINK_NUMBERS> = Array::new();

#[btf_map]
pub static DOUBTS: Array<Doubts, 1> = Array::new();

#[btf_map]
pub static KNOWN_ROUTES: PerCpuArray<KnownRoute, ROUTES> = PerCpuArray::new();

#[btf_map]
pub static NEXT_HOPS: PerCpuArray<Hop, HOPS> = PerCpuArray::new();

#[btf_map]
pub static OWN: HashMap<OwnKey, u32, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static OWN_FULL: Array<u64, 1> = Array::new();

#[btf_map]
pub static RELAY: Array<Relay, { relay::COUNT }> = Array::new();

#[btf_map]
pub static SPACES: HashMap<u64, Space, MAX_SPACES, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static SPACE_EVENTS: RingBuf<u64, 4096> = RingBuf::new();

#[btf_map]
pub static HEARTBEAT: Array<u64, 1> = Array::new();

#[btf_map]
pub static RECORDS_FULL: Array<u64, 1> = Array::new();

#[btf_map]
pub static OURS: SkStorage<u32> = SkStorage::new();

#[btf_map]
pub static FOREIGN: SkStorage<u32> = SkStorage::new();

#[btf_map]
pub static RETURN_MARK: Array<u32, 1> = Array::new();

#[btf_map]
pub static SOCKETS: SkStorage<Socket> = SkStorage::new();

#[btf_map]
pub static RECORDS: HashMap<RecordKey, Record, 16_384> = HashMap::new();

#[btf_map]
pub static APPS: SockHash<LaneKey, 16_384> = SockHash::new();

#[btf_map]
pub static UPSTREAMS: SockHash<LaneKey, 16_384> = SockHash::new();

#[btf_map]
pub static LANES: HashMap<LaneKey, Lane, 16_384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static SENT: HashMap<LaneKey, Sent, 16_384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static ANSWERS: SockHash<LaneKey, 16_384> = SockHash::new();

#[btf_map]
pub static REPLIES: HashMap<u64, Replies, 16_384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static WHEELS: HashMap<u32, Wheels, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

// Of every group the table in force and the ones before it.
#[btf_map]
pub static SEATS: HashMap<SeatKey, Seat, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static MADE: PerCpuHashMap<u32, u64, 16_384, { BPF_F_NO_PREALLOC as usize }> =
    PerCpuHashMap::new();

#[btf_map]
pub static UNMADE_EVENTS: RingBuf<u64, 65_536> = RingBuf::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { COUNTER_NAMES.len() }> = PerCpuArray::new();

#[btf_map]
pub static HITS: PerCpuArray<u64, { (Hit::COUNT * RuleRef::SLOTS) as usize }> = PerCpuArray::new();

#[btf_map]
pub static REDIRECTS: Array<Redirect, 16_384, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
pub static REDIRECT_OF: HashMap<u64, u32, 16_384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
pub static PAIRS: SockMap<16_384> = SockMap::new();

/// Room for four events of each redirect, 16 bytes each. There are at most three that the relay has not heard of: that credit is
/// used up, that bytes were passed, that some are out of place.
#[btf_map]
pub static REDIRECT_EVENTS: RingBuf<u64, 1_048_576> = RingBuf::new();

/// Room for one event of each lane there can be, and for one more of its predecessor: 16 bytes each.
#[btf_map]
pub static REPLY_EVENTS: RingBuf<u64, 524_288> = RingBuf::new();

#[btf_map]
pub static WATCHED: Array<u32, 1> = Array::new();

#[btf_map]
pub static UNDER_WAY: SkStorage<Sighting> = SkStorage::new();

// Sockets of failed calls that are kept for long make room for others.
#[btf_map]
pub static CALLING: LruHashMap<u64, Sighting, 4096> = LruHashMap::new();

/// Room for some seven thousand.
#[btf_map]
pub static SIGHTINGS: RingBuf<Sighting, 1_048_576> = RingBuf::new();

#[btf_map]
pub static UNSEEN: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    add_one(COUNTERS.get_ptr_mut(counter as u32));
}

/// Counts what a rule has done.
#[inline(always)]
pub fn hit(hit: Hit, rule: RuleRef) {
    add_one(HITS.get_ptr_mut(hit.index(rule)));
}

#[inline(always)]
pub fn add_one(counter: Option<*mut u64>) {
    if let Some(value) = counter {
        // SAFETY: the kernel returned a pointer to this CPU's slot; programs of these types do not migrate while
        // they run. One that interrupts us between read and write costs a count, nothing else.
        unsafe { *value += 1 };
    }
}

/// What hangs on the MPTCP socket that a subflow belongs to, made if there is none. The app holds that socket while the
/// `connect` hook sees its subflow, so what the app asks (`getpeername`, `SO_ORIGINAL_DST`) must be answered from there.
#[inline(always)]
pub fn mptcp_socket_of(subflow: *mut bpf_sock) -> Option<&'static mut Socket> {
    if !has_mptcp() || subflow.is_null() {
        return None;
    }
    // SAFETY: the helper takes any socket and returns null for one that is no subflow; the storage lives as long as the
    // MPTCP socket, which outlives its subflow.
    unsafe {
        let socket = bpf_skc_to_mptcp_sock(subflow.cast());
        if socket.is_null() {
            return None;
        }
        let map = ptr::from_ref(&SOCKETS).cast_mut().cast();
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), create)
            .cast::<Socket>()
            .as_mut()
    }
}

/// Whether the daemon marked a socket as its own before it called `connect()`, or the daemon did whose place it takes.
#[inline(always)]
pub fn is_ours(sk: *mut bpf_sock) -> bool {
    // SAFETY: as in `socket_of`.
    !sk.is_null()
        && unsafe {
            let map = ptr::from_ref(&OURS).cast_mut().cast();
            bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), 0)
                .cast::<u32>()
                .as_ref()
                .is_some_and(|word| *word == ours::OWN)
        }
}

/// Whether a socket has the address of a client; never for what is no full socket. (From `tc`: kernel 5.10 for sockets that a look-up
/// found.)
#[inline(always)]
pub fn is_foreign(sk: *mut bpf_sock) -> bool {
    // SAFETY: `sk` comes from a look-up of the running program, which has compared it with null and holds it.
    unsafe {
        let map = ptr::from_ref(&FOREIGN).cast_mut().cast();
        !bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), 0).is_null()
    }
}

/// What hangs on a socket, from hooks whose context has a socket pointer but is no `SockAddrContext`.
#[inline(always)]
pub fn socket_of(sk: *mut bpf_sock) -> Option<&'static mut Socket> {
    stored(&raw const SOCKETS, sk)
}

/// As [`socket_of`], of any map.
#[inline(always)]
pub fn stored<T>(map: *const SkStorage<T>, sk: *mut bpf_sock) -> Option<&'static mut T> {
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` comes from the context of the running program and the verifier has seen the null check; the
    // storage lives as long as the socket, which outlives the program run.
    unsafe {
        bpf_sk_storage_get(map.cast_mut().cast(), sk.cast(), ptr::null_mut(), 0)
            .cast::<T>()
            .as_mut()
    }
}
