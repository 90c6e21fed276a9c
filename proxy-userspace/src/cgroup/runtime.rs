//! The cgroups that container runtimes make, found by the ids of containers.
//!
//! A runtime names the cgroup of a container by its id, with something before it that says which runtime it is, and as a unit of
//! systemd's where that makes the cgroup. What is below it (`init`, `container`) and what helps it (`conmon`) is called otherwise.

use std::path::Path;

use super::{Cgroup, Cgroup2, walk};

/// Hexadecimal digits of an id.
const ID: usize = 64;
/// As many of them are an id, too, as runtimes print them.
const SHORT_ID: usize = 12;

/// What comes before the id: of Docker, containerd by the Kubernetes CRI and by nerdctl, CRI-O, and Podman. With nothing, the directory
/// above says which it is (`docker/ID`, `kubepods/podUID/ID`).
const RUNTIMES: [&str; 6] = [
    "docker-",
    "cri-containerd-",
    "nerdctl-",
    "crio-",
    "libpod-",
    "",
];

/// Whether a text is the id of a container, or enough of one.
#[must_use]
pub fn is_id(text: &str) -> bool {
    (SHORT_ID..=ID).contains(&text.len()) && is_hexadecimal(text)
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The id of the container whose cgroup a directory is by its name.
fn id_of(directory: &Path) -> Option<&str> {
    let name = directory.file_name()?.to_str()?;
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let ids = RUNTIMES
        .iter()
        .filter_map(|runtime| name.strip_prefix(runtime));
    let mut ids = ids.filter(|id| id.len() == ID && is_hexadecimal(id));
    ids.next()
}

impl Cgroup2 {
    /// The containers whose ids begin so, with their cgroups, sorted. With another text than one that [`is_id`] there are none.
    #[must_use]
    pub fn containers(&self, id: &str) -> Vec<(String, Cgroup)> {
        if is_id(id) {
            self.all_containers(id)
        } else {
            Vec::new()
        }
    }

    /// As [`Cgroup2::containers`], whatever the text; with none, all that there are.
    pub(crate) fn all_containers(&self, id: &str) -> Vec<(String, Cgroup)> {
        let mut found = Vec::new();
        walk(self.mount(), &mut |directory| {
            let whole = id_of(directory).filter(|whole| whole.starts_with(id));
            let cgroup = whole.and_then(|whole| Some((whole.to_owned(), self.at(directory)?)));
            found.extend(cgroup);
            true
        });
        found.sort();
        found
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ONE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "0123456789abffff0123456789abcdef0123456789abcdef0123456789abcdef";

    fn found(tree: &Path, id: &str) -> Vec<String> {
        let cgroups = Cgroup2::pretended(tree);
        let found = cgroups.containers(id).into_iter();
        found
            .map(|(_, cgroup)| cgroup.path.display().to_string())
            .collect()
    }

    #[test]
    fn every_runtime_has_its_own_name_for_a_cgroup() {
        for place in [
            format!("system.slice/docker-{ONE}.scope"),
            format!("docker/{ONE}"),
            format!("kubepods.slice/kubepods-pod1.slice/cri-containerd-{ONE}.scope"),
            format!("kubepods/burstable/pod1/{ONE}"),
            format!("kubepods.slice/crio-{ONE}.scope"),
            format!("machine.slice/libpod-{ONE}.scope"),
        ] {
            let tree = tempfile::tempdir().unwrap();
            fs::create_dir_all(tree.path().join(&place).join("init.scope")).unwrap();
            for helper in ["conmon", "libpod-conmon", "crio-conmon"] {
                fs::create_dir(tree.path().join(format!("{helper}-{ONE}.scope"))).unwrap();
            }
            let place = format!("/{place}");
            assert_eq!(found(tree.path(), ONE), [&*place]);
            assert_eq!(found(tree.path(), &ONE[..12]), [&*place]);
            assert!(found(tree.path(), &ONE[..11]).is_empty(), "too short");
            assert!(found(tree.path(), "web").is_empty(), "a name");
        }
    }

    #[test]
    fn digits_that_several_have_in_common_are_told_as_several() {
        let tree = tempfile::tempdir().unwrap();
        for id in [OTHER, ONE] {
            fs::create_dir_all(tree.path().join(format!("docker-{id}.scope"))).unwrap();
        }
        let ids = |id: &str| -> Vec<_> {
            let found = Cgroup2::pretended(tree.path()).containers(id);
            found.into_iter().map(|(id, _)| id).collect()
        };
        assert_eq!(ids(&ONE[..12]), [ONE, OTHER]);
        assert_eq!(ids(&ONE[..13]), [ONE]);
    }
}
