//! What a process has in the kernel: the daemon's maps are read here, and its programs, maps and links counted.

use std::{collections::BTreeSet, fs, os::fd::AsRawFd as _, path::Path, time::Duration};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray, loaded_maps},
    programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_links, loaded_programs},
};
use nix::{
    errno::Errno,
    sys::utsname::uname,
    time::{ClockId, clock_gettime},
};
use proxy_common::{COUNTERS, Lane, LaneKey, OwnKey, Record, RecordKey, Relay, Sent, names};

use crate::bytecode::{call, descriptor};

/// What an app sees that a rule refuses: hooks of `connect()` may say so since Linux 6.1 (dea6a4e17013), before it is always EPERM.
pub fn refusal() -> Errno {
    if version() >= (6, 1) {
        Errno::ECONNREFUSED
    } else {
        Errno::EPERM
    }
}

/// Whether this kernel speaks IPv6; it may be told not to when it boots.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Whether this kernel tells where the fields of its structs are (BTF).
pub fn tells_types() -> bool {
    Path::new("/sys/kernel/btf/vmlinux").exists()
}

/// Whether this kernel is locked down so far that programs may not read its memory.
pub fn is_confidential() -> bool {
    // Not mounted, or built without: it is not.
    let states = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    states.contains("[confidentiality]")
}

/// The first two numbers of the running kernel's release.
pub fn version() -> (u32, u32) {
    let name = uname().expect("the kernel's name");
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|number| number.parse().expect("a number"));
    let mut next = || numbers.next().expect("two numbers");
    (next(), next())
}

/// Takes the program of a name off its hook, which a process holds there by a link.
pub fn take_off(pid: u32, program: &str) {
    let held = Objects::of(pid).links;
    let programs = loaded_programs().filter_map(Result::ok);
    let ids: BTreeSet<_> = programs
        .filter(|it| it.name_as_str() == Some(program))
        .map(|it| it.id())
        .collect();
    let links = loaded_links().filter_map(Result::ok);
    let link = links
        .filter(|link| held.contains(&link.id()))
        .find(|link| ids.contains(&link.program_id()))
        .expect("a link");
    let (by_id, detach) = (30, 34);
    // SAFETY: the attributes are numbers.
    let link = unsafe { call(by_id, &mut [link.id(), 0, 0, 0]) };
    // SAFETY: the kernel has just opened it.
    let link = unsafe { descriptor(link.expect("a link that is there")) };
    let mut attributes = [link.as_raw_fd().unsigned_abs(), 0, 0, 0];
    // SAFETY: the attributes are numbers.
    unsafe { call(detach, &mut attributes) }.expect("a link that lets go");
}

/// Whether programs can be attached to interfaces by links.
pub fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// The names of the programs that links hold on the ingress of an interface of this thread's network namespace, in their order.
pub fn ingress_programs(interface: &str) -> Vec<String> {
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress)
        .expect("cannot ask for the programs of an interface");
    let name = |program: &ProgramInfo| program.name_as_str().unwrap_or_default().to_owned();
    programs.iter().map(name).collect()
}

/// Ids of BPF objects, which the kernel gives out once and never again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Of programs.
    pub programs: BTreeSet<u32>,
    /// Of maps.
    pub maps: BTreeSet<u32>,
    /// Of links.
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// Everything that a process has a descriptor of.
    pub fn of(pid: u32) -> Self {
        let mut objects = Self::default();
        // A process that is gone has none.
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            for line in text.lines() {
                let Some((key, id)) = line.split_once(':') else {
                    continue;
                };
                let ids = match key {
                    "prog_id" => &mut objects.programs,
                    "map_id" => &mut objects.maps,
                    "link_id" => &mut objects.links,
                    _ => continue,
                };
                ids.extend(id.trim().parse::<u32>());
            }
        }
        objects
    }

    /// Adds what another list has.
    pub fn merge(&mut self, other: Self) {
        self.programs.extend(other.programs);
        self.maps.extend(other.maps);
        self.links.extend(other.links);
    }

    /// Those that still exist, and links of these programs that nobody listed.
    #[must_use]
    pub fn remaining(&self) -> Self {
        // Objects of other tests may go while we list; they fail to open and are none of ours.
        let programs = loaded_programs().filter_map(Result::ok);
        let maps = loaded_maps().filter_map(Result::ok);
        let links = loaded_links().filter_map(Result::ok);
        Self {
            programs: programs
                .map(|program| program.id())
                .filter(|id| self.programs.contains(id))
                .collect(),
            maps: maps
                .map(|map| map.id())
                .filter(|id| self.maps.contains(id))
                .collect(),
            links: links
                .filter(|link| {
                    self.links.contains(&link.id()) || self.programs.contains(&link.program_id())
                })
                .map(|link| link.id())
                .collect(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }
}

/// The maps of a daemon, opened beside it.
#[derive(Debug)]
pub struct Maps {
    ids: BTreeSet<u32>,
}

impl Maps {
    /// The maps a process has descriptors of.
    pub fn of(pid: u32) -> Self {
        Self {
            ids: Objects::of(pid).maps,
        }
    }

    /// Connections that the relay has not accepted yet.
    pub fn records(&self) -> Vec<(RecordKey, Record)> {
        let map: HashMap<MapData, RecordKey, Record> =
            self.open(names::RECORDS).try_into().expect("a hash map");
        // An entry that goes while we list is no error of ours.
        map.iter().filter_map(Result::ok).collect()
    }

    /// What the hooks counted, by the stable names, summed over the CPUs.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let map: PerCpuArray<MapData, u64> = self
            .open(names::COUNTERS)
            .try_into()
            .expect("a per-CPU array");
        let read = |index| map.get(&index, 0).expect("a counter").iter().sum();
        COUNTERS
            .iter()
            .map(|(counter, name)| (*name, read(*counter as u32)))
            .collect()
    }

    /// One of them.
    pub fn counter(&self, name: &str) -> u64 {
        let counted = self.counters().into_iter();
        let mut counted = counted.filter(|(counter, _)| *counter == name);
        let (_, count) = counted
            .next()
            .unwrap_or_else(|| panic!("no counter {name}"));
        count
    }

    /// Tasks that are, or descend from, a process that a rule names.
    pub fn descendants(&self) -> Vec<u32> {
        let map: HashMap<MapData, u32, u32> = self
            .open(names::DESCENDANTS)
            .try_into()
            .expect("a hash map");
        map.keys().filter_map(Result::ok).collect()
    }

    /// Lanes of the shortcut that are open, or not forgotten.
    pub fn lanes(&self) -> Vec<LaneKey> {
        let lanes: HashMap<MapData, LaneKey, Lane> =
            self.open(names::LANES).try_into().expect("a hash map");
        let sent: HashMap<MapData, LaneKey, Sent> =
            self.open(names::SENT).try_into().expect("a hash map");
        lanes
            .keys()
            .chain(sent.keys())
            .filter_map(Result::ok)
            .collect()
    }

    /// Connections of the daemon itself that are registered as such.
    pub fn own(&self) -> Vec<OwnKey> {
        let map: HashMap<MapData, OwnKey, u32> =
            self.open(names::OWN).try_into().expect("a hash map");
        map.keys().filter_map(Result::ok).collect()
    }

    /// Where the relay listens.
    pub fn relay(&self) -> Relay {
        self.element(names::RELAY)
    }

    /// How long ago the relay was last known to be alive.
    pub fn heartbeat_age(&self) -> Duration {
        let last = Duration::from_nanos(self.element(names::HEARTBEAT));
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the clock");
        Duration::from(now).saturating_sub(last)
    }

    fn element<T: Pod>(&self, name: &str) -> T {
        let map: Array<MapData, T> = self.open(name).try_into().expect("an array");
        map.get(&0, 0).expect("the one element")
    }

    fn open(&self, name: &str) -> Map {
        let named =
            |id: &&u32| MapInfo::from_id(**id).is_ok_and(|info| info.name_as_str() == Some(name));
        let id = self.ids.iter().find(named);
        let id = id.unwrap_or_else(|| panic!("the process has no map {name}"));
        let data = MapData::from_id(*id).expect("cannot open a map by its id");
        Map::from_map_data(data).expect("a map of a known type")
    }
}
