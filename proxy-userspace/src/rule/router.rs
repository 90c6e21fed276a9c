//! What the `[router]` section is: between which interfaces packets are sent on past the kernel's own routing.

use std::collections::BTreeSet;

/// What becomes of what no rule selects and passes through. By default the kernel routes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Router {
    /// Names of the interfaces that packets are sent on between; none, or two at least.
    pub fast_path: BTreeSet<String>,
    /// Whether that is wanted also where netfilter has rules for such packets, which do not see them then.
    pub force: bool,
}

impl Router {
    /// Whether it does anything.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.fast_path.is_empty()
    }
}
