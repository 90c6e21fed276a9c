//! `sk_lookup`: which connections that arrive at this host go to the relay.
//!
//! The kernel runs it where it looks for a listener: for a SYN, and for the last packet of a handshake by SYN cookie. What
//! is established already never comes here, nor does what a program gave a listener to once. `SK_PASS` without a listener
//! leaves the search to the kernel, `SK_DROP` has it answer by a reset (`inet_lookup_run_sk_lookup()` in
//! `net/ipv4/inet_hashtables.c`).

use aya_ebpf::{
    bindings::bpf_sk_lookup, helpers::generated::bpf_ktime_get_ns, programs::SkLookupContext,
};
use proxy_common::{
    Action, Addr, Arrival, BePort, Counter, Decision, Family, Hit, OwnKey, fail_mode, listener,
    relay, select, verb,
};

use crate::{
    full::was_full,
    globals::has_ingress_interface,
    maps::{LISTENERS, OWN, OWN_FULL, RELAY, SERVICES, count, hit},
    policy::KernelTables,
    relay::is_alive,
};

/// Verdict of a `sk_lookup` program: use the listener that was assigned, or look for one as ever.
pub const PASS: u32 = 1;
/// Verdict of a `sk_lookup` program: there is no listener.
const DROP: u32 = 0;

const IPPROTO_TCP: u32 = 6;
const EEXIST: i32 = -17;

/// Decides about one SYN.
#[inline(always)]
pub fn lookup(ctx: &SkLookupContext) -> u32 {
    let Some(incoming) = Incoming::of(ctx) else {
        return PASS;
    };
    count(Counter::Arrived);
    if incoming.is_exempt() {
        count(Counter::ArrivedOwn);
        return PASS;
    }
    let decision = select(&KernelTables, &incoming);
    if let Decision::Selected(rule, _) = decision {
        hit(Hit::Arrived, rule);
    }
    match decision {
        Decision::Selected(rule, action)
            if action.verb == verb::STEER
                && let Some(given) = given(SERVICES.redirect_sk_lookup(ctx, rule.slot(), 0)) =>
        {
            if given == Given::ByUs {
                count(Counter::ArrivedSteered);
            }
            PASS
        }
        Decision::Selected(rule, action)
            if action.verb == verb::RELAY || action.verb == verb::STEER =>
        {
            match to_relay(ctx, &incoming) {
                Ok(given) => {
                    if given == Given::ByUs {
                        count(Counter::ArrivedRelayed);
                    }
                    PASS
                }
                Err(why) => {
                    count(why);
                    hit(Hit::ArrivedFailed, rule);
                    fail(&action)
                }
            }
        }
        Decision::Selected(_, action) if action.verb == verb::REFUSE => {
            count(Counter::ArrivedRefused);
            DROP
        }
        _ => PASS,
    }
}

/// What stays when the daemon is gone: refuses what must not reach the service past the relay. Where [`lookup`] runs, too,
/// and assigned a listener, that one is used whatever is said here (`BPF_PROG_SK_LOOKUP_RUN_ARRAY` in
/// `include/linux/filter.h`), so neither needs to know of the other.
#[inline(always)]
pub fn guard(ctx: &SkLookupContext) -> u32 {
    let Some(incoming) = Incoming::of(ctx) else {
        return PASS;
    };
    if incoming.is_exempt() {
        return PASS;
    }
    match select(&KernelTables, &incoming) {
        Decision::Selected(_, action)
            if action.verb != verb::DIRECT && action.on_relay_failure == fail_mode::REFUSE =>
        {
            DROP
        }
        _ => PASS,
    }
}

/// Hands the connection to a listener of the relay; the kernel then chooses one of those that share its port.
///
/// No listener is bound to what is looked for, and none needs to be: neither address nor port are compared, and
/// `IP_TRANSPARENT` is not needed. Only the family must be that of the packet. (`bpf_sk_lookup_assign()` in
/// `net/core/filter.c`.)
#[inline(always)]
fn to_relay(ctx: &SkLookupContext, incoming: &Incoming) -> Result<Given, Counter> {
    let Some(relay) = RELAY.get(relay::OWN) else {
        return Err(Counter::FailHeartbeat);
    };
    // SAFETY: no arguments, a plain number out.
    let now = unsafe { bpf_ktime_get_ns() };
    if !is_alive(relay, now) {
        return Err(Counter::FailHeartbeat);
    }
    // It may be a connection of the relay's own to the service, and would come back again and again.
    if was_full(&OWN_FULL, now) {
        return Err(Counter::FailOwn);
    }
    let index = if incoming.family == Family::V4 {
        listener::V4
    } else {
        listener::V6
    };
    given(LISTENERS.redirect_sk_lookup(ctx, index, 0)).ok_or(Counter::FailListener)
}

/// Who has assigned a listener.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    ByUs,
    /// The daemon whose place we take: while both are attached its program runs before ours, and what one program has
    /// assigned another cannot replace unless it says so (`bpf_sk_lookup_assign()` in `net/core/filter.c`).
    Before,
}

/// What became of an attempt to assign a listener; `None`: there was none to assign.
#[inline(always)]
fn given(assigned: Result<(), i32>) -> Option<Given> {
    match assigned {
        Ok(()) => Some(Given::ByUs),
        Err(EEXIST) => Some(Given::Before),
        Err(_) => None,
    }
}

/// Applies a rule's fail mode.
#[inline(always)]
fn fail(action: &Action) -> u32 {
    if action.on_relay_failure == fail_mode::REFUSE {
        count(Counter::FailedRefused);
        DROP
    } else {
        count(Counter::FailedDirect);
        PASS
    }
}

/// A TCP connection that arrives.
pub struct Incoming {
    pub family: u16,
    pub key: OwnKey,
    raw: *mut bpf_sk_lookup,
}

impl Incoming {
    /// `None` for other protocols.
    #[inline(always)]
    pub fn of(ctx: &SkLookupContext) -> Option<Self> {
        let raw = ctx.lookup;
        // SAFETY: the context is valid while the program runs. Volatile, field by field: the verifier knows these only as
        // single accesses, and LLVM would join or choose between them.
        unsafe {
            if (&raw const (*raw).protocol).read_volatile() != IPPROTO_TCP {
                return None;
            }
            let family = (&raw const (*raw).family).read_volatile() as u16;
            // Both forms: LLVM would otherwise choose between the two offsets and load once.
            let v4 = [
                (&raw const (*raw).remote_ip4).read_volatile(),
                (&raw const (*raw).local_ip4).read_volatile(),
            ];
            let v6 = [
                words_at((&raw const (*raw).remote_ip6).cast()),
                words_at((&raw const (*raw).local_ip6).cast()),
            ];
            let [source, dest] = if family == Family::V4 {
                v4.map(Addr::from_v4_word)
            } else {
                v6
            };
            Some(Self {
                family,
                key: OwnKey {
                    source,
                    dest,
                    source_port: BePort((&raw const (*raw).remote_port).read_volatile()),
                    dest_port: BePort::new((&raw const (*raw).local_port).read_volatile() as u16),
                },
                raw,
            })
        }
    }

    /// Whether it is the daemon's own connection, or one to the daemon's listener, or those of the daemon whose place it takes.
    #[inline(always)]
    fn is_exempt(&self) -> bool {
        let own = &self.key;
        // SAFETY: the value means nothing; that there is one does.
        unsafe { OWN.get(own) }.is_some()
            || [relay::OWN, relay::PREDECESSOR].into_iter().any(|whose| {
                RELAY
                    .get(whose)
                    .is_some_and(|relay| relay.listens_on(&own.dest, own.dest_port))
            })
    }
}

impl Arrival for Incoming {
    #[inline(always)]
    fn local(&self) -> Addr {
        self.key.dest
    }

    #[inline(always)]
    fn port(&self) -> BePort {
        self.key.dest_port
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        self.key.source
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        if !has_ingress_interface() {
            return 0;
        }
        // SAFETY: as in `of`; kernels that have no such field are told so before they see this.
        unsafe { (&raw const (*self.raw).ingress_ifindex).read_volatile() }
    }
}

/// # Safety
/// The four words must be there.
#[inline(always)]
unsafe fn words_at(words: *const u32) -> Addr {
    // SAFETY: the caller's word.
    unsafe {
        Addr::from_words([
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ])
    }
}
