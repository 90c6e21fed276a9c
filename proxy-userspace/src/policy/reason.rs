//! Why a rule does not select a connection, found by asking what decides.
//!
//! There is no second matcher here that could disagree: a rule alone, with its selectors one after the other, is compiled and
//! given to the same functions that run in the kernel.

use std::slice;

use proxy_common::{Arrival, Decision, Subject, Transit, decide, select, transit};

use super::{CompileError, Names, compile, memory::MemoryTables};
use crate::rule::{Gateway, Match, Reverse, Roles, Rule, Selector};

/// A key of a rule that selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `listen`.
    Listen,
    /// `source`.
    Source,
    /// `interface`.
    Interface,
    /// `dest`.
    Dest,
    /// `port`.
    Port,
    /// `uid`.
    Uid,
    /// `gid`.
    Gid,
    /// `cgroup`.
    Cgroup,
    /// `exe`.
    Exe,
    /// `pid`.
    Pid,
}

impl Key {
    /// As files have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Listen => "listen",
            Self::Source => "source",
            Self::Interface => "interface",
            Self::Dest => "dest",
            Self::Port => "port",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Cgroup => "cgroup",
            Self::Exe => "exe",
            Self::Pid => "pid",
        }
    }
}

/// In the order in which [`decide()`] looks at them.
const OPENED: [Key; 7] = [
    Key::Dest,
    Key::Port,
    Key::Uid,
    Key::Gid,
    Key::Cgroup,
    Key::Exe,
    Key::Pid,
];

/// In the order in which [`select()`] looks at them.
const ARRIVED: [Key; 3] = [Key::Listen, Key::Source, Key::Interface];

/// In the order in which [`transit()`] looks at them.
const PASSED: [Key; 4] = [Key::Interface, Key::Dest, Key::Port, Key::Source];

/// The first key for which a rule does not select a connection that is opened; `None` when it does.
///
/// # Errors
/// When the rule does not fit the kernel's tables.
pub fn not_opened(
    rule: &Rule,
    names: &Names,
    subject: &impl Subject,
) -> Result<Option<Key>, CompileError> {
    first_failing(&OPENED, |keys| {
        let alone = Rule {
            matches: only(&rule.matches, keys),
            ..rule.clone()
        };
        let compiled = compile(Roles::from(slice::from_ref(&alone)), names)?;
        Ok(decide(&MemoryTables::new(1, &compiled), subject))
    })
}

/// The first key for which a rule does not take a connection that arrives; `None` when it does, unless a more specific one does.
///
/// # Errors
/// When the rule does not fit the kernel's tables.
pub fn not_arrived(
    rule: &Reverse,
    names: &Names,
    arrival: &impl Arrival,
) -> Result<Option<Key>, CompileError> {
    first_failing(&ARRIVED, |keys| {
        let mut alone = rule.clone();
        if !keys.contains(&Key::Source) {
            alone.source = Selector::default();
        }
        if !keys.contains(&Key::Interface) {
            alone.interface = Selector::default();
        }
        let compiled = compile(Roles::from(slice::from_ref(&alone)), names)?;
        Ok(select(&MemoryTables::new(1, &compiled), arrival))
    })
}

/// The first key for which a rule does not select a connection that passes through; `None` when it does.
///
/// # Errors
/// When the rule does not fit the kernel's tables.
pub fn not_passed(
    rule: &Gateway,
    names: &Names,
    passing: &impl Transit,
) -> Result<Option<Key>, CompileError> {
    first_failing(&PASSED, |keys| {
        // Every rule names interfaces.
        let mut alone = rule.clone();
        if !keys.contains(&Key::Dest) {
            alone.dest = Selector::default();
        }
        if !keys.contains(&Key::Port) {
            alone.port = Selector::default();
        }
        if !keys.contains(&Key::Source) {
            alone.source = Selector::default();
        }
        let compiled = compile(Roles::from(slice::from_ref(&alone)), names)?;
        Ok(transit(&MemoryTables::new(1, &compiled), passing))
    })
}

/// Selectors are `ANDed`: the first that fails is the last of the shortest list with which nothing is selected.
fn first_failing(
    keys: &[Key],
    mut decision: impl FnMut(&[Key]) -> Result<Decision, CompileError>,
) -> Result<Option<Key>, CompileError> {
    if matches!(decision(keys)?, Decision::Selected(..)) {
        return Ok(None);
    }
    for (count, key) in (1..).zip(keys) {
        let first = keys.get(..count).unwrap_or(keys);
        if decision(first)? == Decision::Unselected {
            return Ok(Some(*key));
        }
    }
    // Not reached: the whole list was asked first.
    Ok(keys.last().copied())
}

/// Some of the selectors.
fn only(matches: &Match, keys: &[Key]) -> Match {
    fn kept<T: Clone>(selector: &Selector<T>, keys: &[Key], key: Key) -> Selector<T> {
        if keys.contains(&key) {
            selector.clone()
        } else {
            Selector::default()
        }
    }
    Match {
        cgroup: kept(&matches.cgroup, keys, Key::Cgroup),
        exe: kept(&matches.exe, keys, Key::Exe),
        uid: kept(&matches.uid, keys, Key::Uid),
        gid: kept(&matches.gid, keys, Key::Gid),
        pid: kept(&matches.pid, keys, Key::Pid),
        dest: kept(&matches.dest, keys, Key::Dest),
        port: kept(&matches.port, keys, Key::Port),
    }
}
