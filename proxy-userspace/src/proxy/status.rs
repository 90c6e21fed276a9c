//! What a proxy tells of itself.

use std::sync::atomic::Ordering::Relaxed;

use super::Proxy;
use crate::{
    record::AccessLog,
    relay::{COMPARED, Calibration, Kind, Path, Reason, shortcut::Proof},
    shared::Stats,
    socket,
    status::{
        AccessLogStatus, AutoStatus, Connections, GroupStatus, InterfaceStatus, PathStatus,
        SpaceStatus, Status, counted,
    },
};

impl Proxy {
    /// Connections, paths and counters; what the proxy does not know itself is empty.
    pub(crate) fn status(&self) -> Status {
        let stats = self.stats();
        let measured = self.shared.paths.measured();
        let moved = self.moved();
        Status {
            connections: Connections {
                up: moved.up,
                down: moved.down,
                ..connections(stats)
            },
            paths: stats
                .bytes()
                .zip(moved.by_path)
                .map(|((path, bytes), moved)| PathStatus {
                    moved,
                    ..self.path_status(path, bytes)
                })
                .collect(),
            groups: self.groups(),
            drains: self.drains(),
            containers: self.spaces(),
            auto: measured.map_or_else(Vec::new, |measured| {
                Kind::ALL.map(|kind| auto(&measured, kind)).into()
            }),
            promotions: stats.promotions.load(Relaxed),
            demotions: stats.demotions.load(Relaxed),
            repairs: stats.repairs.load(Relaxed),
            interfaces: self.interfaces(),
            access_log: self.shared.access_log.as_ref().map(access_log),
            ..Status::default()
        }
    }

    fn interfaces(&self) -> Vec<InterfaceStatus> {
        let interfaces = self.interceptor.interfaces().into_iter();
        interfaces
            .map(|(number, (attached, programs))| InterfaceStatus {
                name: socket::interface_name(number).unwrap_or_else(|| number.to_string()),
                attached: attached.to_owned(),
                programs: programs.into_iter().map(str::to_owned).collect(),
            })
            .collect()
    }

    /// The network namespaces of containers that rules name.
    pub(crate) fn spaces(&self) -> Vec<SpaceStatus> {
        self.spaces.status()
    }

    /// How the groups are.
    pub(crate) fn groups(&self) -> Vec<GroupStatus> {
        self.groups.iter().map(|group| group.status()).collect()
    }

    fn path_status(&self, path: Path, bytes: u64) -> PathStatus {
        let (usable, failed) = match path {
            // They need no proof: what the kernel cannot do is copied.
            Path::Copy | Path::Splice => (Some(true), None),
            Path::Sockmap => match self.shared.paths.sockmap() {
                Ok(_) => (Some(true), None),
                Err(Reason::Unmeasured) => (None, None),
                Err(_) => (Some(false), self.shared.paths.failed_test()),
            },
            Path::Shortcut => match self.shared.proofs().map(|proofs| proofs.requests) {
                None => (None, None),
                Some(Proof::Whole) => (Some(true), None),
                Some(Proof::WithoutFionread) => (Some(true), Some("FIONREAD")),
                Some(Proof::Failed(test)) => (Some(false), Some(test)),
            },
            Path::BothWays => match self.shared.proofs().map(|proofs| proofs.replies) {
                None => (None, None),
                Some(Ok(())) => (Some(true), None),
                Some(Err(test)) => (Some(false), Some(test)),
            },
        };
        PathStatus {
            path: path.label().to_owned(),
            usable,
            failed: failed.map(|test| format!("the test of {test} fails on this kernel")),
            bytes,
            moved: bytes,
        }
    }
}

fn access_log(log: &AccessLog) -> AccessLogStatus {
    AccessLogStatus {
        written: log.written(),
        sampled_out: log.quota().sampled_out(),
        over_rate: log.quota().over_rate(),
        dropped: log.dropped() as u64,
    }
}

fn connections(stats: &Stats) -> Connections {
    Connections {
        live: stats.live() as u64,
        accepted: stats.accepted.load(Relaxed),
        accept_failures: stats.accept_failures.load(Relaxed),
        at_limit: stats.at_limit.load(Relaxed),
        own_proxy: stats.own_proxy.load(Relaxed),
        closed: counted(
            stats
                .closed()
                .map(|(reason, count)| (reason.label(), count))
                .filter(|(_, count)| *count > 0),
        ),
        names: counted(
            stats
                .peeked()
                .map(|(peeked, count)| (peeked.label(), count))
                .filter(|(_, count)| *count > 0),
        ),
        ..Connections::default()
    }
}

fn auto(measured: &Calibration, kind: Kind) -> AutoStatus {
    AutoStatus {
        kind: kind.label().to_owned(),
        path: measured.best(kind, |_| true).label().to_owned(),
        relative: COMPARED
            .into_iter()
            .filter_map(|path| {
                let relative = measured.relative(kind, path)?;
                Some((path.label().to_owned(), relative))
            })
            .collect(),
    }
}
