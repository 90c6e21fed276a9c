//! Finds out which paths this machine has and what they cost, on a thread beside the proxy's work.

use std::{future::pending, sync::Arc, thread, time::Instant};

use tokio::sync::oneshot;

use crate::{
    intercept::{
        Events, Exempter, Features, InterceptError, Interceptor, Redirects, prove_redirects,
    },
    relay::{Calibration, Kind, Paths, Promotion, Times, Worth, measure},
    upstream::Exempt as _,
};

/// What the self-test of a path that the kernel does not even load is called.
const NOT_LOADED: &str = "program";

/// Tests and measures for [`Paths`], one thing at a time.
pub(super) struct Calibrator {
    paths: Arc<Paths>,
    promote: Worth,
    running: Option<oneshot::Receiver<Outcome>>,
}

/// What a thread found out.
struct Outcome {
    measured: Option<Calibration>,
    /// Of the sockmap path, if it was not known before that it can be used.
    sockmap: Option<Tested>,
}

/// The sockmap path with what the kernel has to tell of it, or the test that failed.
type Tested = Result<(Promotion, Events), &'static str>;

impl Calibrator {
    pub(super) fn new(paths: Arc<Paths>, promote: Worth) -> Self {
        Self {
            paths,
            promote,
            running: None,
        }
    }

    /// Tests the sockmap path for rules that ask for it, unless that was done. Who calls this serves the events from then
    /// on. While a measurement runs, which tests it too, nothing happens: until that is over they copy.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub(super) fn provide_sockmap(
        &mut self,
        interceptor: &mut Interceptor,
        features: &Features,
    ) -> Result<Option<Events>, InterceptError> {
        if self.paths.is_sockmap_tested() || self.running.is_some() {
            return Ok(None);
        }
        let exempter = interceptor.exempter()?;
        Ok(self.know(tested(load(interceptor, features), self.promote, &exempter)))
    }

    /// Measures what the paths cost, in the background; the sockmap path is tested first, if it has not passed its test. While a
    /// measurement runs there is no further one.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub(super) fn start(
        &mut self,
        interceptor: &mut Interceptor,
        features: &Features,
    ) -> Result<(), InterceptError> {
        if self.running.is_some() {
            return Ok(());
        }
        let exempter = interceptor.exempter()?;
        let known = self.paths.sockmap().ok().cloned();
        let loaded = known.is_none().then(|| load(interceptor, features));
        let promote = self.promote;
        self.run(move || find_out(loaded, promote, known.as_ref(), &exempter));
        Ok(())
    }

    /// Tests the sockmap path once more, in the background, if it has failed its test. While a measurement runs, which does the
    /// same, nothing happens.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub(super) fn test_again(
        &mut self,
        interceptor: &mut Interceptor,
        features: &Features,
    ) -> Result<(), InterceptError> {
        if self.running.is_some() || self.paths.failed_test().is_none() {
            return Ok(());
        }
        let exempter = interceptor.exempter()?;
        let loaded = load(interceptor, features);
        let promote = self.promote;
        self.run(move || Outcome {
            measured: None,
            sockmap: Some(tested(loaded, promote, &exempter)),
        });
        Ok(())
    }

    fn run(&mut self, find_out: impl FnOnce() -> Outcome + Send + 'static) {
        let (send, receive) = oneshot::channel();
        let measuring = thread::Builder::new().name("calibration".into());
        let started = measuring.spawn(move || {
            // Nobody to tell: the proxy has ended.
            _ = send.send(find_out());
        });
        match started {
            Ok(_) => self.running = Some(receive),
            Err(error) => tracing::warn!(%error, "cannot measure the paths; `auto` copies"),
        }
    }

    /// Resolves when a measurement is over, and puts it in force. Who calls this serves the events from then on.
    pub(super) async fn finished(&mut self) -> Option<Events> {
        let Some(running) = &mut self.running else {
            return pending().await;
        };
        let outcome = running.await;
        self.running = None;
        let Ok(outcome) = outcome else {
            tracing::error!("the measurement of the paths was lost; `auto` copies");
            return None;
        };
        if let Some(measured) = outcome.measured {
            self.paths.set_measured(measured);
        }
        outcome.sockmap.and_then(|tested| self.know(tested))
    }

    fn know(&self, tested: Tested) -> Option<Events> {
        match tested {
            Ok((promotion, events)) => {
                self.paths.set_sockmap(Ok(promotion));
                Some(events)
            }
            Err(test) => {
                self.paths.set_sockmap(Err(test));
                None
            }
        }
    }
}

type Loaded = Result<(Arc<Redirects>, Events), &'static str>;

fn load(interceptor: &mut Interceptor, features: &Features) -> Loaded {
    interceptor.redirects(features).map_err(|error| {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "the sockmap path is off; its rules copy");
        NOT_LOADED
    })
}

fn tested(loaded: Loaded, promote: Worth, exempter: &Exempter) -> Tested {
    let (redirects, mut events) = loaded?;
    prove_redirects(&redirects, &mut events, exempter).inspect_err(|test| {
        tracing::warn!(
            test,
            "the sockmap path fails its test on this kernel; its rules copy"
        );
    })?;
    Ok((Promotion::when(redirects, promote), events))
}

fn find_out(
    loaded: Option<Loaded>,
    promote: Worth,
    known: Option<&Promotion>,
    exempter: &Exempter,
) -> Outcome {
    let started = Instant::now();
    let mut sockmap = loaded.map(|loaded| tested(loaded, promote, exempter));
    let exempt = |socket: &_, to| exempter.exempt(socket, to);
    let measured = match &mut sockmap {
        Some(Ok((promotion, events))) => {
            let measured = measure(Some(promotion), serve(events), &exempt);
            events.leave_runtime();
            measured
        }
        _ => measure(known, pending(), &exempt),
    };
    let measured = measured.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot measure the paths; `auto` copies");
        Calibration::of(&Times::default())
    });
    let [messages, blocks, bulk] = Kind::ALL.map(|kind| measured.sentence(kind));
    let took = started.elapsed();
    tracing::info!(messages, blocks, bulk, ?took, "measured the paths");
    Outcome {
        measured: Some(measured),
        sockmap,
    }
}

/// Until it fails.
async fn serve(events: &mut Events) {
    match events.serve().await {
        Err(error) => tracing::error!(%error, "cannot serve the sockmap path"),
    }
}
