//! The kernel side as the rest of the daemon sees it: load, write policies, attach, detach.
//!
//! The only module that knows aya. What it loads and attaches is owned by this process: when it ends, however it
//! ends, the kernel detaches everything, except the guard of rules with `on_relay_failure = "refuse"`, which is
//! pinned for exactly that reason (see [`guard`]).

mod btf;
mod events;
pub mod guard;
mod handles;
mod object;
mod redirects;
mod shortcut;
pub mod survey;
mod syscall;
mod tables;
pub mod trial;

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use aya::{
    Ebpf, EbpfError,
    maps::MapError,
    programs::{
        CgroupAttachMode, CgroupSockAddr, CgroupSockopt, ProgramError, RawTracePoint, SockOps,
        cgroup_sock_addr::CgroupSockAddrLink,
    },
};
use proxy_common::{Relay, names};
use thiserror::Error;

pub use events::Events;
pub use handles::{Counters, Exempter, Heartbeat, Records};
pub use object::{Features, LogReader, MapShape, MissingFeature, OBJECT, map_shapes};
pub use redirects::{Redirects, prove as prove_redirects};
pub use shortcut::Lanes;

use crate::{policy::Compiled, relay::shortcut::Proofs};
use guard::{Guard, GuardError};

/// What the configuration decides about the kernel side.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Records of connections that the relay has not accepted yet, at most.
    pub max_pending: u32,
    /// Whether faults in the hooks are logged one by one (`debug` level).
    pub log_faults: bool,
    /// What the verdict program does about bytes that TCP brings again.
    pub overlap: Overlap,
}

impl Settings {
    /// For programs that nobody's connections reach.
    const UNCONFIGURED: Self = Self {
        max_pending: 1,
        log_faults: false,
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
    guard: Option<Guard>,
}

/// Why the kernel side cannot be set up.
#[derive(Debug, Error)]
pub enum InterceptError {
    /// The object was refused.
    #[error(
        "cannot load the eBPF object; `culvert doctor` says what this kernel and these privileges lack"
    )]
    Object(#[source] Box<EbpfError>),
    /// A program was refused.
    #[error("cannot load program {program}")]
    Load {
        /// Name of the program.
        program: &'static str,
        /// The kernel's answer, with the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("cannot attach program {program}")]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<ProgramError>,
    },
    /// The object lacks a program or map, or has it with another type.
    #[error("the eBPF object has no {0}; it was not built from this source")]
    Missing(&'static str),
    /// A map could not be read or written.
    #[error("cannot {operation} map {map}")]
    Map {
        /// What was tried.
        operation: &'static str,
        /// Name of the map.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<MapError>,
    },
    /// A handle to a map could not be duplicated.
    #[error("cannot duplicate the handle of map {map}")]
    Handle {
        /// Name of the map.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Rules need something that this kernel, or these privileges, lack.
    #[error(transparent)]
    Feature(#[from] MissingFeature),
    /// The guard could not be pinned.
    #[error(transparent)]
    Guard(#[from] GuardError),
}

impl InterceptError {
    /// Whether the kernel, or these privileges, lack something.
    #[must_use]
    pub const fn is_missing_feature(&self) -> bool {
        match self {
            Self::Object(_)
            | Self::Load { .. }
            | Self::Attach { .. }
            | Self::Feature(_)
            | Self::Guard(GuardError::Mount { .. } | GuardError::Link { .. }) => true,
            Self::Missing(_) | Self::Map { .. } | Self::Handle { .. } | Self::Guard(_) => false,
        }
    }
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
    /// Loads programs and maps. Nothing is attached yet, and there is no policy.
    ///
    /// # Errors
    /// When the kernel refuses the object: too old (before 5.8), or without the privileges.
    pub fn load(settings: Settings, features: &Features) -> Result<Self, InterceptError> {
        let mut ebpf = object::load(settings, features)
            .map_err(|source| InterceptError::Object(Box::new(source)))?;
        let tables = tables::PolicyTables::take(&mut ebpf)?;
        let mut interceptor = Self {
            ebpf,
            tables,
            follows_tasks: false,
            office: shortcut::Office::default(),
            connect: Vec::new(),
            guard: None,
        };
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

    /// Tells the hooks where the relay listens.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_relay(&mut self, relay: &Relay) -> Result<(), InterceptError> {
        handles::set_array(&mut self.ebpf, names::RELAY, relay)
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
        self.tables.install(compiled)
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

    /// Attaches the guard to a cgroup and pins it, so that rules with `on_relay_failure = "refuse"` hold even
    /// after `SIGKILL`. To be called after [`Interceptor::attach`]: programs of one cgroup run in that order.
    ///
    /// # Errors
    /// When there is no place to pin, or the kernel refuses a program.
    pub fn attach_guard(
        &mut self,
        cgroup: BorrowedFd<'_>,
        place: PathBuf,
    ) -> Result<(), InterceptError> {
        if self.guard.is_none() {
            let mut guard = Guard::create(place)?;
            for name in [names::GUARD4, names::GUARD6] {
                let link = self.attach_guard_program(name, cgroup)?;
                guard.pin(name, link)?;
            }
            self.guard = Some(guard);
        }
        Ok(())
    }

    /// Attaches the guard to a cgroup without pinning it: it holds as long as somebody holds what this returns.
    ///
    /// # Errors
    /// When the kernel refuses a program, or does not tell its link.
    pub fn lend_guard(&mut self, cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, InterceptError> {
        let mut lent = Vec::new();
        for name in [names::GUARD4, names::GUARD6] {
            let link = self.attach_guard_program(name, cgroup)?;
            lent.push(guard::duplicate(name, link)?);
        }
        Ok(lent)
    }

    /// Removes the guard, if there is one.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_guard(&mut self) -> Result<(), InterceptError> {
        match self.guard.take() {
            Some(guard) => Ok(guard.remove()?),
            None => Ok(()),
        }
    }

    /// Detaches the `connect` hooks: new connections go direct. The other hooks stay until `self` is dropped, so
    /// that the connections already redirected keep their records and their apps the right answers.
    pub fn detach(&mut self) {
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
        Exempter::new(&self.ebpf)
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
        Heartbeat::new(&self.ebpf)
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

    /// What the hooks counted.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn counters(&self) -> Result<Counters, InterceptError> {
        Counters::new(&self.ebpf)
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
        for (name, tracepoint) in TASK_EVENTS {
            let program: &mut RawTracePoint = self.program(name)?;
            program.load().map_err(load_error(name))?;
            program.attach(tracepoint).map_err(attach_error(name))?;
        }
        self.follows_tasks = true;
        Ok(())
    }

    fn attach_guard_program(
        &mut self,
        name: &'static str,
        cgroup: BorrowedFd<'_>,
    ) -> Result<CgroupSockAddrLink, InterceptError> {
        let program: &mut CgroupSockAddr = self.program(name)?;
        if program.fd().is_err() {
            program.load().map_err(load_error(name))?;
        }
        self.attach_connect(name, cgroup)
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

/// Links always allow several programs on one hook; the mode flags are for the older way of attaching and the
/// kernel refuses them for links (aya issue 1060).
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

fn load_error(program: &'static str) -> impl FnOnce(ProgramError) -> InterceptError {
    move |source| InterceptError::Load {
        program,
        source: Box::new(source),
    }
}

fn attach_error(program: &'static str) -> impl FnOnce(ProgramError) -> InterceptError {
    move |source| InterceptError::Attach {
        program,
        source: Box::new(source),
    }
}
