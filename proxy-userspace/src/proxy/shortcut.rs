//! Whether rules may have the shortcut.

use std::sync::Arc;

use super::Proxy;
use crate::{
    intercept::{Features, Interceptor},
    pulse::Supervisor,
    relay::shortcut::{Proof, Proofs},
    rule::{PathChoice, Rule, Via},
};

impl Proxy {
    /// Whether connections of a rule may take the shortcut. The first rule that asks has this kernel tested, if no `proofs` are
    /// known yet.
    pub(super) fn may_take_shortcut(&mut self, rule: &Rule, proofs: &mut Option<Proofs>) -> bool {
        if !rule.path.is_shortcut() || !matches!(rule.via, Via::Upstream(_)) {
            return false;
        }
        let proofs = *proofs.get_or_insert_with(|| {
            let proofs =
                prove_shortcut(&mut self.interceptor, &self.features, &mut self.supervisor);
            self.shared.shortcut.store(Some(Arc::new(proofs)));
            proofs
        });
        let proof = proofs.requests;
        match proof.allows(rule.path) {
            Ok(allowed) => {
                if let (PathChoice::ShortcutBothWays, Err(test)) = (rule.path, proofs.replies) {
                    let missing = self.features.queues.as_ref().err();
                    tracing::warn!(
                        rule = &*rule.name,
                        why = missing.map_or(test, String::as_str),
                        "this kernel has no way for replies past the relay that is safe; this rule's are copied"
                    );
                }
                allowed
            }
            Err(obstacle) => {
                tracing::warn!(
                    rule = &*rule.name,
                    ?proof,
                    obstacle = obstacle.label(),
                    "this kernel has no shortcut that is safe for this rule; its connections are copied"
                );
                false
            }
        }
    }
}

/// Finds out what the shortcut is worth on this kernel, and has what it needs served; says why where there is none.
fn prove_shortcut(
    interceptor: &mut Interceptor,
    features: &Features,
    supervisor: &mut Supervisor,
) -> Proofs {
    let none = Proofs {
        requests: Proof::Failed("program"),
        replies: Err("program"),
    };
    // A program that cannot look into sockets leaves them alone: of that no test would tell.
    if let Err(missing) = &features.sockets {
        tracing::warn!(missing, "no shortcut");
        return none;
    }
    let proved = interceptor.enable_shortcut(features).and_then(|proofs| {
        if proofs.replies.is_ok() {
            supervisor.hear_replies(interceptor.reply_events()?);
        }
        Ok(proofs)
    });
    proved.unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "no shortcut");
        none
    })
}
