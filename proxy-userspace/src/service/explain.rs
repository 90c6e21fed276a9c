//! Why connections are captured by the rules in force, or are not.

use super::Service;
use crate::{
    explain::{self, ExplainError, FastPath, InForce, subject},
    proxy::obstacle,
    rule::Roles,
    status::explanation::{Explanation, Request},
};

impl Service {
    /// What becomes of a connection, and why.
    pub(crate) fn explain(&self, connection: Request) -> Result<Explanation, ExplainError> {
        let reverse = self.proxy.arrival_rules(&self.config.reverse);
        let policy = InForce {
            roles: Roles {
                reverse: &reverse,
                ..self.config.roles()
            },
            fast_path: FastPath {
                router: &self.config.router,
                rests: self
                    .config
                    .router
                    .allow()
                    .err()
                    .map(|error| error.to_string()),
                obstacle,
            },
            names: &self.names,
            upstreams: &self.config.upstreams,
            groups: &self.config.groups,
            cgroups: &self.cgroups,
            attach_point: &self.attach_point,
            daemon: Some(std::process::id()),
            listeners: self.proxy.listeners(),
            network_namespace: subject::own_namespace(),
            spaces: self.proxy.spaces(),
            root_of: &|pid| self.proxy.root_of(pid),
        };
        explain::explain(&policy, connection)
    }
}
