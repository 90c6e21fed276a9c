//! Tries the programs one by one on the running kernel, for those who want to know what is missing before it matters.

use std::{
    fs::File,
    io,
    os::fd::BorrowedFd,
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Map, SockMap, sock::SockMapFd},
    programs::{Program, ProgramError, SchedClassifier, TcAttachType, links::Link as _, tc},
};
use nix::sched::{CloneFlags, unshare};
use proxy_common::names;

use super::{
    Features, InterceptError, MODE, Overlap, Settings, TASK_EVENTS, arrivals::OWN_NAMESPACE,
    attach_error, handles::duplicate, load_error, object, shortcut,
};
use crate::relay::shortcut::Proofs;

/// What became of one program.
#[derive(Debug)]
pub struct Trial {
    /// Its name, of [`names::PROGRAMS`].
    pub program: &'static str,
    /// Whether the kernel takes it, and how far it went.
    pub outcome: Result<Stage, InterceptError>,
    /// What the kernel says of it, once it is loaded.
    pub cost: Option<Cost>,
}

/// How far a program went that the kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It was loaded. There is nowhere to attach it, or that takes a privilege which is not there.
    Loaded,
    /// It was attached, too, and detached again.
    Attached,
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

/// Loads every program. With a cgroup it is attached there too, or to its tracepoint, to its map of sockets or to the loopback
/// interface of a network namespace that is made for that, and detached before this returns. No policy is in force: whatever passes
/// the hooks meanwhile goes direct.
///
/// # Errors
/// When the kernel refuses the object as a whole.
pub fn try_programs(
    features: &Features,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Vec<Trial>, InterceptError> {
    let mut ebpf = object::load(Settings::UNCONFIGURED, features, &[])?;
    let trials = names::PROGRAMS.map(|program| {
        let place = cgroup.map(|cgroup| Place {
            cgroup,
            sockets: sockets(&ebpf, program),
        });
        match ebpf.program_mut(program) {
            None => Trial {
                program,
                outcome: Err(InterceptError::Missing(program)),
                cost: None,
            },
            Some(loaded) => try_program(loaded, program, place),
        }
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

/// Where programs are attached.
struct Place<'a> {
    cgroup: BorrowedFd<'a>,
    /// Of programs that belong to a map of sockets.
    sockets: Option<SockMapFd>,
}

/// The map whose sockets a program sees.
fn sockets(ebpf: &Ebpf, program: &str) -> Option<SockMapFd> {
    let of_hash = |name| shortcut::sockets(ebpf, name).ok()?.fd().try_clone().ok();
    match program {
        names::SHORTCUT => of_hash(names::APPS),
        names::REPLY => of_hash(names::ANSWERS),
        names::VERDICT => {
            let pairs = Map::SockMap(duplicate(ebpf, names::PAIRS).ok()?);
            SockMap::try_from(pairs).ok()?.fd().try_clone().ok()
        }
        _ => None,
    }
}

fn try_program(program: &mut Program, name: &'static str, place: Option<Place<'_>>) -> Trial {
    let begun = Instant::now();
    let loaded = load(program).map_err(load_error(name));
    let time = begun.elapsed();
    let cost = program.info().ok().map(|info| Cost {
        instructions: info.size_translated().map(|bytes| bytes / INSTRUCTION),
        verified: info.verified_instruction_count(),
        time,
    });
    let outcome = loaded.and_then(|()| {
        place.map_or(Ok(Stage::Loaded), |place| {
            attach(program, name, &place).map_err(attach_error(name))
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
fn attach(program: &mut Program, name: &str, place: &Place<'_>) -> Result<Stage, ProgramError> {
    let Place { cgroup, sockets } = place;
    match (program, sockets) {
        (Program::CgroupSockAddr(program), _) => program.attach(cgroup, MODE).map(drop)?,
        (Program::CgroupSockopt(program), _) => program.attach(cgroup, MODE).map(drop)?,
        (Program::SockOps(program), _) => program.attach(cgroup, MODE).map(drop)?,
        (Program::CgroupSock(program), _) => program.attach(cgroup, MODE).map(drop)?,
        (Program::SkMsg(program), Some(sockets)) => program.attach(sockets).map(drop)?,
        (Program::SkSkb(program), Some(sockets)) => program.attach(sockets).map(drop)?,
        (Program::SchedClassifier(program), _) => return attach_aside(program),
        (Program::SkLookup(program), _) => {
            let namespace = File::open(OWN_NAMESPACE).map_err(ProgramError::IOError)?;
            program.attach(namespace).map(drop)?;
        }
        // The relay runs it; it has no event.
        (Program::RawTracePoint(_), _) if name == names::DELIVERED => return Ok(Stage::Loaded),
        (Program::RawTracePoint(program), _) => {
            let event = TASK_EVENTS.iter().find(|(known, _)| *known == name);
            let (_, tracepoint) = event.ok_or(ProgramError::UnexpectedProgramType)?;
            program.attach(tracepoint).map(drop)?;
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    Ok(Stage::Attached)
}

/// Attaches a program to the loopback interface of a network namespace that ends with the thread: interfaces here have owners.
fn attach_aside(program: &mut SchedClassifier) -> Result<Stage, ProgramError> {
    const INTERFACE: &str = "lo";
    let attach = || {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return Ok(Stage::Loaded);
        }
        // What programs hang on before kernel 6.6; where it is missing, attaching says so. Later ones can do without.
        _ = tc::qdisc_add_clsact(INTERFACE);
        let link = program.attach(INTERFACE, TcAttachType::Ingress)?;
        // Here: elsewhere it would be taken off another interface of that number.
        program.take_link(link)?.detach()?;
        Ok(Stage::Attached)
    };
    thread::scope(|scope| {
        let attached = scope.spawn(attach).join();
        attached
            .unwrap_or_else(|_| Err(ProgramError::IOError(io::Error::other("a thread panicked"))))
    })
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
