//! culvert: a transparent proxy for Linux that is accelerated by the kernel.
//!
//! # One connection
//!
//! 1. An app calls `connect()`. The hook in `proxy-ebpf` asks [`proxy_common::decide()`]: no rule, or a rule that says direct,
//!    and the kernel goes on as if we were not there; refuse, and the call fails.
//! 2. For a connection to be relayed it first makes sure that the relay can answer: alive (heartbeat), in the same network
//!    namespace, with a listener of the family and room for the record. Otherwise the rule's fail mode is applied.
//! 3. It hangs the original destination on the socket (socket storage, which dies with the socket) and rewrites the
//!    address to our listener.
//! 4. `TCP_CONNECT_CB` runs when the source port is chosen and the SYN is not yet built. It publishes the record under the
//!    tuple that the relay will see, so that accept can never come before it.
//! 5. A worker's `listener` accepts, and `connection` takes the record, finds the [`routes`] of the rule's generation, dials
//!    the [`upstream`], where it is a [`group`] an endpoint of it, and lets [`relay`] move the bytes.
//! 6. The close record says what happened ([`record`], [`close`]).
//!
//! In a network namespace that is not the daemon's the second step needs listeners there, which `proxy`'s spaces open for containers that
//! rules name. The record is found by the namespace as well, and which one that is the listener tells that accepted.
//!
//! A rule with `path = "rewrite"` needs no more than the first two steps: the hook draws an endpoint of the group
//! ([`proxy_common::draw()`]) and rewrites the address to that. Where there is none for the socket it goes on with step 3.
//!
//! # One connection that arrives
//!
//! 1. The kernel looks for a listener for a SYN. `reverse` in `proxy-ebpf` asks [`proxy_common::select()`]: no rule, or one that says
//!    direct, and the kernel goes on looking; refuse, and it answers by a reset.
//! 2. For one to be relayed it assigns our listener, which is found in a sockmap and is bound to loopback. The accepted socket has
//!    the addresses that the client sees.
//! 3. `origin` tells it from one that an app opened by that local address, and asks the same function over the same tables in
//!    memory which rule it was. From there on its life is that of any other connection.
//!    Where its rule has names, [`peek`] first looks for the one that the client asks for, and [`routes`] says where that leads.
//!    A rule that is steered needs none of this: the listener that is assigned is the service's own.
//! 4. When the relay dials the service, `own_events` registers the tuple of its SYN before that leaves; `reverse` lets it pass.
//!
//! # One connection that passes through
//!
//! 1. A packet comes in by an interface that rules name. `gateway` in `proxy-ebpf` looks for a socket of its addresses: that gets the
//!    packet. For a SYN without one it asks [`proxy_common::transit()`]: no rule, or one that says direct, and the packet is routed as
//!    ever; refuse, and it is dropped.
//! 2. For one to be relayed it assigns a listener of a worker, and marks the packet. Where a packet goes is not up to its socket:
//!    [`delivery`] has what is marked routed to this host.
//! 3. The accepted socket has the client's address and the server's. `origin` knows it by the listener that it came in by, and asks the
//!    same function over the same tables in memory which rule it was.
//! 4. Where the server is to see the client's address, the program has its answers get here as well, on every interface that
//!    they may come in by.
//! 5. When a socket is gone its packets are not routed on: see `gateway` for what remembers it.
//!
//! What no rule selects is the kernel's to route, or `router`'s in `proxy-ebpf`, where that was asked for: it runs last, and leaves
//! to the kernel whatever takes thought.
//!
//! # Layers
//!
//! | layer | modules | may know |
//! |---|---|---|
//! | words | [`rule`], [`close`], [`clock`], [`balance`], [`lock`], [`netlink`], [`netns`] | nothing of ours |
//! | pieces | [`policy`], [`routes`], [`record`], [`socket`], [`cgroup`], [`process`], [`proxy_protocol`], [`watch`], [`relay`], [`peek`], [`delivery`], [`netfilter`] | words, and pieces named in their heading |
//! | kernel and network | [`intercept`] (the only user of aya), [`upstream`] | the above |
//! | groups | [`group`] | words and pieces |
//! | threads | [`live`], [`shared`], `origin`, `connection`, `listener`, [`worker`] | the above; the kernel side only through [`shared::OriginalDst`] and [`upstream::Exempt`] |
//! | whole | [`proxy`] (start and stop order), [`drain`], `pulse`, `explain`, `service`, [`config`] | everything below |
//! | commands | [`daemon`], [`exec`], `run_command`, `observe`, [`commands`], [`cli`] | everything |
//!
//! # Decisions, and what was rejected
//!
//! - **Rules as bit sets.** Every table answers with the set of rules that one property allows, the sets are
//!   intersected, the lowest bit decides: ten rules cost what two hundred cost. Walking the rules in order would have
//!   made `connect()` slower with every line of the file.
//! - **Generations in the keys.** A reload writes a new generation beside the old one and switches one word. Maps of maps
//!   would do too, but need the inner maps' shapes twice and cost a look-up more.
//! - **Aliases for weights in the kernel.** A hook cannot go through endpoints, nor take turns or count connections that it never
//!   hears of again, so it draws by weight: a seat for each endpoint, one or two look-ups, exact. A table of Maglev's would need a
//!   hundred slots for each unit of weight, written anew with every change of health, for a hash of a source port that is not
//!   chosen yet. Each change is a table of its own beside the one in force, and one word that switches.
//! - **`auto` never rewrites.** The relay hides a dead endpoint behind the next one, writes records and looks at latency. Who
//!   does without should know.
//! - **Socket storage, not an LRU.** A record in an LRU map can be evicted while its connection lives, and one in a plain
//!   map leaks when a `connect()` fails before a port is chosen. What hangs on the socket does neither.
//! - **Own sockets are marked one by one** before they connect. A user id, a mark or a cgroup would exempt others too, or
//!   not ourselves.
//! - **No record for what arrives.** The kernel could leave a note of the rule under the tuple of each SYN. Nobody would take those
//!   of handshakes that never end, so a flood of SYNs would fill the map; looking the rule up once more costs less than a system
//!   call. A reload in between is no matter: the newest policy that has the relay take the connection decides.
//! - **One trie of areas, one of ports.** A binding has an address prefix and a range of ports, and the most specific decides.
//!   Every prefix that a rule lists knows those around it, and has ports of its own; a look-up goes from the inside out, which
//!   is a step or two however many bindings there are. Repeating the ports of wide prefixes in narrow ones would make one
//!   look-up of it, and tables that grow with the square of the file. Single addresses are in a hash, since a trie of thousands is deep.
//! - **The daemon's own SYN is told by its tuple**, which is all that `sk_lookup` sees, and is published by a `sockops` program when the
//!   port is chosen and the SYN not yet built. To bind each socket first would cost calls and ports.
//! - **A client's address is borrowed, not its port taken.** A socket bound to a port keeps the kernel from choosing that port for any
//!   other, so with many clients the host could open no connection. The kernel is asked to choose from a range of one instead. What brings
//!   answers back is the narrowest rule that does: by the service's address where that is loopback, by a mark that its socket inherits
//!   elsewhere on this host, and by a look-up of the socket for other hosts, since only that tells connections of the same client apart.
//! - **Names are peeked at, and left in the queue.** To read them and to hand on what was read would be a second way for the first bytes
//!   into every path of the relay, and `sockmap` may only be given a socket that nobody has read from in part. Looking again from the
//!   beginning costs a copy of some hundred bytes.
//! - **A `ClientHello` is read, not judged**: `rustls` would refuse those of old clients, which are the server's to refuse.
//! - **A guard of its own for `refuse`.** Pinning the whole set of hooks would leave connections of `direct` rules being sent to
//!   a dead port until somebody noticed. The guard only refuses, and needs no sign from the other programs: a connection
//!   that still shows its own destination was not relayed.
//! - **A sidecar's guard stands in the cgroup.** A pin would need a bpffs of the host's that can be written to, and a name in it that no other
//!   pod has. What is attached without a link stays as long as the cgroup does, which is just as long as it is needed; it stays at an
//!   orderly end, too, since a container that ends is started again. To take it off, the next one needs its descriptor, and so
//!   `CAP_SYS_ADMIN` for one look.
//! - **The pod is its cgroup.** Attaching to each container as it appears would miss what it opens until then. With a namespace of its
//!   own a process cannot tell where it is in the host's hierarchy; but it is listed there, by a number that only it can have.
//! - **Listeners go into a container's namespace, not packets out of it.** Sending a connection to the daemon's namespace would need an
//!   address there that the container can reach, and so routes, firewall rules and a port on a network that others see. A listener on
//!   the container's own loopback needs nothing and is seen by nobody else. It holds the namespace, though; hence the look for who is
//!   left in it. Whether a process is the last one there nothing tells, so processes are looked at rather than events believed.
//! - **One thread enters namespaces, and comes back.** The capability for that is the mightiest of all and must not be where bytes of
//!   strangers are; and a thread that stayed would hold the namespace. Sockets that it makes belong to where they were made, whoever
//!   uses them.
//! - **A takeover is an overlap.** The new daemon attaches its own hooks beside the old one's, which run first, and the old one ends
//!   as it always does. Each marks and looks up own sockets in the same two maps, and the new one is told the listeners of the old
//!   one; that is all they have to know of each other. Putting the new programs in the old links would need no second set of hooks,
//!   but the old ones are still needed for what they have redirected, and an old daemon that detached its links would detach
//!   the new one. Handing over listeners would tie both to one form of records.
//! - **What is in the sockmap stays in it** as long as the connection lives, also when the kernel refuses the other socket.
//!   Taking a socket out again throws away what the program has passed meanwhile.
//! - **Replies take the shortcut only where a rule says so** (`shortcut-both-ways`). The kernel can put them straight into the app's
//!   receive queue. But what is there is not in the TCP queue: `splice()` out of the socket never sees it, closing with unread
//!   bytes sends FIN for RST, and no hook can tell who depends on that. Order needs no mode and no barrier towards the app:
//!   a reply goes past the relay only when the app has read all that ever came through it.
//! - **A relay without work rests.** The kernel wakes whoever polls a socket for reading, also when a program has sent the bytes
//!   elsewhere; of an exchange by the sockmap that was a seventh, of one past the relay a fifth. So the relay then polls those sockets
//!   for writing only, and the programs tell when they pass bytes to it after all. A ring does that which has room for every event
//!   there can be; a timer that looks now and then would make the first large answer late.
//! - **Paths are chosen by measuring, per kind of connection.** Which path is cheapest differs from kernel to kernel and from
//!   processor to processor, and between messages and bulk; no version number tells. Measured is the time on one core, with app,
//!   relay and server on it: that is processor time including the kernel's own threads, which nothing else accounts for. A
//!   file with the result would save later starts half a second in the background, and be something that is left behind.
//! - **A group is one lock**, taken some times per connection and for less than a microsecond. Endpoints of each worker's own would
//!   need none, but limits would hold per worker, turns would not come round, and a failure would have to happen to each worker.
//!   What is decided under the lock is pure ([`group::roster`]): it is told the time, and tests write it down.
//! - **Who is ejected by connections is limited, who is turned down by checks is not.** Connections that fail may fail for reasons of our
//!   own, and then at all endpoints; `panic` is for that. Checks were asked for and are believed. An endpoint that is down is not tried while
//!   another one is up, not even when that one is full: its connections wait.
//! - **What is drained is known where it is decided.** A group passes a drained endpoint over; a drained binding is a rule that says
//!   direct, compiled in the place of the other. Neither is written into the configuration, which stays the file's. Connections are
//!   found, to be counted and reset, in the list of those that are open ([`live`]): one lock more for each, which a counter for each
//!   binding and endpoint would need as well, and which is there for whatever else is to be done to single connections.
//! - **The heartbeat stands for all workers**: it is written by the main thread, but only while every worker's runtime turns.
//! - **A rule and a route for what passes through.** A program on the ingress can say which socket a packet is for, not that it is for this
//!   host: the kernel looks up the route nevertheless. Nothing that a program may change has it do without (a changed packet type, a
//!   redirect to loopback and a metadata route were no way), and addresses that are rewritten would be missing on the accepted socket.
//!   So there are two things that outlive a kill, tagged and locked as [`delivery`] says.
//! - **Only a SYN makes a connection ours, and a socket keeps it so.** A table of connections would have to be kept right by timers and
//!   would fill in a flood; sockets are there anyway. What is remembered beside them are those that had one, so that they are not
//!   routed on without: the kernel resets them when the daemon is killed, and a reset can be lost.
//! - **What is refused are beginnings.** To drop everything that goes to such a port would cut connections that were open before the rule,
//!   which no hook ever saw, and have every packet there matched against the rules. Without its SYN no connection comes about.
//! - **Traces fade, and a flood's soon.** A SYN has to leave one, since nothing else tells the packet that ends the handshake, and a flood
//!   leaves many. To begin a period is to go through the connections that are open, which may be done every minute if need be.
//! - **Packets are assigned even where their socket would be found.** The mark alone lets the kernel keep the route in the socket, which is
//!   a look-up less; but then a rule that somebody removes has relayed packets sent on to the server. With a socket they are dropped.
//! - **One listener per worker for what passes through**, each on a port of its own, chosen by a hash of the addresses: a packet
//!   cannot be assigned to one of several that share a port before kernel 6.6, and the end of a handshake by SYN cookie has to find the
//!   listener that began it. Choosing by core would leave all to one where an interface has one queue.
//! - **The fast path asks for the way back only where the kernel would**, since that is a fourth of all that it costs. Where `rp_filter` is off,
//!   own addresses are what is left to look for, and a bit for each hash of one tells nearly all other sources from them. The kernel tells
//!   of changed addresses, and `rp_filter` is looked at once a second: a copy of routes kept in the same way would send packets where no
//!   route leads any more.
//! - **It writes hardware addresses itself, but not always.** Past the kernel's neighbours a packet costs less, but nobody would ever ask again
//!   whether they are still there. So about every second one packet to each, on each core, goes by the kernel's.
//! - **It rests while netfilter has rules**, also when they come later. A firewall that is switched on and does not see the packets is worse than
//!   a slow one.
//! - **Who watches hangs on sockets, not on calls.** `culvert watch` sees the call in the hook and the outcome in the states of the socket,
//!   with programs that detach by themselves and cost nobody else anything. Probes and `fexit` would tell what `connect()` returned, but
//!   kernels may lack them or refuse them, and a tracepoint of a system call slows down every call of every process. So a call that
//!   sends no packet is told of when its socket is closed, and its error is a guess that is called one.
//! - **One runtime per core, no work stealing.** A connection stays on the core that accepted it; buffers are per thread and
//!   used only while bytes wait, which is what lets ten thousand idle connections cost little.

mod access_log;
pub mod admin;
mod arguments;
pub mod balance;
pub mod cgroup;
pub mod cli;
pub mod clock;
pub mod close;
pub mod commands;
pub mod config;
mod connection;
pub mod daemon;
pub mod delivery;
pub mod demo;
pub mod doctor;
pub mod drain;
pub mod exec;
mod explain;
pub mod failure;
pub mod forwarding;
pub mod group;
pub mod heap;
pub mod intercept;
mod listener;
pub mod live;
pub mod lock;
pub mod metrics;
pub mod netfilter;
pub mod netlink;
pub mod netns;
mod observe;
mod origin;
mod paint;
pub mod peek;
pub mod plan;
pub mod policy;
mod privileges;
pub mod process;
pub mod proxy;
pub mod proxy_protocol;
mod pulse;
pub mod record;
pub mod relay;
pub mod resolve;
pub mod routes;
pub mod rule;
mod run_command;
mod service;
pub mod shared;
pub mod socket;
pub mod status;
mod top;
pub mod upstream;
pub mod watch;
pub mod worker;
