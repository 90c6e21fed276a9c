//! The run: rounds that go through the contenders in turn, so that whatever else the machine does shows in all alike.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use culvert_tests::{Culvert, eventually::in_time, record::CloseRecord};

use crate::{
    contender::{Contender, Family, Relay},
    interrupt, progress,
    results::{Failure, Missing, Sample, Way},
    scene::{Scene, Stage, Threads},
    work::{Effort, Setting, Work},
};

/// What is found while it runs.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) missing: Vec<Missing>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) ways: Vec<Way>,
}

/// How a run is made.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) contenders: &'a [Contender],
    pub(crate) works: &'a [Work],
    pub(crate) threads: Threads,
    pub(crate) effort: Effort,
}

impl Plan<'_> {
    /// Measures everything.
    pub(crate) fn run(self, findings: &mut Findings) -> Result<()> {
        let stages: Vec<_> = self.contenders.iter().copied().map(Stage::of).collect();
        for setting in [Setting::Shared, Setting::Unlogged] {
            self.run_together(setting, &stages, findings)?;
        }
        self.run_fresh(&stages, findings)
    }

    fn works_of(self, setting: Setting) -> Vec<Work> {
        let works = self.works.iter().copied();
        works.filter(|work| work.setting() == setting).collect()
    }

    /// All contenders run all the time; those that are not measured have nothing to do.
    fn run_together(
        self,
        setting: Setting,
        stages: &[Stage],
        findings: &mut Findings,
    ) -> Result<()> {
        let works = self.works_of(setting);
        if works.is_empty() {
            return Ok(());
        }
        let mut scenes = Vec::new();
        for (contender, stage) in self.contenders.iter().zip(stages) {
            progress::step(&format!("starting {}", contender.name));
            scenes.extend(self.start(*contender, stage, setting, findings)?);
        }
        for work in works {
            progress::step(&format!("{work}: {}", work.title()));
            let mut seen = vec![0; scenes.len()];
            for (scene, seen) in scenes.iter().zip(&mut seen) {
                *seen = records(scene).len();
            }
            for round in 0..self.effort.rounds {
                // None is always the one that follows another.
                scenes.rotate_left(1);
                seen.rotate_left(1);
                for scene in &mut scenes {
                    interrupt::check()?;
                    self.measure(scene, work, round, findings);
                }
            }
            for (scene, seen) in scenes.iter().zip(seen) {
                let expected = connections(work) * self.effort.rounds;
                let (contender, relay) = (scene.contender, &scene.relay);
                findings.look_at_ways(contender, relay, work, seen, expected as usize);
            }
        }
        Ok(())
    }

    /// One contender runs at a time.
    fn run_fresh(self, stages: &[Stage], findings: &mut Findings) -> Result<()> {
        for work in self.works_of(Setting::Fresh) {
            progress::step(&format!("{work}: {}", work.title()));
            for round in 0..self.effort.fresh_rounds {
                for (contender, stage) in self.contenders.iter().zip(stages) {
                    interrupt::check()?;
                    let scene = self.start(*contender, stage, Setting::Fresh, findings)?;
                    if let Some(mut scene) = scene {
                        self.measure(&mut scene, work, round, findings);
                        let expected = match work {
                            Work::Idle => self.effort.idle as usize,
                            _ => 1,
                        };
                        // What is stuck before a server that does not read ends with the server.
                        let relay = scene.into_relay();
                        findings.look_at_ways(*contender, &relay, work, 0, expected);
                    }
                }
            }
        }
        Ok(())
    }

    /// A peer that does not start is missing; culvert and the load have to.
    fn start<'a>(
        self,
        contender: Contender,
        stage: &'a Stage,
        setting: Setting,
        findings: &mut Findings,
    ) -> Result<Option<Scene<'a>>> {
        match Scene::start(contender, stage, self.threads, setting) {
            Ok(scene) => Ok(Some(scene)),
            Err(error) if contender.family() == Family::Peer => {
                findings.miss(contender, &format!("{error:#}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn measure(self, scene: &mut Scene<'_>, work: Work, round: u32, findings: &mut Findings) {
        let (work_name, contender) = (work.to_string(), scene.contender.name.to_owned());
        match scene.measure(work, self.effort) {
            Ok(figures) => findings.samples.push(Sample {
                work: work_name,
                contender,
                round,
                figures,
            }),
            Err(error) => {
                progress::step(&format!("{contender}: {work}: {error:#}"));
                findings.failures.push(Failure {
                    work: work_name,
                    contender,
                    round,
                    error: format!("{error:#}"),
                });
            }
        }
    }
}

/// Connections of one measurement of work whose records are looked at.
fn connections(work: Work) -> u32 {
    match work {
        Work::Exchange { connections, .. } | Work::Bulk { connections, .. } => connections,
        Work::Connect { .. } | Work::Idle | Work::SlowReader => 0,
    }
}

fn records(scene: &Scene<'_>) -> Vec<CloseRecord> {
    match &scene.relay {
        Relay::Culvert { culvert, .. } => culvert.records(),
        _ => Vec::new(),
    }
}

impl Findings {
    /// Notes a contender that cannot be measured; once, whatever it is started for.
    pub(crate) fn miss(&mut self, contender: Contender, reason: &str) {
        let name = contender.name;
        if self.missing.iter().all(|missing| missing.name != name) {
            progress::step(&format!("{name} is missing: {reason}"));
            self.missing.push(Missing {
                name: name.to_owned(),
                reason: reason.to_owned(),
            });
        }
    }

    /// Looks whether culvert did what its name in the report says.
    fn look_at_ways(
        &mut self,
        contender: Contender,
        relay: &Relay<'_>,
        work: Work,
        seen: usize,
        expected: usize,
    ) {
        let (Relay::Culvert { culvert, .. }, Some(path)) = (relay, contender.path()) else {
            return;
        };
        if work.setting() == Setting::Unlogged || path == "steer" || path == "rewrite" {
            // What is steered or rewritten has no records at all.
            self.look_at_counter(culvert, contender, work);
            return;
        }
        // A record is written when both sides have closed, shortly after the client has.
        let all = || {
            let records = culvert.records();
            (records.len() >= seen + expected).then_some(records)
        };
        let records = in_time(all).unwrap_or_else(|| culvert.records());
        let mut ways = BTreeMap::<_, Vec<CloseRecord>>::new();
        for record in records.into_iter().skip(seen) {
            let path = record.path.clone().unwrap_or_else(|| "none".to_owned());
            ways.entry((path, record.path_reason.clone()))
                .or_default()
                .push(record);
        }
        if ways.is_empty() {
            self.fail(work, contender, "no close record: nothing was relayed");
        }
        for ((taken, reason), records) in ways {
            let sum = |of: fn(&CloseRecord) -> u64| records.iter().map(of).sum::<u64>();
            let is_other = !is_as_asked(path, &taken);
            self.ways.push(Way {
                work: work.to_string(),
                contender: contender.name.to_owned(),
                path: taken,
                reason,
                connections: records.len() as u64,
                bytes: sum(|record| record.up + record.down),
                past_relay: sum(|record| {
                    record.bytes.sockmap + record.bytes.shortcut + record.bytes.replies
                }),
                is_other,
            });
        }
    }

    /// Without records, the hooks' own count says that connections were intercepted.
    fn look_at_counter(&mut self, culvert: &Culvert<'_>, contender: Contender, work: Work) {
        let counter = contender.counter();
        if culvert.counter(counter) == 0 {
            let error = format!("the hooks have taken no connection: {counter} is 0");
            self.fail(work, contender, &error);
        }
    }

    fn fail(&mut self, work: Work, contender: Contender, error: &str) {
        self.failures.push(Failure {
            work: work.to_string(),
            contender: contender.name.to_owned(),
            round: 0,
            error: error.to_owned(),
        });
    }

    /// Contenders of which there is any figure.
    pub(crate) fn measured(&self) -> BTreeSet<&str> {
        let samples = self.samples.iter();
        samples.map(|sample| sample.contender.as_str()).collect()
    }
}

/// Whether a path of a close record is one that the path of a rule stands for.
fn is_as_asked(asked: &str, taken: &str) -> bool {
    // The kinds of shortcut differ in when they are refused; `auto` is whatever it chooses.
    asked == "auto" || asked.starts_with(taken)
}
