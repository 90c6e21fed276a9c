//! What the rules of a configuration need to be in force beyond the daemon's life.

use crate::rule::{FailMode, Gateway, Roles};

/// Which rules are to hold after a kill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardNeeds {
    /// Some for what apps open.
    pub forward: bool,
    /// Some for what arrives.
    pub reverse: bool,
    /// Some for what passes through: what was relayed must not be routed on, whatever their fail mode.
    pub gateway: bool,
}

impl GuardNeeds {
    /// Of the rules of all roles.
    #[must_use]
    pub fn of(roles: Roles<'_>) -> Self {
        Self {
            forward: roles
                .forward
                .iter()
                .any(|rule| rule.on_relay_failure == FailMode::Refuse),
            reverse: roles
                .reverse
                .iter()
                .any(|rule| rule.on_relay_failure == FailMode::Refuse),
            gateway: roles.gateway.iter().any(Gateway::is_relayed),
        }
    }

    /// Whether there are any.
    #[must_use]
    pub const fn any(self) -> bool {
        self.forward || self.reverse || self.gateway
    }

    /// Both together.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self {
            forward: self.forward || other.forward,
            reverse: self.reverse || other.reverse,
            gateway: self.gateway || other.gateway,
        }
    }
}
