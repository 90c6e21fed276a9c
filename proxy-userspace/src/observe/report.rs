//! Where the lines go, and in which form.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use proxy_common::{Sighting, outcome};
use serde::Serialize;

use super::{
    guess::Guess,
    line::{Line, destination, pid, protocol},
    outlook::{Prospect, Rules},
    summary::Tally,
};
use crate::{admin, cgroup::Cgroup2, cli::WatchArgs, daemon, paint::Paint};

/// Cgroups whose names are remembered, at most.
const CAPACITY: usize = 4096;

/// Tells what is seen.
pub(super) struct Report {
    output: BufWriter<Box<dyn Write>>,
    /// Nobody reads it any more.
    closed: bool,
    json: bool,
    paint: Paint,
    /// Of a command all are in one.
    shows_cgroup: bool,
    cgroups: Cgroup2,
    names: HashMap<u64, Option<PathBuf>>,
    guess: Guess,
    prospect: Option<Prospect>,
    tally: Tally,
    lost: u64,
}

/// What is watched, or was lost.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Notice<'a> {
    /// From here on connections are seen.
    Watching {
        cgroup: Option<&'a Path>,
        pid: Option<u32>,
    },
    /// There was no room to tell of so many more.
    Lost { connections: u64 },
}

impl Report {
    /// To a file, to standard error beside a command, or to standard output.
    pub(super) fn open(args: &WatchArgs, cgroups: &Cgroup2) -> Result<Self> {
        let rules = match &args.config {
            Some(file) => Some(Rules::OfFile(
                Box::new(daemon::load(file)?),
                cgroups.clone(),
            )),
            None if args.in_force => {
                let place = args.daemon.admin.clone();
                let place = place.unwrap_or_else(|| admin::DEFAULT_PLACE.into());
                Some(Rules::OfDaemon(place))
            }
            None => None,
        };
        let (output, paint): (Box<dyn Write>, _) = match &args.output {
            Some(path) => {
                let file = File::create(path);
                let file = file.with_context(|| format!("cannot write to {}", path.display()))?;
                let paint = Paint::on(&file);
                (Box::new(file), paint)
            }
            None if args.command.is_empty() => (Box::new(io::stdout()), Paint::on(&io::stdout())),
            None => (Box::new(io::stderr()), Paint::on(&io::stderr())),
        };
        Ok(Self {
            output: BufWriter::new(output),
            closed: false,
            json: args.json,
            paint,
            shows_cgroup: args.command.is_empty(),
            cgroups: cgroups.clone(),
            names: HashMap::new(),
            guess: Guess::new(),
            prospect: rules.map(Prospect::new),
            tally: Tally::default(),
            lost: 0,
        })
    }

    /// Whether there are rules to ask.
    ///
    /// # Errors
    /// When the daemon does not answer whose rules are meant.
    pub(super) async fn check_rules(&self) -> Result<()> {
        match &self.prospect {
            Some(prospect) => prospect.check_rules().await,
            None => Ok(()),
        }
    }

    /// Whether nobody reads it any more.
    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// From here on connections are seen.
    pub(super) fn begin(&mut self, cgroup: Option<&Path>, pid: Option<u32>) -> Result<()> {
        if self.json {
            self.object(&Notice::Watching { cgroup, pid })?;
            return self.flush();
        }
        if let Some(cgroup) = cgroup {
            let of = pid
                .map(|pid| format!("process {pid} in "))
                .unwrap_or_default();
            eprintln!("watching {of}{}; Ctrl-C ends it", cgroup.display());
        }
        Ok(())
    }

    /// Has rules asked again that may have changed.
    pub(super) fn ask_anew(&mut self) {
        if let Some(prospect) = &mut self.prospect {
            prospect.ask_anew();
        }
    }

    /// One connection.
    pub(super) async fn tell(&mut self, sighting: &Sighting) -> Result<()> {
        if protocol(sighting) == "udp" && pid(sighting) == std::process::id() {
            // Our own guesses.
            return Ok(());
        }
        let likely_error = if sighting.outcome == outcome::UNSENT {
            self.guess.why(destination(sighting), sighting)
        } else {
            None
        };
        let cgroup = self.cgroup(sighting);
        let mut prospect = self.prospect.take();
        let outlook = match &mut prospect {
            Some(prospect) => prospect.of(sighting, cgroup.as_deref()).await,
            None => None,
        };
        self.tally.add(sighting, outlook);
        let line = Line::new(sighting, cgroup.as_deref(), likely_error, outlook);
        let told = if self.json {
            self.object(&line)
        } else {
            let text = line.text(self.paint, self.shows_cgroup);
            self.text(&format!("{text}\n"))
        };
        self.prospect = prospect;
        told
    }

    /// So many were lost in all.
    pub(super) fn lost(&mut self, lost: u64) -> Result<()> {
        let more = lost.saturating_sub(self.lost);
        self.lost = lost;
        if more == 0 {
            return Ok(());
        }
        if self.json {
            self.object(&Notice::Lost { connections: more })?;
        } else {
            self.text(&format!(
                "{more} connections more than there was room to tell of\n"
            ))?;
        }
        self.flush()
    }

    /// How much there was.
    pub(super) fn end(mut self) -> Result<()> {
        let summary = std::mem::take(&mut self.tally).sum(self.lost);
        if self.json {
            self.object(&summary)?;
        } else {
            self.text(&summary.text(self.paint))?;
        }
        self.flush()
    }

    /// Writes out what was told.
    pub(super) fn flush(&mut self) -> Result<()> {
        let flushed = self.output.flush();
        self.written(flushed)
    }

    fn object(&mut self, object: &impl Serialize) -> Result<()> {
        let object = serde_json::to_string(object).context("cannot write JSON")?;
        self.text(&format!("{object}\n"))
    }

    fn text(&mut self, text: &str) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let written = self.output.write_all(text.as_bytes());
        self.written(written)
    }

    /// A reader that has seen enough (`| head`) is no reason to fail.
    fn written(&mut self, written: io::Result<()>) -> Result<()> {
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            written => written.context("cannot write what was seen"),
        }
    }

    /// The cgroup of a process, which may be gone by now.
    fn cgroup(&mut self, sighting: &Sighting) -> Option<PathBuf> {
        let id = sighting.cgroup_id;
        if let Some(name) = self.names.get(&id) {
            return name.clone();
        }
        let of_process = Cgroup2::of_process(pid(sighting))
            .ok()
            .and_then(|path| self.cgroups.at(&self.cgroups.dir(&path).ok()?));
        let found = of_process
            .filter(|cgroup| cgroup.id == id)
            .or_else(|| self.cgroups.by_id(id))
            .map(|cgroup| cgroup.path);
        if self.names.len() >= CAPACITY {
            self.names.clear();
        }
        self.names.insert(id, found.clone());
        found
    }
}
