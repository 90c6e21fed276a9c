//! `culvert top`: what a running daemon does, on the whole screen of a terminal.
//!
//! A client of the admin socket like any other: it asks every second, for the connections that fit on the screen only, and tells the
//! daemon what a key stands for. `state` knows what is shown and what keys mean, and neither the terminal nor the daemon; `view`
//! draws it; `ask` talks to the daemon. What is typed is handled while an answer is still on its way.

mod ask;
mod cursor;
mod history;
mod state;
mod view;

use std::{
    env,
    io::{self, IsTerminal as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal as Number, raise};
use ratatui::{
    DefaultTerminal,
    crossterm::{
        event::{self, Event},
        execute,
        terminal::{EnterAlternateScreen, enable_raw_mode},
    },
};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use self::{
    ask::{Daemon, Trouble},
    state::{Look, Step, Top},
    view::{Theme, plain},
};
use crate::{failure::Failure, paint, status::connections::Sort};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Keys that may wait.
const TYPED: usize = 64;

/// What is shown at first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Which connections, as the filter line takes it.
    pub(crate) filter: String,
    /// In which order.
    pub(crate) sort: Option<Sort>,
}

/// Shows the daemon at a socket until somebody has seen enough.
///
/// # Errors
/// When there is no terminal, or no daemon at first.
pub(crate) fn run(place: &Path, wanted: Wanted) -> Result<()> {
    if !io::stdout().is_terminal() {
        return Err(Failure::usage(
            "`culvert top` needs a terminal; `culvert conns --watch` does without",
        )
        .into());
    }
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let daemon = Daemon::at(place);
        let mut top = Top::new(wanted);
        // Before the screen is taken: who mistyped a path is told so in the ordinary way.
        let first = daemon.look(top.question()).await?;
        top.take(Ok(first), Instant::now());
        let mut terminal = ratatui::try_init().context("cannot take the terminal")?;
        let ended = Screen::new(daemon, top).show(&mut terminal).await;
        ratatui::restore();
        ended
    })
}

/// How things look on this terminal.
fn theme() -> Theme {
    let terminal = env::var("TERM").unwrap_or_default();
    Theme {
        colours: paint::is_wanted(&io::stdout()) && !plain::is_old(&terminal),
        is_plain: plain::is_needed(&terminal),
    }
}

/// What goes on while the screen is ours.
struct Screen {
    daemon: Daemon,
    top: Top,
    theme: Theme,
    looking: Option<JoinHandle<Result<Look, Trouble>>>,
    /// The answer that is on its way is to another question than what is shown by now.
    again: bool,
    telling: Option<JoinHandle<Result<String, String>>>,
}

impl Screen {
    fn new(daemon: Daemon, top: Top) -> Self {
        Self {
            daemon,
            top,
            theme: theme(),
            looking: None,
            again: false,
            telling: None,
        }
    }

    async fn show(&mut self, terminal: &mut DefaultTerminal) -> Result<()> {
        let mut events = events();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            terminal.draw(|frame| view::draw(frame, &mut self.top, self.theme))?;
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return Ok(()) };
                    if self.react(&event?, terminal)? {
                        return Ok(());
                    }
                }
                looked = answer(&mut self.looking) => {
                    self.top.take(looked, Instant::now());
                    if std::mem::take(&mut self.again) {
                        self.look();
                    }
                }
                told = answer(&mut self.telling) => self.top.hear(told),
                _ = ticks.tick() => if !self.top.is_paused { self.look() },
                _ = terminate.recv() => return Ok(()),
                _ = hang_up.recv() => return Ok(()),
            }
        }
    }

    /// Does what a key stands for; says whether that was the last one.
    fn react(&mut self, event: &Event, terminal: &mut DefaultTerminal) -> Result<bool> {
        let Some(key) = event.as_key_press_event() else {
            if let Event::Resize(..) = event {
                draw_anew(terminal)?;
                self.look();
            }
            return Ok(false);
        };
        match self.top.key(key) {
            Step::Stay => {}
            Step::Look => self.look(),
            Step::Tell(order) if self.telling.is_none() => {
                let daemon = self.daemon.clone();
                self.telling = Some(tokio::spawn(async move { daemon.tell(order).await }));
            }
            Step::Tell(_) => self.top.hear(Err("the daemon is still busy".to_owned())),
            Step::Suspend => suspend(terminal)?,
            Step::Quit => return Ok(true),
        }
        Ok(false)
    }

    fn look(&mut self) {
        if self.looking.is_some() {
            self.again = true;
            return;
        }
        let (daemon, question) = (self.daemon.clone(), self.top.question());
        self.looking = Some(tokio::spawn(async move { daemon.look(question).await }));
    }
}

/// Gives the terminal back to the shell until that gives it to us again.
fn suspend(terminal: &mut DefaultTerminal) -> Result<()> {
    ratatui::try_restore()?;
    raise(Number::SIGTSTP)?;
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen)?;
    draw_anew(terminal)
}

/// Has all of it be drawn, and not only what has changed: where the size is again what it was before, what was cut off in between
/// is lost nevertheless. `Terminal::clear` would ask the terminal for the cursor, and the answer is the other thread's to read.
fn draw_anew(terminal: &mut DefaultTerminal) -> Result<()> {
    let size = terminal.size()?;
    Ok(terminal.resize(size.into())?)
}

/// Waits for an answer, if there is one to come.
async fn answer<T, E: From<String>>(asked: &mut Option<JoinHandle<Result<T, E>>>) -> Result<T, E> {
    let Some(handle) = asked else {
        return std::future::pending().await;
    };
    let answered = handle.await;
    *asked = None;
    answered.unwrap_or_else(|error| Err(error.to_string().into()))
}

/// What is typed, and changes of size. Reading blocks, so a thread does it; it ends with the process.
fn events() -> mpsc::Receiver<io::Result<Event>> {
    let (typed, events) = mpsc::channel(TYPED);
    thread::spawn(move || {
        loop {
            let event = event::read();
            let is_last = event.is_err();
            if typed.blocking_send(event).is_err() || is_last {
                return;
            }
        }
    });
    events
}
