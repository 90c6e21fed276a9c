//! Network namespaces of containers.

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};

use crate::paint::{Paint, Tone};

/// A network namespace of a container that a rule names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// The container, as the rule calls it.
    pub container: String,
    /// Its id.
    pub id: String,
    /// The directory of its cgroup.
    pub cgroup: String,
    /// The number of the namespace, as in `net:[NUMBER]`.
    pub namespace: u64,
    /// Where the daemon listens in there.
    pub listener_v4: Option<SocketAddr>,
    /// And by IPv6, if the namespace has it.
    pub listener_v6: Option<SocketAddr>,
    /// Why it does not.
    pub problem: Option<String>,
}

impl SpaceStatus {
    /// Where the daemon listens in there.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = SocketAddr> {
        [self.listener_v4, self.listener_v6].into_iter().flatten()
    }
}

/// For people.
pub(super) fn write(spaces: &[SpaceStatus], text: &mut String, paint: Paint) -> fmt::Result {
    if !spaces.is_empty() {
        writeln!(text, "\n{}", paint.text(Tone::Strong, "Containers"))?;
    }
    for space in spaces {
        let short = space.id.get(..12).unwrap_or(&space.id);
        write!(
            text,
            "  {} ({short}), net:[{}]: ",
            space.container, space.namespace
        )?;
        if let Some(problem) = &space.problem {
            writeln!(text, "{}", paint.text(Tone::Doubtful, problem))?;
            continue;
        }
        let listeners: Vec<_> = space.listeners().map(|it| it.to_string()).collect();
        writeln!(text, "listening on {}", listeners.join(" and "))?;
    }
    Ok(())
}
