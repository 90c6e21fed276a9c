//! What each rule has selected since the start, whatever generations it was in.
//!
//! The hooks count in the slots of two generations. When a policy is about to get the slots of the one before the one in force,
//! which by then no hook uses any more, what is in them is added up by the names of the rules.

use std::{collections::HashMap, sync::Arc};

use proxy_common::{Hit, RuleRef};

use super::ProxyError;
use crate::{intercept::Hits, record::Role, rule::Roles};

/// Connections that a rule selected, and such as its fail mode was applied to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HitCount {
    pub(crate) selected: u64,
    pub(crate) failed: u64,
}

impl HitCount {
    fn add(&mut self, other: Self) {
        self.selected = self.selected.wrapping_add(other.selected);
        self.failed = self.failed.wrapping_add(other.failed);
    }
}

/// The rules of one role that have slots, in their order.
type Names = Vec<Arc<str>>;

/// Counts by name.
pub(super) struct Tally {
    kernel: Hits,
    /// Who has the slots of even generations, and of odd ones.
    halves: [[Names; ROLES.len()]; 2],
    /// What was in slots that others have now.
    before: HashMap<(Role, Arc<str>), HitCount>,
}

const ROLES: [(Role, [Hit; 2]); 3] = [
    (Role::Forward, [Hit::Selected, Hit::Failed]),
    (Role::Reverse, [Hit::Arrived, Hit::ArrivedFailed]),
    (Role::Gateway, [Hit::Passing, Hit::PassingFailed]),
];

impl Tally {
    pub(super) fn new(kernel: Hits) -> Self {
        Self {
            kernel,
            halves: Default::default(),
            before: HashMap::new(),
        }
    }

    /// Makes the slots of a generation ready for it.
    pub(super) fn make_room(&mut self, generation: u32) -> Result<(), ProxyError> {
        let Some(half) = self.halves.get_mut(generation as usize % 2) else {
            return Ok(());
        };
        let old = std::mem::take(half);
        for ((role, hits), names) in ROLES.into_iter().zip(old) {
            for (index, name) in (0..).zip(names) {
                let rule = RuleRef { generation, index };
                let count = count(&self.kernel, hits, rule)?;
                self.before.entry((role, name)).or_default().add(count);
                for hit in hits {
                    self.kernel.clear(hit, rule)?;
                }
            }
        }
        Ok(())
    }

    /// A generation is in force. What is known of rules that are in neither is forgotten.
    pub(super) fn installed(&mut self, generation: u32, roles: &Roles<'_>) {
        if let Some(half) = self.halves.get_mut(generation as usize % 2) {
            *half = [
                names(roles.forward, |rule| &rule.name),
                names(roles.reverse, |rule| &rule.name),
                names(roles.gateway, |rule| &rule.name),
            ];
        }
        let halves = &self.halves;
        self.before.retain(|(role, name), _| {
            let mut all = halves.iter().flat_map(|half| ROLES.into_iter().zip(half));
            all.any(|((of, _), names)| of == *role && names.contains(name))
        });
    }

    /// What all rules have selected.
    pub(super) fn read(&self) -> Result<HashMap<(Role, Arc<str>), HitCount>, ProxyError> {
        let mut counts = self.before.clone();
        for (generation, half) in (0..).zip(&self.halves) {
            for ((role, hits), names) in ROLES.into_iter().zip(half) {
                for (index, name) in (0..).zip(names) {
                    let count = count(&self.kernel, hits, RuleRef { generation, index })?;
                    let name = (role, Arc::clone(name));
                    counts.entry(name).or_default().add(count);
                }
            }
        }
        Ok(counts)
    }
}

fn names<R>(rules: &[R], name: fn(&R) -> &Arc<str>) -> Names {
    rules.iter().map(|rule| Arc::clone(name(rule))).collect()
}

fn count(
    kernel: &Hits,
    [selected, failed]: [Hit; 2],
    rule: RuleRef,
) -> Result<HitCount, ProxyError> {
    Ok(HitCount {
        selected: kernel.read(selected, rule)?,
        failed: kernel.read(failed, rule)?,
    })
}
