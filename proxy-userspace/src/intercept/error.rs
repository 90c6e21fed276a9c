//! Why the kernel side cannot be set up, and what the kernel said.

use std::io;

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use thiserror::Error;

use super::{guard::GuardError, namespace::NamespaceError, object::MissingFeature};
use crate::privileges;

/// Why the kernel side cannot be set up.
#[derive(Debug, Error)]
pub enum InterceptError {
    /// The object was refused.
    #[error(
        "cannot load the eBPF object; `culvert doctor` says what this kernel and these privileges lack"
    )]
    Object(#[source] Box<EbpfError>),
    /// The object was refused, and may be because of its size.
    #[error(
        "cannot load the eBPF object: kernels before 5.11 count its maps as locked memory, of which this process may have \
         {kibibytes} KiB; {}",
        privileges::MORE_LOCKED_MEMORY
    )]
    LockedMemory {
        /// The limit.
        kibibytes: u64,
        /// The kernel's answer.
        #[source]
        source: Box<EbpfError>,
    },
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
    /// A program could not be attached to the network namespace.
    #[error("cannot attach program {program} to the network namespace")]
    Namespace {
        /// Name of the program.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached to an interface.
    #[error("cannot attach program {program} to interface {interface}")]
    Interface {
        /// Name of the program.
        program: &'static str,
        /// Number of the interface.
        interface: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The interfaces are not known.
    #[error("cannot list the interfaces")]
    Interfaces(#[source] io::Error),
    /// Another culvert takes what arrives in this network namespace: they would take each other's connections to services
    /// for a client's, round and round.
    #[error(
        "process {pid} is a culvert that takes what arrives in this network namespace already; end it first, or give \
         its `[[reverse]]` rules to this one"
    )]
    Taken {
        /// The process.
        pid: u32,
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
    /// The network namespace is not known.
    #[error(transparent)]
    OwnNamespace(#[from] NamespaceError),
    /// The guard could not be attached so that it stays.
    #[error("cannot have program {program} stand in the cgroup")]
    Stand {
        /// Name of the program.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
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
            | Self::LockedMemory { .. }
            | Self::Load { .. }
            | Self::Attach { .. }
            | Self::Namespace { .. }
            | Self::Interface { .. }
            | Self::Stand { .. }
            | Self::Feature(_)
            | Self::OwnNamespace(_)
            | Self::Guard(GuardError::Mount { .. } | GuardError::Link { .. }) => true,
            Self::Taken { .. }
            | Self::Missing(_)
            | Self::Map { .. }
            | Self::Handle { .. }
            | Self::Interfaces(_)
            | Self::Guard(_) => false,
        }
    }
}

pub(super) fn load_error(program: &'static str) -> impl FnOnce(ProgramError) -> InterceptError {
    move |source| InterceptError::Load {
        program,
        source: Box::new(source),
    }
}

pub(super) fn attach_error(program: &'static str) -> impl FnOnce(ProgramError) -> InterceptError {
    move |source| InterceptError::Attach {
        program,
        source: Box::new(source),
    }
}
