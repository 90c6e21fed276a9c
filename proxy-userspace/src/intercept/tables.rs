//! Writes compiled policies into the kernel's tables, generation by generation.

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
};
use proxy_common::{
    Action, Areas, BePort, Cell, CellKey, Dimensions, MAX_RULES, MemberKey, Membership, Policy,
    PrefixKey, PrefixKind, RuleSet, names,
};

use super::{
    InterceptError, Interceptor,
    handles::{duplicate, map_error, typed},
};
use crate::policy::{CellPrefix, Compiled, Member, Prefix};

/// The policy maps and what is in them.
pub(super) struct PolicyTables {
    policy: Array<MapData, Policy>,
    prefixes: LpmTrie<MapData, PrefixKey, RuleSet>,
    members: HashMap<MapData, MemberKey, Membership>,
    descendants: HashMap<MapData, u32, u32>,
    actions: Array<MapData, Action>,
    hosts: HashMap<MapData, PrefixKey, Areas>,
    areas: LpmTrie<MapData, PrefixKey, Areas>,
    cells: LpmTrie<MapData, CellKey, Cell>,
    arrival_actions: Array<MapData, Action>,
    transit_actions: Array<MapData, Action>,
    /// In force; 0 before the first policy.
    generation: u32,
    /// Keys of the generation in force and of the one before it.
    written: [Written; 2],
    pids: Vec<u32>,
}

/// Keys of one generation.
#[derive(Default)]
struct Written {
    prefixes: Vec<Key<PrefixKey>>,
    members: Vec<MemberKey>,
    hosts: Vec<PrefixKey>,
    areas: Vec<Key<PrefixKey>>,
    cells: Vec<Key<CellKey>>,
}

impl Interceptor {
    /// The process that a rule names, and that a process descends from.
    #[must_use]
    pub fn root_of(&self, pid: u32) -> Option<u32> {
        self.tables.descendants.get(&pid, 0).ok()
    }
}

impl PolicyTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, InterceptError> {
        Ok(Self {
            policy: array(ebpf, names::POLICY)?,
            prefixes: trie(ebpf, names::PREFIXES)?,
            members: typed(duplicate(ebpf, names::MEMBERS)?, names::MEMBERS)?,
            descendants: typed(duplicate(ebpf, names::DESCENDANTS)?, names::DESCENDANTS)?,
            actions: array(ebpf, names::ACTIONS)?,
            hosts: typed(duplicate(ebpf, names::HOSTS)?, names::HOSTS)?,
            areas: trie(ebpf, names::AREAS)?,
            cells: trie(ebpf, names::CELLS)?,
            arrival_actions: array(ebpf, names::REVERSE_ACTIONS)?,
            transit_actions: array(ebpf, names::TRANSIT_ACTIONS)?,
            generation: 0,
            written: Default::default(),
            pids: Vec::new(),
        })
    }

    /// The generation after the one in force; never 0, which means no policy, and of the other parity than the one
    /// in force, whose actions are in the other half of their array.
    pub(super) const fn next_generation(&self) -> u32 {
        match self.generation.checked_add(1) {
            Some(next) => next,
            None => 2,
        }
    }

    /// Writes the next generation and puts it in force.
    pub(super) fn install(&mut self, compiled: &Compiled) -> Result<u32, InterceptError> {
        // The generation before the one in force is still there, because a hook that had just read the header
        // may have been using it; by now none can.
        self.remove_oldest()?;
        let generation = self.next_generation();
        let written = self.write(compiled, generation);
        let [newest, previous] = &mut self.written;
        std::mem::swap(newest, previous);
        *newest = written.keys;
        if let Some(error) = written.error {
            // Back to what is in force.
            let [newest, previous] = &mut self.written;
            std::mem::swap(newest, previous);
            self.remove_oldest()?;
            return Err(error);
        }
        self.follow(&compiled.pids)?;
        let header = Policy {
            generation,
            ..compiled.policy
        };
        self.policy
            .set(0, header, 0)
            .map_err(map_error("write", names::POLICY))?;
        self.generation = generation;
        Ok(generation)
    }

    /// Has no new connections that pass through selected any more.
    pub(super) fn close_transits(&mut self) -> Result<(), InterceptError> {
        let header = self
            .policy
            .get(&0, 0)
            .map_err(map_error("read", names::POLICY))?;
        let header = Policy {
            dimensions: header.dimensions & !Dimensions::TRANSIT,
            ..header
        };
        self.policy
            .set(0, header, 0)
            .map_err(map_error("write", names::POLICY))
    }

    fn write(&mut self, compiled: &Compiled, generation: u32) -> Attempt {
        let mut keys = Written::default();
        let error = self.write_all(compiled, generation, &mut keys).err();
        Attempt { keys, error }
    }

    fn write_all(
        &mut self,
        compiled: &Compiled,
        generation: u32,
        keys: &mut Written,
    ) -> Result<(), InterceptError> {
        for (prefix, rules) in &compiled.prefixes {
            let key = prefix_key(generation, prefix);
            self.prefixes
                .insert(&key, rules, 0)
                .map_err(map_error("insert into", names::PREFIXES))?;
            keys.prefixes.push(key);
        }
        for (member, membership) in &compiled.members {
            let key = member_key(generation, member);
            self.members
                .insert(key, membership, 0)
                .map_err(map_error("insert into", names::MEMBERS))?;
            keys.members.push(key);
        }
        for (host, areas) in &compiled.hosts {
            let key = PrefixKey {
                generation,
                kind: PrefixKind::LISTEN,
                bits: *host,
            };
            self.hosts
                .insert(key, areas, 0)
                .map_err(map_error("insert into", names::HOSTS))?;
            keys.hosts.push(key);
        }
        for (area, areas) in &compiled.areas {
            let key = prefix_key(generation, area);
            self.areas
                .insert(&key, areas, 0)
                .map_err(map_error("insert into", names::AREAS))?;
            keys.areas.push(key);
        }
        for (prefix, cell) in &compiled.cells {
            let key = cell_key(generation, prefix);
            self.cells
                .insert(&key, cell, 0)
                .map_err(map_error("insert into", names::CELLS))?;
            keys.cells.push(key);
        }
        let slot = (generation % 2) * u32::try_from(MAX_RULES).unwrap_or(u32::MAX);
        for (map, actions, name) in [
            (&mut self.actions, &compiled.actions, names::ACTIONS),
            (
                &mut self.arrival_actions,
                &compiled.arrival_actions,
                names::REVERSE_ACTIONS,
            ),
            (
                &mut self.transit_actions,
                &compiled.transit_actions,
                names::TRANSIT_ACTIONS,
            ),
        ] {
            for (index, action) in (slot..).zip(actions) {
                map.set(index, action, 0)
                    .map_err(map_error("write", name))?;
            }
        }
        Ok(())
    }

    /// Starts following the processes that rules name: the process with its threads, and from then on what they
    /// fork. Processes that no rule names any more are forgotten.
    fn follow(&mut self, pids: &[u32]) -> Result<(), InterceptError> {
        for gone in self.pids.iter().filter(|pid| !pids.contains(pid)) {
            let of_it: Vec<u32> = self
                .descendants
                .iter()
                .filter_map(Result::ok)
                .filter(|(_, root)| root == gone)
                .map(|(pid, _)| pid)
                .collect();
            for pid in of_it {
                forgotten(self.descendants.remove(&pid), names::DESCENDANTS)?;
            }
        }
        for pid in pids.iter().filter(|pid| !self.pids.contains(pid)) {
            for task in threads(*pid) {
                self.descendants
                    .insert(task, pid, 0)
                    .map_err(map_error("insert into", names::DESCENDANTS))?;
            }
        }
        self.pids = pids.to_vec();
        Ok(())
    }

    fn remove_oldest(&mut self) -> Result<(), InterceptError> {
        let [_, oldest] = &mut self.written;
        let oldest = std::mem::take(oldest);
        for key in &oldest.prefixes {
            forgotten(self.prefixes.remove(key), names::PREFIXES)?;
        }
        for key in &oldest.members {
            forgotten(self.members.remove(key), names::MEMBERS)?;
        }
        for key in &oldest.hosts {
            forgotten(self.hosts.remove(key), names::HOSTS)?;
        }
        for key in &oldest.areas {
            forgotten(self.areas.remove(key), names::AREAS)?;
        }
        for key in &oldest.cells {
            forgotten(self.cells.remove(key), names::CELLS)?;
        }
        Ok(())
    }
}

fn array<V: Pod>(ebpf: &Ebpf, name: &'static str) -> Result<Array<MapData, V>, InterceptError> {
    Array::try_from(Map::Array(duplicate(ebpf, name)?)).map_err(map_error("open", name))
}

fn trie<K: Pod, V: Pod>(
    ebpf: &Ebpf,
    name: &'static str,
) -> Result<LpmTrie<MapData, K, V>, InterceptError> {
    LpmTrie::try_from(Map::LpmTrie(duplicate(ebpf, name)?)).map_err(map_error("open", name))
}

/// What an attempt to write a generation left in the maps.
struct Attempt {
    keys: Written,
    error: Option<InterceptError>,
}

/// A process and its threads; just the process when it cannot be listed.
pub(super) fn threads(pid: u32) -> Vec<u32> {
    let mut tasks = vec![pid];
    if let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) {
        tasks.extend(
            entries
                .filter_map(Result::ok)
                .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
                .filter(|tid| *tid != pid),
        );
    }
    tasks
}

/// Removing what is not there any more is no error.
fn forgotten(result: Result<(), MapError>, map: &'static str) -> Result<(), InterceptError> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(source) => Err(map_error("remove from", map)(source)),
    }
}

fn prefix_key(generation: u32, prefix: &Prefix) -> Key<PrefixKey> {
    Key::new(
        PrefixKey::HEAD_BITS + prefix.len,
        PrefixKey {
            generation,
            kind: prefix.kind,
            bits: prefix.bits,
        },
    )
}

fn cell_key(generation: u32, prefix: &CellPrefix) -> Key<CellKey> {
    Key::new(
        CellKey::HEAD_BITS + prefix.len,
        CellKey {
            generation,
            area: prefix.area,
            port: BePort::new(prefix.port),
            reserved: 0,
        },
    )
}

fn member_key(generation: u32, member: &Member) -> MemberKey {
    MemberKey {
        generation,
        kind: member.kind,
        id: member.id,
        device: member.device,
    }
}
