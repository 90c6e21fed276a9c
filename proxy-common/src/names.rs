//! Names of maps and programs. At most 15 bytes: the kernel cuts object names there (`BPF_OBJ_NAME_LEN`).

/// Array of one [`Policy`](crate::Policy).
pub const POLICY: &str = "POLICY";
/// LPM trie of [`PrefixKey`](crate::PrefixKey) to [`RuleSet`](crate::RuleSet).
pub const PREFIXES: &str = "PREFIXES";
/// Hash of [`MemberKey`](crate::MemberKey) to [`Membership`](crate::Membership).
pub const MEMBERS: &str = "MEMBERS";
/// Hash of a process id to the process id of a rule it descends from.
pub const DESCENDANTS: &str = "DESCENDANTS";
/// Array of [`Action`](crate::Action), two generations of [`MAX_RULES`](crate::MAX_RULES).
pub const ACTIONS: &str = "ACTIONS";
/// Hash of the [`PrefixKey`](crate::PrefixKey) of a single address to [`Areas`](crate::Areas): the same whether it holds ten or ten
/// thousand, which a trie is not.
pub const HOSTS: &str = "HOSTS";
/// LPM trie of [`PrefixKey`](crate::PrefixKey) to [`Areas`](crate::Areas), for all that are not in [`HOSTS`].
pub const AREAS: &str = "AREAS";
/// Hash of the [`CellKey`](crate::CellKey) of a single port to [`Cell`](crate::Cell): as [`HOSTS`] is for addresses.
pub const PORTS: &str = "PORTS";
/// LPM trie of [`CellKey`](crate::CellKey) to [`Cell`](crate::Cell), for all that are not in [`PORTS`].
pub const CELLS: &str = "CELLS";
/// Array of [`Action`](crate::Action) for what arrives, two generations of [`MAX_RULES`](crate::MAX_RULES).
pub const REVERSE_ACTIONS: &str = "REVERSE_ACTIONS";
/// Sockmap of a listener of each family, by [`listener`](crate::listener).
pub const LISTENERS: &str = "LISTENERS";
/// Sockhash of listeners of services, by the slot of a rule's [`Action`](crate::Action) in [`REVERSE_ACTIONS`].
pub const SERVICES: &str = "SERVICES";
/// Hash of [`OwnKey`](crate::OwnKey), as a set: connections of the daemon that are open.
pub const OWN: &str = "OWN";
/// Array of one `u64`: when [`OWN`] last had no room, nanoseconds of `CLOCK_MONOTONIC`.
pub const OWN_FULL: &str = "OWN_FULL";
/// Array of [`Action`](crate::Action) for what passes through, two generations of [`MAX_RULES`](crate::MAX_RULES).
pub const TRANSIT_ACTIONS: &str = "TRANSIT_ACTIONS";
/// Sockmap of the listeners that connections passing through are given to: [`GATES`](crate::GATES) times those of
/// [`listener`](crate::listener).
pub const GATES: &str = "GATES";
/// Array of one [`Passage`](crate::Passage).
pub const PASSAGE: &str = "PASSAGE";
/// Socket storage of `u32`, as a set: sockets with foreign addresses, whose packets must not be routed on. Whom a listener accepts
/// inherits it.
pub const ABROAD: &str = "ABROAD";
/// LRU hash of [`OwnKey`](crate::OwnKey), as a set: connections of which some packet has reached such a socket.
pub const RELAYED: &str = "RELAYED";
/// Array of one [`Traces`](crate::Traces), which user space has in its memory: where such connections may be.
pub const TRACES: &str = "TRACES";
/// Array of [`beginning`](crate::beginning), by the number of an interface.
pub const BEGINNINGS: &str = "BEGINNINGS";
/// Array of [`FastLink`](crate::FastLink), by the number of an interface.
pub const FAST_LINKS: &str = "FAST_LINKS";
/// Array of one [`Doubts`](crate::Doubts): which sources may be addresses of this host.
pub const DOUBTS: &str = "DOUBTS";
/// Per-CPU array of [`KnownRoute`](crate::KnownRoute), by a hash of its question.
pub const KNOWN_ROUTES: &str = "KNOWN_ROUTES";
/// Per-CPU array of [`Hop`](crate::Hop), by a hash of it.
pub const NEXT_HOPS: &str = "NEXT_HOPS";
/// Array of [`Relay`](crate::Relay), by [`relay`](crate::relay).
pub const RELAY: &str = "RELAY";
/// Hash of the cookie of a network namespace to [`Space`](crate::Space).
pub const SPACES: &str = "SPACES";
/// Ring buffer of `u64`: the process that a rule with [`spaces`](crate::Action::spaces) selected in a network namespace without listeners.
pub const SPACE_EVENTS: &str = "SPACE_EVENTS";
/// Array of one `u64`: when the relay was last known to be alive, nanoseconds of `CLOCK_MONOTONIC`.
pub const HEARTBEAT: &str = "HEARTBEAT";
/// Array of one `u64`: when [`RECORDS`] was last found full, nanoseconds of `CLOCK_MONOTONIC`.
pub const RECORDS_FULL: &str = "RECORDS_FULL";
/// Socket storage of `u32`, of [`ours`](crate::ours): sockets of the daemon itself, which are never intercepted. A daemon that takes over shares
/// this map, [`OWN`] and [`RELAY`] with the one that runs, whatever their versions: what they mean does not change.
pub const OURS: &str = "OURS";
/// Socket storage of `u32`, as a set: those of them that have the address of a client, whose packets are not to be routed on.
pub const FOREIGN: &str = "FOREIGN";
/// Array of one `u32`: the mark that has packets delivered to this host.
pub const RETURN_MARK: &str = "RETURN_MARK";
/// Socket storage of [`Socket`](crate::Socket).
pub const SOCKETS: &str = "SOCKETS";
/// Hash of [`RecordKey`](crate::RecordKey) to [`Record`](crate::Record): connections not accepted yet.
pub const RECORDS: &str = "RECORDS";
/// Sockhash of apps' sockets by [`LaneKey`](crate::LaneKey), whose sends [`SHORTCUT`] sees.
pub const APPS: &str = "APPS";
/// Sockhash of upstream sockets, by the [`LaneKey`](crate::LaneKey) of the app whose bytes they take.
pub const UPSTREAMS: &str = "UPSTREAMS";
/// Hash of [`LaneKey`](crate::LaneKey) to [`Lane`](crate::Lane).
pub const LANES: &str = "LANES";
/// Hash of [`LaneKey`](crate::LaneKey) to [`Sent`](crate::Sent).
pub const SENT: &str = "SENT";
/// Sockhash of upstream sockets, by the [`LaneKey`](crate::LaneKey) of the app that they answer; [`REPLY`] sees what
/// arrives on them.
pub const ANSWERS: &str = "ANSWERS";
/// Hash of the cookie of an upstream socket to [`Replies`](crate::Replies).
pub const REPLIES: &str = "REPLIES";
/// Hash of the number of a group to [`Wheels`](crate::Wheels).
pub const WHEELS: &str = "WHEELS";
/// Hash of [`SeatKey`](crate::SeatKey) to [`Seat`](crate::Seat).
pub const SEATS: &str = "SEATS";
/// Per-CPU hash of the number of an endpoint to `u64`: connections to it that the hook chose and that were made.
pub const MADE: &str = "MADE";
/// Ring buffer of endpoints that such a connection could not be made to: the number in the lower half of a word, the error number
/// in the upper.
pub const UNMADE_EVENTS: &str = "UNMADE_EVENTS";
/// Per-CPU array of `u64`, indexed by [`Counter`](crate::Counter).
pub const COUNTERS: &str = "COUNTERS";
/// Per-CPU array of `u64`, indexed by [`Hit`](crate::Hit): what each rule has selected.
pub const HITS: &str = "HITS";

/// Array of [`Redirect`](crate::Redirect), mapped into the daemon's memory.
pub const REDIRECTS: &str = "REDIRECTS";
/// Hash of a socket cookie to the index of the redirect it is the source of.
pub const REDIRECT_OF: &str = "REDIRECT_OF";
/// Sockmap of the sockets of accelerated connections.
pub const PAIRS: &str = "PAIRS";
/// Ring buffer of indices of redirects that want the relay's attention.
pub const REDIRECT_EVENTS: &str = "REDIRECT_EVENTS";
/// Ring buffer of the cookies of upstream sockets whose relay rests and has got a reply.
pub const REPLY_EVENTS: &str = "REPLY_EVENTS";

/// Array of one `u32`, of [`watched`](crate::watched).
pub const WATCHED: &str = "WATCHED";
/// Socket storage of [`Sighting`](crate::Sighting): connections under way that are watched.
pub const UNDER_WAY: &str = "UNDER_WAY";
/// LRU hash of a socket cookie to the [`Sighting`](crate::Sighting) of the connection that it is to be, until a packet of that is sent.
pub const CALLING: &str = "CALLING";
/// Ring buffer of [`Sighting`](crate::Sighting) whose outcome is known.
pub const SIGHTINGS: &str = "SIGHTINGS";
/// Per-CPU array of one `u64`: those that there was no room for.
pub const UNSEEN: &str = "UNSEEN";

/// `cgroup/connect4`.
pub const CONNECT4: &str = "connect4";
/// `cgroup/connect6`.
pub const CONNECT6: &str = "connect6";
/// `cgroup/connect4`, pinned: keeps `refuse` rules in force without the daemon.
pub const GUARD4: &str = "guard4";
/// `cgroup/connect6`, pinned.
pub const GUARD6: &str = "guard6";
/// `cgroup/getpeername4`.
pub const GETPEERNAME4: &str = "getpeername4";
/// `cgroup/getpeername6`.
pub const GETPEERNAME6: &str = "getpeername6";
/// `cgroup/getsockopt`.
pub const GETSOCKOPT: &str = "getsockopt";
/// `sockops`; not named after its section, which would be the same symbol.
pub const TCP_EVENTS: &str = "tcp_events";
/// `sockops`, on the daemon's own cgroup.
pub const OWN_EVENTS: &str = "own_events";
/// `cgroup/connect4`, on the daemon's own cgroup for a moment where the kernel has no `SO_NETNS_COOKIE`.
pub const NETNS: &str = "netns";
/// `raw_tracepoint/sched_process_fork`.
pub const TASK_FORK: &str = "task_fork";
/// `raw_tracepoint/sched_process_exit`.
pub const TASK_EXIT: &str = "task_exit";
/// `sk_lookup`.
pub const REVERSE: &str = "reverse";
/// `sk_lookup`, pinned: keeps `refuse` rules for what arrives in force without the daemon.
pub const REVERSE_GUARD: &str = "reverse_guard";
/// `tc`, ingress.
pub const RETURNS: &str = "returns";
/// `tc`, ingress.
pub const GATEWAY: &str = "gateway";
/// `tc`, ingress, pinned: keeps what the gateway has relayed, or is to refuse, from being routed on without it.
pub const GATEWAY_GUARD: &str = "gateway_guard";
/// `sk_lookup`: has the relay's listeners get SYNs that meet what is left of the last connection of their addresses.
pub const GATEWAY_AGAIN: &str = "gateway_again";
/// `tc`, ingress: the fast path.
pub const ROUTER: &str = "router";
/// `sk_skb/stream_verdict`.
pub const VERDICT: &str = "verdict";

/// `sk_msg`.
pub const SHORTCUT: &str = "shortcut";
/// `sk_skb/stream_verdict`.
pub const REPLY: &str = "reply";
/// `raw_tracepoint`, never attached: the relay runs it with the cookie of an upstream socket and gets a
/// [`Delivery`](crate::Delivery).
pub const DELIVERED: &str = "delivered";
/// `cgroup/connect4`: looks on.
pub const WATCH4: &str = "watch4";
/// `cgroup/connect6`: looks on.
pub const WATCH6: &str = "watch6";
/// `sockops`: tells what becomes of a connection.
pub const WATCH_EVENTS: &str = "watch_events";
/// `cgroup/sock_release`: tells of connections of which no packet was sent.
pub const WATCH_RELEASE: &str = "watch_release";

/// Every map of the object.
pub const MAPS: [&str; 57] = [
    POLICY,
    PREFIXES,
    MEMBERS,
    DESCENDANTS,
    ACTIONS,
    HOSTS,
    AREAS,
    PORTS,
    CELLS,
    REVERSE_ACTIONS,
    LISTENERS,
    SERVICES,
    TRANSIT_ACTIONS,
    GATES,
    PASSAGE,
    ABROAD,
    RELAYED,
    TRACES,
    BEGINNINGS,
    FAST_LINKS,
    DOUBTS,
    KNOWN_ROUTES,
    NEXT_HOPS,
    OWN,
    OWN_FULL,
    RELAY,
    SPACES,
    SPACE_EVENTS,
    HEARTBEAT,
    RECORDS_FULL,
    OURS,
    FOREIGN,
    RETURN_MARK,
    SOCKETS,
    RECORDS,
    APPS,
    UPSTREAMS,
    LANES,
    SENT,
    ANSWERS,
    REPLIES,
    WHEELS,
    SEATS,
    MADE,
    UNMADE_EVENTS,
    COUNTERS,
    HITS,
    REDIRECTS,
    REDIRECT_OF,
    PAIRS,
    REDIRECT_EVENTS,
    REPLY_EVENTS,
    WATCHED,
    UNDER_WAY,
    CALLING,
    SIGHTINGS,
    UNSEEN,
];

/// Every program of the object.
pub const PROGRAMS: [&str; 27] = [
    CONNECT4,
    CONNECT6,
    GUARD4,
    GUARD6,
    GETPEERNAME4,
    GETPEERNAME6,
    GETSOCKOPT,
    TCP_EVENTS,
    OWN_EVENTS,
    SHORTCUT,
    REPLY,
    DELIVERED,
    NETNS,
    TASK_FORK,
    TASK_EXIT,
    REVERSE,
    REVERSE_GUARD,
    RETURNS,
    GATEWAY,
    GATEWAY_GUARD,
    GATEWAY_AGAIN,
    ROUTER,
    VERDICT,
    WATCH4,
    WATCH6,
    WATCH_EVENTS,
    WATCH_RELEASE,
];
