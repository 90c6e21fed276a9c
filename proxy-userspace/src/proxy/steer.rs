//! Which services' listeners connections are given to.

use proxy_common::RuleRef;

use super::Proxy;
use crate::{process, rule::Reverse};

impl Proxy {
    /// Looks for the listeners of services that rules in force are steered to, where they are not known: services start, and
    /// start anew. Without one the connections of its rule are relayed.
    pub fn steer(&mut self, rules: &[Reverse]) {
        let rules = self.drains.rules(rules);
        for (index, rule) in (0..).zip(rules.iter()) {
            let rule_ref = RuleRef {
                generation: self.generation,
                index,
            };
            let Some(to) = rule.steered_to() else {
                continue;
            };
            if self.interceptor.knows_service(rule_ref) {
                continue;
            }
            let Some(listener) = process::listener_at(to) else {
                continue;
            };
            match self.interceptor.steer(rule_ref, &listener) {
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
