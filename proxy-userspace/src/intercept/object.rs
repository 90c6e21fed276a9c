//! The embedded object, what it needs to be told about this kernel, and its log.

use std::{
    os::fd::{AsRawFd, RawFd},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use aya_log::EbpfLogger;
use aya_obj::{Map, Object};
use nix::sys::resource::RLIM_INFINITY;
use proxy_common::{Dimensions, names};
use thiserror::Error;

use super::{
    InterceptError, Overlap, Settings,
    btf::{self, BtfError, Offsets, QueueLayout, SocketLayout, Types, tells_ingress_interface},
    ingress,
};
use crate::{policy::Compiled, privileges};

/// The compiled eBPF programs.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/culvert-ebpf"));

/// What of the optional features this kernel has, found out by trying.
#[derive(Clone, Debug)]
pub struct Features {
    /// `bpf_set_retval` in `connect` hooks: a refused app sees ECONNREFUSED, otherwise EPERM.
    pub set_retval: bool,
    /// `bpf_skc_to_mptcp_sock` in `connect` hooks: an app with an MPTCP socket sees its true peer.
    pub mptcp: bool,
    /// Where the fields are that tell a task's executable; without them no rule can select by `exe` or `pid`.
    pub offsets: Result<Offsets, MissingFeature>,
    /// What the shortcut reads in sockets; without it no connection takes the shortcut, and this says why.
    pub sockets: Result<SocketLayout, String>,
    /// `sk_lookup` tells by which interface a connection arrives: rules for what arrives can select by `interface`.
    pub ingress_interface: bool,
    /// What replies past the relay read in sockets; without it they are copied, and this says why.
    pub queues: Result<QueueLayout, String>,
}

/// A rule needs something that is not there.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MissingFeature {
    /// No type information of the running kernel.
    #[error(
        "rules with `exe` or `pid` need the kernel's type information, and there is no /sys/kernel/btf/vmlinux ({0}); \
         select by `cgroup` or `uid` instead, or run a kernel built with CONFIG_DEBUG_INFO_BTF"
    )]
    Btf(String),
    /// `sk_lookup` does not tell the interface.
    #[error(
        "rules with `interface` need a kernel that tells by which interface a connection arrives, 5.17 or newer, and its \
         type information in /sys/kernel/btf/vmlinux; select by `source`, or `listen` on addresses of the interface"
    )]
    Interface,
    /// Listeners do not tell where they are.
    #[error(
        "rules with `container` need a kernel that tells which network namespace a listener is in (SO_NETNS_COOKIE), 5.14 or newer; \
         run `culvert sidecar` in the container instead"
    )]
    Namespaces,
    /// Sockets cannot be looked into.
    #[error("the sockmap path needs to know how far a socket was read: {0}")]
    Sockets(String),
    /// Reading kernel memory is not allowed.
    #[error(
        "rules with `exe` or `pid` read the connecting task, which needs CAP_PERFMON and a kernel that is not locked \
         down to confidentiality; select by `cgroup` or `uid` instead"
    )]
    ReadKernel,
}

impl Features {
    /// Tries what this kernel can do. Needs the privileges to load programs; without them everything is absent.
    #[must_use]
    pub fn probe() -> Self {
        let reads_kernel = is_helper_supported(
            ProgramType::CgroupSockAddr,
            BpfHelper::BPF_FUNC_probe_read_kernel,
        )
        .unwrap_or(false);
        let finds_tcp_sockets =
            is_helper_supported(ProgramType::SockOps, BpfHelper::BPF_FUNC_skc_to_tcp_sock)
                .unwrap_or(false);
        let bytes = btf::of_running_kernel().map_err(|error| error.to_string());
        let types = bytes.as_deref().map_err(Clone::clone);
        let types = types.and_then(|bytes| Types::parse(bytes).map_err(|error| error.to_string()));
        Self {
            set_retval: is_helper_supported(
                ProgramType::CgroupSockAddr,
                BpfHelper::BPF_FUNC_set_retval,
            )
            .unwrap_or(false),
            mptcp: is_helper_supported(
                ProgramType::CgroupSockAddr,
                BpfHelper::BPF_FUNC_skc_to_mptcp_sock,
            )
            .unwrap_or(false),
            offsets: if reads_kernel {
                find(&types, Offsets::find).map_err(MissingFeature::Btf)
            } else {
                Err(MissingFeature::ReadKernel)
            },
            sockets: if !reads_kernel {
                Err(
                    "hooks may not read the kernel's memory, which needs CAP_PERFMON and a kernel that is not locked down \
                     to confidentiality"
                        .to_owned(),
                )
            } else if finds_tcp_sockets {
                find(&types, SocketLayout::find)
            } else {
                Err("hooks cannot look into TCP sockets (bpf_skc_to_tcp_sock)".to_owned())
            },
            ingress_interface: find(&types, tells_ingress_interface).unwrap_or(false),
            queues: find(&types, QueueLayout::find),
        }
    }

    /// Checks that the verdict program can be used: it reads how far a socket was read.
    ///
    /// # Errors
    /// What it needs.
    pub fn allow_redirects(&self) -> Result<(), MissingFeature> {
        match &self.sockets {
            Ok(_) => Ok(()),
            Err(missing) => Err(MissingFeature::Sockets(missing.clone())),
        }
    }

    /// Checks that a policy needs nothing that is absent.
    ///
    /// # Errors
    /// What it needs.
    pub fn allow(&self, compiled: &Compiled) -> Result<(), MissingFeature> {
        let reads_tasks = Dimensions::EXE | Dimensions::PID;
        if compiled.policy.dimensions & Dimensions::INTERFACE != 0 && !self.ingress_interface {
            return Err(MissingFeature::Interface);
        }
        match &self.offsets {
            Err(missing) if compiled.policy.dimensions & reads_tasks != 0 => Err(missing.clone()),
            _ => Ok(()),
        }
    }
}

/// Looks for something in the kernel's type information, if there is any.
fn find<T>(
    types: &Result<Types<'_>, String>,
    find: impl FnOnce(&Types<'_>) -> Result<T, BtfError>,
) -> Result<T, String> {
    match types {
        Ok(types) => find(types).map_err(|error| error.to_string()),
        Err(missing) => Err(missing.clone()),
    }
}

/// Creates the maps, except those that are `shared`, by name and pin, and hands the programs over, with this kernel's facts
/// written into them.
pub(super) fn load(
    settings: Settings,
    features: &Features,
    shared: &[(&'static str, PathBuf)],
) -> Result<Ebpf, InterceptError> {
    let locked_memory = privileges::lift_locked_memory();
    let set_retval = u32::from(features.set_retval);
    let mptcp = u32::from(features.mptcp);
    let reads_tasks = u32::from(features.offsets.is_ok());
    let offsets = features.offsets.clone().unwrap_or_default();
    let tells_interface = u32::from(features.ingress_interface);
    let router_ends = u32::from(ingress::is_by_links(settings.ingress));
    let shortcut = u32::from(features.sockets.is_ok() && features.offsets.is_ok());
    let sockets = features.sockets.clone().unwrap_or_default();
    let queues = features.queues.clone().unwrap_or_default();
    let log_level: u8 = if settings.log_faults {
        aya_log::Level::Debug as u8
    } else {
        0
    };
    let repeats_bytes = u32::from(settings.overlap == Overlap::Deliver);
    // It reads the kernel's type information by itself.
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries(names::RECORDS, settings.max_pending)
        .map_max_entries(names::OWN, settings.max_own)
        .override_global(aya_log::LEVEL, &log_level, true)
        .override_global("HAS_SET_RETVAL", &set_retval, true)
        .override_global("HAS_MPTCP", &mptcp, true)
        .override_global("HAS_INGRESS", &tells_interface, true)
        .override_global("ROUTER_ENDS", &router_ends, true)
        .override_global("READS_TASKS", &reads_tasks, true)
        .override_global("TASK_MM", &offsets.task_mm, true)
        .override_global("TASK_PID", &offsets.task_pid, true)
        .override_global("MM_EXE_FILE", &offsets.mm_exe_file, true)
        .override_global("FILE_INODE", &offsets.file_inode, true)
        .override_global("INODE_INO", &offsets.inode_ino, true)
        .override_global("INODE_SB", &offsets.inode_sb, true)
        .override_global("SB_DEV", &offsets.sb_dev, true)
        .override_global("HAS_SHORTCUT", &shortcut, true)
        .override_global("TCP_WRITE_SEQ", &sockets.tcp_write_seq, true)
        .override_global("TCP_COPIED_SEQ", &sockets.tcp_copied_seq, true)
        .override_global("ICSK_ULP_OPS", &sockets.icsk_ulp_ops, true)
        .override_global("SKC_FLAGS", &sockets.skc_flags, true)
        .override_global("SOCK_ZEROCOPY", &sockets.sock_zerocopy, true)
        .override_global("SK_WMEM_QUEUED", &sockets.sk_wmem_queued, true)
        .override_global("SK_ERR", &sockets.sk_err, true)
        .override_global("SK_SNDBUF", &sockets.sk_sndbuf, true)
        .override_global("SK_SOCKET", &sockets.sk_socket, true)
        .override_global("SOCKET_FILE", &sockets.socket_file, true)
        .override_global("FILE_FLAGS", &sockets.file_flags, true)
        .override_global("MSG_SK_REDIR", &sockets.msg_sk_redir, true)
        .override_global("SKC_COOKIE", &queues.skc_cookie, true)
        .override_global("SK_RMEM_ALLOC", &queues.sk_rmem_alloc, true)
        .override_global("SK_RCVBUF", &queues.sk_rcvbuf, true)
        .override_global("SK_RCVLOWAT", &queues.sk_rcvlowat, true)
        .override_global("SK_USER_DATA", &queues.sk_user_data, true)
        .override_global("PSOCK_QUEUE", &queues.psock_queue, true)
        .override_global("PSOCK_MESSAGES", &queues.psock_messages, true)
        .override_global("REPEATS_BYTES", &repeats_bytes, true);
    for (name, pin) in shared {
        loader.map_pin_path(name, pin.as_path());
    }
    loader.load(OBJECT).map_err(|source| match locked_memory {
        Some(limit) if limit != RLIM_INFINITY => InterceptError::LockedMemory {
            kibibytes: limit >> 10,
            source: Box::new(source),
        },
        _ => InterceptError::Object(Box::new(source)),
    })
}

/// A map as the object declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Its name.
    pub name: &'static str,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Entries that it can hold; the configuration decides that of [`names::RECORDS`] instead.
    pub entries: u32,
}

/// The maps of the embedded object, in the order of [`names::MAPS`].
#[must_use]
pub fn map_shapes() -> Vec<MapShape> {
    let Ok(object) = Object::parse(OBJECT) else {
        return Vec::new();
    };
    let shape = |name: &'static str| {
        object.maps.get(name).map(|map: &Map| MapShape {
            name,
            key: map.key_size(),
            value: map.value_size(),
            entries: map.max_entries(),
        })
    };
    names::MAPS.into_iter().filter_map(shape).collect()
}

/// Passes on what the hooks log. To be flushed when its descriptor is readable.
pub struct LogReader {
    logger: EbpfLogger<&'static dyn log::Log>,
}

impl LogReader {
    pub(super) fn new(ebpf: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init(ebpf).ok().map(|logger| Self { logger })
    }

    /// Logs what waits.
    pub fn flush(&mut self) {
        self.logger.flush();
    }
}

impl AsRawFd for LogReader {
    fn as_raw_fd(&self) -> RawFd {
        self.logger.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_declares_every_map() {
        let shapes = map_shapes();
        let found: Vec<_> = shapes.iter().map(|shape| shape.name).collect();
        assert_eq!(found, names::MAPS);
        let rings = [
            names::REDIRECT_EVENTS,
            names::REPLY_EVENTS,
            names::UNMADE_EVENTS,
            names::SIGHTINGS,
            names::SPACE_EVENTS,
        ];
        let has_values = |shape: &MapShape| shape.value > 0 || rings.contains(&shape.name);
        assert!(shapes.iter().all(has_values));
    }
}
