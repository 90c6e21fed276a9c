//! The kernel side as the rest of the daemon sees it: load, write policies, attach, detach.
//!
//! The only module that knows aya. What it loads and attaches is owned by this process: when it ends, however it
//! ends, the kernel detaches everything, except the guard of rules with `on_relay_failure = "refuse"`, which is
//! pinned for exactly that reason (see [`guard`]).

mod arrivals;
mod btf;
mod error;
mod events;
mod gateway;
pub mod guard;
mod guarding;
mod handles;
mod hits;
pub mod ingress;
mod marking;
mod memory;
mod namespace;
mod object;
mod predecessor;
mod readiness;
mod redirects;
mod returns;
mod router;
mod shortcut;
mod sightings;
mod spaces;
pub mod standing;
pub mod survey;
mod syscall;
mod tables;
mod traces;
pub mod trial;
mod wheels;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::TcpListener,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, CgroupSockopt, RawTracePoint, SockOps,
        cgroup_sock_addr::CgroupSockAddrLink,
    },
};
use proxy_common::{Relay, RuleRef, names, relay};

pub use error::InterceptError;
pub use events::Events;
pub use handles::{Counters, Exempter, Heartbeat, Records};
pub use hits::Hits;
pub use object::{Features, LogReader, MapShape, MissingFeature, OBJECT, map_shapes};
pub use predecessor::{Predecessor, PredecessorError};
pub use redirects::{Redirects, prove as prove_redirects};
pub use shortcut::Lanes;
pub use sightings::{Scope, Sightings};
pub use spaces::Spaces;
pub use traces::Trail;
pub use wheels::Wheels;

use tokio::sync::Notify;

use crate::{policy::Compiled, relay::shortcut::Proofs, rule::IngressHook};
use arrivals::{Arrivals, Services};
use error::{attach_error, load_error};
use guard::Guard;
use ingress::Ingress;
use marking::{Marking, Ports};
use standing::Standing;

/// What the configuration decides about the kernel side.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Records of connections that the relay has not accepted yet, at most.
    pub max_pending: u32,
    /// Connections of the daemon itself, at most.
    pub max_own: u32,
    /// Whether faults in the hooks are logged one by one (`debug` level).
    pub log_faults: bool,
    /// How programs are attached to the ingress of interfaces.
    pub ingress: IngressHook,
    /// What the verdict program does about bytes that TCP brings again.
    pub overlap: Overlap,
}

impl Settings {
    /// For programs that nobody's connections reach.
    const UNCONFIGURED: Self = Self {
        max_pending: 1,
        max_own: 1,
        log_faults: false,
        ingress: IngressHook::Auto,
        overlap: Overlap::Cut,
    };
}

/// What the verdict program does about bytes that a retransmission brings again in front of new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    /// It cuts them off.
    #[default]
    Cut,
    /// It delivers them again, as the kernel does without it. For tests that show what the cutting is good for; neither
    /// configuration nor command line can ask for it.
    Deliver,
}

/// The loaded programs and maps.
pub struct Interceptor {
    ebpf: Ebpf,
    tables: tables::PolicyTables,
    follows_tasks: bool,
    office: shortcut::Office,
    /// Of the `connect` hooks; dropping them detaches.
    connect: Vec<CgroupSockAddrLink>,
    arrivals: Arrivals,
    ingress: Ingress,
    returns: returns::Returns,
    gateway: gateway::Gateway,
    router: router::Router,
    services: Services,
    guard: Option<Guard>,
    standing: Option<Standing>,
    relays: handles::Relays,
    marking: Arc<Marking>,
    /// The daemon whose place we take, until it has ended.
    predecessor: Option<u32>,
}

const SOCK_ADDR: [&str; 4] = [
    names::CONNECT4,
    names::CONNECT6,
    names::GETPEERNAME4,
    names::GETPEERNAME6,
];

/// The programs that follow processes, with their tracepoints.
const TASK_EVENTS: [(&str, &str); 2] = [
    (names::TASK_EXIT, "sched_process_exit"),
    (names::TASK_FORK, "sched_process_fork"),
];

impl Interceptor {
    /// Loads programs and maps; some of these are shared with a daemon whose place this one takes. Nothing is attached yet, and
    /// there is no policy.
    ///
    /// # Errors
    /// When the kernel refuses the object: too old (before 5.8), or without the privileges.
    pub fn load(
        settings: Settings,
        features: &Features,
        predecessor: Option<&Predecessor>,
    ) -> Result<Self, InterceptError> {
        let shared = predecessor.map(Predecessor::shared).unwrap_or_default();
        let mut ebpf = object::load(settings, features, &shared)?;
        let mut relays = handles::Relays::new(&ebpf)?;
        if let Some(predecessor) = predecessor {
            relays.set(relay::PREDECESSOR, &predecessor.listens())?;
        }
        let tables = tables::PolicyTables::take(&mut ebpf)?;
        let services = Services::take(&ebpf)?;
        let mut interceptor = Self {
            ebpf,
            tables,
            follows_tasks: false,
            office: shortcut::Office::default(),
            connect: Vec::new(),
            arrivals: Arrivals::default(),
            ingress: Ingress::by(settings.ingress),
            returns: returns::Returns::default(),
            gateway: gateway::Gateway::default(),
            router: router::Router::default(),
            services,
            guard: None,
            standing: None,
            relays,
            marking: Arc::default(),
            predecessor: predecessor.map(Predecessor::pid),
        };
        interceptor.marking.expect_others(predecessor.is_some());
        for name in SOCK_ADDR {
            let program: &mut CgroupSockAddr = interceptor.program(name)?;
            program.load().map_err(load_error(name))?;
        }
        let program: &mut CgroupSockopt = interceptor.program(names::GETSOCKOPT)?;
        program.load().map_err(load_error(names::GETSOCKOPT))?;
        let program: &mut SockOps = interceptor.program(names::TCP_EVENTS)?;
        program.load().map_err(load_error(names::TCP_EVENTS))?;
        Ok(interceptor)
    }

    /// The number of the network namespace that a listener of ours is in.
    ///
    /// # Errors
    /// When the kernel does not tell it.
    pub fn netns_cookie(&mut self, listener: &TcpListener) -> Result<u64, InterceptError> {
        namespace::cookie(&mut self.ebpf, &self.relays, listener)
    }

    /// Tells the hooks where the relay listens.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_relay(&mut self, relay: &Relay) -> Result<(), InterceptError> {
        self.relays.set(relay::OWN, relay)?;
        if relay.process != 0 {
            self.marking.know(relay.heartbeat_timeout);
        }
        Ok(())
    }

    /// The daemon whose place we have taken has ended.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn forget_predecessor(&mut self) -> Result<(), InterceptError> {
        self.predecessor = None;
        self.relays.set(relay::PREDECESSOR, &Relay::default())?;
        self.marking.expect_others(false);
        Ok(())
    }

    /// From here on the daemon's sockets are known by marks alone: it ends, and another one's hooks may be there.
    pub fn mark_all(&self) {
        self.marking.expect_others(true);
    }

    /// The process that has taken our place.
    #[must_use]
    pub fn successor(&self) -> Option<u32> {
        self.relays.successor()
    }

    /// Puts a policy in force and returns its generation. Connections see the old policy or the new one, never
    /// a mixture; when writing fails the old one stays in force.
    ///
    /// # Errors
    /// When the policy needs what this kernel lacks, or a map is full.
    pub fn install(
        &mut self,
        compiled: &Compiled,
        features: &Features,
    ) -> Result<u32, InterceptError> {
        features.allow(compiled)?;
        if !compiled.pids.is_empty() {
            self.follow_tasks()?;
        }
        let arrivals = Ports::of(compiled);
        self.marking.expect_arrivals(&arrivals);
        let generation = self.tables.install(compiled)?;
        self.marking.expect_no_other_arrivals(&arrivals);
        Ok(generation)
    }

    /// Forgets the listeners of services of a generation that is to be written.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_services(&mut self, generation: u32) -> Result<(), InterceptError> {
        self.services.clear(generation)
    }

    /// The listeners of services that the rules of a generation have, which close as they please.
    #[must_use]
    pub fn services(&mut self, generation: u32) -> HashMap<RuleRef, u64> {
        self.services.held(generation)
    }

    /// Has the connections of a rule for what arrives given to the listener of a service, until that closes. `inode` is what
    /// [`Interceptor::services`] tells it by.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn steer(
        &mut self,
        rule: RuleRef,
        listener: &impl AsRawFd,
        inode: u64,
    ) -> Result<(), InterceptError> {
        self.services.set(rule, listener, inode)
    }

    /// Attaches all hooks to a cgroup: from here on its connections are ours.
    ///
    /// # Errors
    /// When the kernel refuses one; those attached before it are detached again by dropping `self`.
    pub fn attach(&mut self, cgroup: BorrowedFd<'_>) -> Result<(), InterceptError> {
        // `connect` comes last: until then nothing is redirected, and the first connection that is finds the
        // hooks it needs.
        let program: &mut SockOps = self.program(names::TCP_EVENTS)?;
        program
            .attach(cgroup, MODE)
            .map_err(attach_error(names::TCP_EVENTS))?;
        let program: &mut CgroupSockopt = self.program(names::GETSOCKOPT)?;
        program
            .attach(cgroup, MODE)
            .map_err(attach_error(names::GETSOCKOPT))?;
        for name in [names::GETPEERNAME4, names::GETPEERNAME6] {
            let program: &mut CgroupSockAddr = self.program(name)?;
            program.attach(cgroup, MODE).map_err(attach_error(name))?;
        }
        for name in [names::CONNECT4, names::CONNECT6] {
            let link = self.attach_connect(name, cgroup)?;
            self.connect.push(link);
        }
        Ok(())
    }

    /// Loads the hook on what arrives, and tells it the listeners.
    ///
    /// # Errors
    /// When the kernel refuses: too old (before 5.9).
    pub fn prepare_arrivals(&mut self, listeners: &[TcpListener]) -> Result<(), InterceptError> {
        self.arrivals
            .prepare(&mut self.ebpf, listeners, self.predecessor)
    }

    /// Attaches the hook on what arrives, if it is not. `own` is the cgroup of this process: what it opens itself is told from
    /// the rest there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_arrivals(&mut self, own: BorrowedFd<'_>) -> Result<(), InterceptError> {
        self.look_for_detours(own);
        self.arrivals.attach(&mut self.ebpf, own)
    }

    /// Detaches the hook on what arrives: new connections go to whoever listens.
    pub fn detach_arrivals(&mut self) {
        self.arrivals.detach();
    }

    /// Attaches the hook on answers to the addresses of clients to these interfaces, by their numbers. `mark` has packets delivered
    /// to this host.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_returns(
        &mut self,
        mark: u32,
        interfaces: &BTreeSet<u32>,
    ) -> Result<(), InterceptError> {
        let (ebpf, ingress) = (&mut self.ebpf, &mut self.ingress);
        self.returns.attach(ebpf, ingress, mark, interfaces)
    }

    /// Detaches the `connect` hooks and the hook on what arrives, and has that on what passes through take nothing new: new connections
    /// go direct. The other hooks stay until `self` is dropped, so that the connections already redirected keep their records, their
    /// packets and their apps the right answers.
    pub fn detach(&mut self) {
        self.arrivals.detach();
        if let Err(error) = self.tables.close_transits() {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "what passes through is still taken");
        }
        self.connect.clear();
    }

    /// Takes records of accepted connections. One handle per worker.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn records(&self, netns_cookie: u64) -> Result<Records, InterceptError> {
        Records::new(&self.ebpf, netns_cookie)
    }

    /// Marks sockets as our own. One handle per worker.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn exempter(&self) -> Result<Exempter, InterceptError> {
        Exempter::new(&self.ebpf, Arc::clone(&self.marking))
    }

    /// Lets apps' sockets take the shortcut, and says what that is worth on this kernel.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn enable_shortcut(&mut self, features: &Features) -> Result<Proofs, InterceptError> {
        shortcut::enable(&mut self.ebpf, features, &self.office)
    }

    /// What wakes relays that rest while replies go past them. Until it is served they do not rest.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn reply_events(&self) -> Result<Events, InterceptError> {
        self.office.events(&self.ebpf)
    }

    /// Opens the shortcut to connections. One handle per worker.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn lanes(&self) -> Result<Lanes, InterceptError> {
        Lanes::new(&self.ebpf, &self.office)
    }

    /// The relay's sign of life.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn heartbeat(&self) -> Result<Heartbeat, InterceptError> {
        Heartbeat::new(&self.ebpf, Arc::clone(&self.marking))
    }

    /// Where the hooks find endpoints of groups, once; and what they tell of those that cannot be reached.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn wheels(&self) -> Result<(Arc<Wheels>, Events), InterceptError> {
        Wheels::new(&self.ebpf)
    }

    /// Where the hooks find listeners in other network namespaces, once; and what tells `wanted` that some are missing.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn spaces(&self, wanted: Arc<Notify>) -> Result<(Spaces, Events), InterceptError> {
        Spaces::new(&self.ebpf, wanted)
    }

    /// The kernel side of the sockmap path, once.
    ///
    /// # Errors
    /// When the kernel refuses the verdict program, or a feature it needs is missing.
    pub fn redirects(
        &mut self,
        features: &Features,
    ) -> Result<(Arc<Redirects>, Events), InterceptError> {
        features.allow_redirects()?;
        Redirects::new(&mut self.ebpf)
    }

    /// On which interfaces programs are, by number: how, and which.
    #[must_use]
    pub fn interfaces(&self) -> BTreeMap<u32, (&'static str, Vec<&'static str>)> {
        let attached = self.gateway.attached().chain(self.returns.attached());
        let mut interfaces = BTreeMap::new();
        for (number, program, attachment) in attached.chain(self.router.attached()) {
            let (_, programs) = interfaces
                .entry(number)
                .or_insert_with(|| (attachment.kind(), Vec::new()));
            programs.push(program);
        }
        interfaces
    }

    /// What the hooks counted.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn counters(&self) -> Result<Counters, InterceptError> {
        Counters::new(&self.ebpf)
    }

    /// What each rule has selected.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn hits(&self) -> Result<Hits, InterceptError> {
        Hits::new(&self.ebpf)
    }

    /// The reader of what the hooks log, once.
    pub fn log_reader(&mut self) -> Option<LogReader> {
        LogReader::new(&mut self.ebpf)
    }

    /// The generation that the next policy will have.
    #[must_use]
    pub fn next_generation(&self) -> u32 {
        self.tables.next_generation()
    }

    /// Starts following forks and exits; once started it goes on, so that a reload forgets nobody.
    fn follow_tasks(&mut self) -> Result<(), InterceptError> {
        if self.follows_tasks {
            return Ok(());
        }
        follow_tasks(&mut self.ebpf)?;
        self.follows_tasks = true;
        Ok(())
    }

    fn attach_connect(
        &mut self,
        name: &'static str,
        cgroup: BorrowedFd<'_>,
    ) -> Result<CgroupSockAddrLink, InterceptError> {
        let program: &mut CgroupSockAddr = self.program(name)?;
        let id = program.attach(cgroup, MODE).map_err(attach_error(name))?;
        program.take_link(id).map_err(attach_error(name))
    }

    fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, InterceptError>
    where
        &'a mut P: TryFrom<&'a mut aya::programs::Program>,
    {
        self.ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(InterceptError::Missing(name))
    }
}

/// The kernel's number for a program of ours; `None` for one that is not loaded.
fn id_of(ebpf: &Ebpf, name: &str) -> Option<u32> {
    Some(ebpf.program(name)?.info().ok()?.id())
}

/// Starts following forks and exits of processes in `DESCENDANTS`.
fn follow_tasks(ebpf: &mut Ebpf) -> Result<(), InterceptError> {
    for (name, tracepoint) in TASK_EVENTS {
        let program: &mut RawTracePoint = arrivals::program(ebpf, name)?;
        program.load().map_err(load_error(name))?;
        program.attach(tracepoint).map_err(attach_error(name))?;
    }
    Ok(())
}

/// Links always allow several programs on one hook; the mode flags are for the older way of attaching and the
/// kernel refuses them for links (aya issue 1060).
const MODE: CgroupAttachMode = CgroupAttachMode::Single;
