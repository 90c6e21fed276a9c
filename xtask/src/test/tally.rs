//! Adding up the results that test programs print.

use std::fmt;

/// Tests that ended, over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed, and test programs that died.
    pub(crate) failed: u64,
    /// Names of those that failed at first and passed by themselves.
    pub(crate) unstable: Vec<String>,
}

impl Tally {
    /// Counts a line if it is a program's last, `test result: ok. 5 passed; 0 failed; …`.
    pub(crate) fn add(&mut self, line: &str) {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|result| result.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            match count.trim().split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }

    /// Counts tests that failed as passed, and keeps their names.
    pub(crate) fn accept(&mut self, names: Vec<String>) {
        let count = names.len() as u64;
        self.failed = self.failed.saturating_sub(count);
        self.passed += count;
        self.unstable.extend(names);
    }

    /// A test program that dies prints no result; Cargo's exit status still tells.
    pub(crate) fn with_exit(mut self, success: bool) -> Self {
        if !success && self.failed == 0 {
            self.failed = 1;
        }
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        if !self.unstable.is_empty() {
            let names = self.unstable.join(", ");
            write!(formatter, "; unstable, passed only by themselves: {names}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64) -> Tally {
        Tally {
            passed,
            failed,
            unstable: Vec::new(),
        }
    }

    #[test]
    fn adds_up_results_and_nothing_else() {
        let mut sum = Tally::default();
        for line in [
            "running 5 tests\n",
            "test passed; 1 failed ... ok\n",
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s\n",
            "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n",
        ] {
            sum.add(line);
        }
        assert_eq!(sum, tally(12, 2));
        assert_eq!(sum.to_string(), "12 passed, 2 failed");
    }

    #[test]
    fn names_what_passes_by_itself_only() {
        let mut sum = tally(5, 2);
        sum.accept(vec!["shy".to_owned()]);
        assert_eq!((sum.passed, sum.failed), (6, 1));
        assert!(sum.to_string().ends_with(": shy"), "{sum}");
    }

    #[test]
    fn counts_a_program_that_died() {
        assert_eq!(tally(3, 0).with_exit(false), tally(3, 1));
        assert_eq!(tally(3, 2).with_exit(false), tally(3, 2));
        assert_eq!(tally(3, 0).with_exit(true), tally(3, 0));
    }
}
