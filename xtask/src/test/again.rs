//! Which tests failed, so that they can be run again by themselves.

/// Tests that failed, by the test program that they are in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    programs: Vec<Program>,
    /// Of the program that runs.
    names: Vec<String>,
    /// What the soak began with.
    seed: Option<String>,
}

/// A test program with tests that failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// What makes Cargo run it, as Cargo says: `-p culvert-tests --test programs`.
    pub(crate) selection: String,
    /// The tests; none if it died.
    pub(crate) names: Vec<String>,
}

impl Failures {
    /// Takes note of a line of the output.
    pub(crate) fn add(&mut self, line: &str) {
        if let Some(seed) = line.strip_prefix(super::SOAK_SEED) {
            self.seed = Some(seed.trim_end().to_owned());
        } else if line.trim_start().starts_with("Running ") {
            self.names.clear();
        } else if let Some(name) = failed(line) {
            self.names.push(name.to_owned());
        } else if let Some(selection) = selection(line) {
            self.programs.push(Program {
                selection: selection.to_owned(),
                names: std::mem::take(&mut self.names),
            });
        }
    }

    /// The programs, if the tests that failed are few: more of them are no accident.
    pub(crate) fn few(&self, most: usize) -> &[Program] {
        let count: usize = self
            .programs
            .iter()
            .map(|program| program.names.len())
            .sum();
        if count > most { &[] } else { &self.programs }
    }

    /// What the soak began with, if it failed: only then its output is shown.
    pub(crate) fn seed(&self) -> Option<&str> {
        self.seed.as_deref()
    }
}

fn failed(line: &str) -> Option<&str> {
    let name = line
        .strip_prefix("test ")?
        .trim_end()
        .strip_suffix("... FAILED")?;
    Some(name.trim_end())
}

fn selection(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("error: test failed, to rerun pass `")?;
    rest.trim_end().strip_suffix('`')
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "     Running tests/limits.rs (target/debug/deps/limits-1)
CULVERT_SOAK_SEED=42
test full ... ok
test empty ... FAILED
test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 5.69s
error: test failed, to rerun pass `-p culvert-tests --test limits`
     Running tests/exec.rs (target/debug/deps/exec-2)
test terminal::ctrl_c        ... FAILED
error: test failed, to rerun pass `-p proxy-userspace --test exec`
     Running tests/dies.rs (target/debug/deps/dies-3)
error: test failed, to rerun pass `-p proxy-userspace --test dies`
";

    #[test]
    fn knows_where_each_failed() {
        let mut failures = Failures::default();
        OUTPUT.lines().for_each(|line| failures.add(line));
        let program = |selection: &str, names: &[&str]| Program {
            selection: selection.to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };
        let expected = [
            program("-p culvert-tests --test limits", &["empty"]),
            program("-p proxy-userspace --test exec", &["terminal::ctrl_c"]),
            program("-p proxy-userspace --test dies", &[]),
        ];
        assert_eq!(failures.few(2), expected);
        assert_eq!(failures.seed(), Some("42"));
    }

    #[test]
    fn many_failures_are_no_accident() {
        let mut failures = Failures::default();
        OUTPUT.lines().for_each(|line| failures.add(line));
        assert_eq!(failures.few(1), []);
    }
}
