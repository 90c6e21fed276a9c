//! Tries the programs one by one on the running kernel, for those who want to know what is missing before it matters.

use std::{
    fs::File,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use aya::programs::{Program, ProgramError};
use proxy_common::names;

use super::{
    Features, InterceptError, MODE, Overlap, Settings, TASK_EVENTS, arrivals::OWN_NAMESPACE,
    attach_error, load_error, object, shortcut,
};
use crate::relay::shortcut::Proofs;

/// What became of one program.
#[derive(Debug)]
pub struct Trial {
    /// Its name, of [`names::PROGRAMS`].
    pub program: &'static str,
    /// Whether the kernel takes it.
    pub outcome: Result<(), InterceptError>,
    /// What the kernel says of it, once it is loaded.
    pub cost: Option<Cost>,
}

/// What it took to load a program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Its instructions, as the kernel has rewritten them.
    pub instructions: Option<u32>,
    /// Those that the verifier went through, each as often as it did. (Kernel 5.16.)
    pub verified: Option<u32>,
    /// How long it took to verify and translate it.
    pub time: Duration,
}

/// Loads every program. With a cgroup it is attached there too, or to its tracepoint, and detached before this
/// returns. No policy is in force: whatever passes the hooks meanwhile goes direct.
///
/// # Errors
/// When the kernel refuses the object as a whole.
pub fn try_programs(
    features: &Features,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Vec<Trial>, InterceptError> {
    let mut ebpf = object::load(Settings::UNCONFIGURED, features, &[])?;
    let trials = names::PROGRAMS.map(|program| match ebpf.program_mut(program) {
        None => Trial {
            program,
            outcome: Err(InterceptError::Missing(program)),
            cost: None,
        },
        Some(loaded) => try_program(loaded, program, cgroup),
    });
    Ok(trials.into())
}

/// Loads everything once more and tests the shortcut on sockets of its own.
///
/// # Errors
/// When the kernel refuses the object or the program.
pub fn prove_shortcut(features: &Features) -> Result<Proofs, InterceptError> {
    prove_shortcut_with(features, Overlap::Cut)
}

fn prove_shortcut_with(features: &Features, overlap: Overlap) -> Result<Proofs, InterceptError> {
    let settings = Settings {
        overlap,
        ..Settings::UNCONFIGURED
    };
    let mut ebpf = object::load(settings, features, &[])?;
    shortcut::enable(&mut ebpf, features, &shortcut::Office::default())
}

fn try_program(program: &mut Program, name: &'static str, cgroup: Option<BorrowedFd<'_>>) -> Trial {
    let begun = Instant::now();
    let loaded = load(program).map_err(load_error(name));
    let time = begun.elapsed();
    let cost = program.info().ok().map(|info| Cost {
        instructions: info.size_translated().map(|bytes| bytes / INSTRUCTION),
        verified: info.verified_instruction_count(),
        time,
    });
    let outcome = loaded.and_then(|()| {
        cgroup.map_or(Ok(()), |cgroup| {
            attach(program, name, cgroup).map_err(attach_error(name))
        })
    });
    Trial {
        program: name,
        outcome,
        cost,
    }
}

/// Bytes of an instruction.
const INSTRUCTION: u32 = 8;

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SkSkb(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkMsg(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// The link belongs to the program, so it ends with the object.
fn attach(program: &mut Program, name: &str, cgroup: BorrowedFd<'_>) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.attach(cgroup, MODE).map(drop),
        Program::CgroupSockopt(program) => program.attach(cgroup, MODE).map(drop),
        Program::SockOps(program) => program.attach(cgroup, MODE).map(drop),
        Program::CgroupSock(program) => program.attach(cgroup, MODE).map(drop),
        // Attached to maps, not to a cgroup; what uses the maps does it.
        // Or to interfaces, each of which has an owner.
        Program::SkMsg(_) | Program::SkSkb(_) | Program::SchedClassifier(_) => Ok(()),
        Program::SkLookup(program) => {
            let namespace = File::open(OWN_NAMESPACE).map_err(ProgramError::IOError)?;
            program.attach(namespace).map(drop)
        }
        Program::RawTracePoint(program) => {
            if name == names::DELIVERED {
                // The relay runs it; it has no event.
                return Ok(());
            }
            let event = TASK_EVENTS.iter().find(|(known, _)| *known == name);
            let (_, tracepoint) = event.ok_or(ProgramError::UnexpectedProgramType)?;
            program.attach(tracepoint).map(drop)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expect(overlap: Overlap, outcome: Result<(), &'static str>) {
        let features = Features::probe();
        match prove_shortcut_with(&features, overlap) {
            Ok(proofs) => assert_eq!(proofs.replies, outcome),
            Err(error) => {
                let strict = std::env::var_os("PROXY_TEST_STRICT").is_some();
                assert!(!strict, "needs root: {error}");
                eprintln!("skipped: needs root ({error})");
            }
        }
    }

    #[test]
    fn replies_pass() {
        expect(Overlap::Cut, Ok(()));
    }

    #[test]
    fn replies_that_are_delivered_twice_fail_the_test_of_it() {
        expect(Overlap::Deliver, Err("overlap of replies"));
    }
}
