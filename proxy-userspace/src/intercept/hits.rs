//! What each rule has selected, as the hooks count it.

use aya::{
    Ebpf,
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use proxy_common::{Hit, RuleRef, names};

use super::{
    InterceptError,
    handles::{duplicate, map_error},
};

/// The hits of the rules of two generations.
pub struct Hits {
    map: PerCpuArray<MapData, u64>,
}

impl Hits {
    pub(super) fn new(ebpf: &Ebpf) -> Result<Self, InterceptError> {
        Ok(Self {
            map: PerCpuArray::try_from(Map::PerCpuArray(duplicate(ebpf, names::HITS)?))
                .map_err(map_error("open", names::HITS))?,
        })
    }

    /// How often a rule did something, summed over the CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(&self, hit: Hit, rule: RuleRef) -> Result<u64, InterceptError> {
        let values = self.map.get(&hit.index(rule), 0);
        let values = values.map_err(map_error("read", names::HITS))?;
        Ok(values.iter().sum())
    }

    /// Begins again at 0. No hook may be counting for the rule.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn clear(&mut self, hit: Hit, rule: RuleRef) -> Result<(), InterceptError> {
        let cpus = nr_cpus().map_err(|(_, source)| InterceptError::Handle {
            map: names::HITS,
            source,
        })?;
        let zeros = PerCpuValues::try_from(vec![0; cpus]);
        let zeros = zeros.map_err(|source| InterceptError::Handle {
            map: names::HITS,
            source,
        })?;
        self.map
            .set(hit.index(rule), zeros, 0)
            .map_err(map_error("write", names::HITS))
    }
}
