//! Which services' listeners connections are given to.

use std::collections::BTreeSet;

use proxy_common::RuleRef;

use super::{Proxy, ProxyError};
use crate::{
    process::listening::{self, Listening},
    rule::Reverse,
};

impl Proxy {
    /// Looks for the listeners of services that rules in force are steered to, where others would be given connections than we
    /// know: services start, and start anew. Without one the connections of its rule are relayed.
    pub fn steer(&mut self, rules: &[Reverse]) {
        let rules = self.drains.rules(rules);
        self.give_listeners(self.generation, &rules);
    }

    /// The same for rules that are not in force yet, so that not one connection of theirs is relayed.
    pub(super) fn steer_next(
        &mut self,
        generation: u32,
        rules: &[Reverse],
    ) -> Result<(), ProxyError> {
        self.interceptor.forget_services(generation)?;
        self.give_listeners(generation, rules);
        Ok(())
    }

    fn give_listeners(&mut self, generation: u32, rules: &[Reverse]) {
        let steered = (0..).zip(rules).filter_map(|(index, rule)| {
            let rule_ref = RuleRef { generation, index };
            Some((rule_ref, rule, rule.steered_to()?))
        });
        let mut steered = steered.peekable();
        if steered.peek().is_none() {
            return;
        }
        let (listening, held) = (Listening::read(), self.interceptor.services(generation));
        let wanted: Vec<_> = steered
            .filter_map(|(rule_ref, rule, to)| {
                let held = held.get(&rule_ref).copied();
                let best = listening.best(to, held)?;
                (Some(best) != held).then_some((rule_ref, rule, to, best))
            })
            .collect();
        let inodes: BTreeSet<_> = wanted.iter().map(|(.., inode)| *inode).collect();
        let sockets = listening::take(&inodes);
        for (rule_ref, rule, to, inode) in wanted {
            let Some(listener) = sockets.get(&inode) else {
                continue;
            };
            match self.interceptor.steer(rule_ref, listener, inode) {
                Ok(()) => {
                    tracing::info!(rule = &*rule.name, %to, "steered to the service's listener");
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(rule = &*rule.name, error, "cannot steer; relaying");
                }
            }
        }
    }
}
