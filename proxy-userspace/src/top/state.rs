//! What is on the screen, and what keys do to it. Pure: it is told what the daemon says, and says what to ask.

use std::time::Instant;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use url::form_urlencoded::Serializer;

use super::{Wanted, ask::Trouble, cursor::Cursor, history::History};
use crate::{
    admin,
    status::{
        EndpointStatus, GroupStatus, Status,
        connections::{ConnectionStatus, List, Sort},
    },
};

/// Connections that are asked for at least: the size of the screen is known only when it is drawn.
const LEAST: usize = 50;

/// What is on the screen.
#[derive(Debug)]
pub(super) struct Top {
    pub(super) look: Option<Look>,
    pub(super) history: History,
    /// Why what is shown is old.
    pub(super) trouble: Option<String>,
    /// What the daemon answered to an order.
    pub(super) heard: Option<Result<String, String>>,
    pub(super) sort: Sort,
    pub(super) filter: String,
    pub(super) panel: Panel,
    pub(super) dialog: Option<Dialog>,
    pub(super) is_paused: bool,
    pub(super) connections: Cursor,
    pub(super) endpoints: Cursor,
    /// The connection that the cursor stays with, once somebody has moved it.
    chosen: Option<u64>,
}

/// What the daemon said.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub(super) status: Status,
    pub(super) list: List,
    /// Connections before those that are listed.
    pub(super) offset: usize,
    /// The one that is looked at closely, if it is there.
    pub(super) inspected: Option<List>,
}

/// What is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) connections: String,
    pub(super) offset: usize,
    pub(super) inspected: Option<String>,
}

/// The list that keys are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Panel {
    Connections,
    Endpoints,
}

/// What is in front of the lists.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Dialog {
    /// A filter that is being typed.
    Filter(String),
    /// All that is known of a connection, as far as it was there.
    Inspect(Box<ConnectionStatus>, IsThere),
    /// Whether it is really meant.
    Confirm(String, Order),
    Help,
}

/// Whether a connection is open still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IsThere {
    Yes,
    No,
}

/// What the daemon is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    End(u64),
    Drain(String),
    Restore(String),
}

/// What follows from a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Stay,
    /// Other connections are to be shown.
    Look,
    Tell(Order),
    Suspend,
    Quit,
}

impl Top {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self {
            look: None,
            history: History::default(),
            trouble: None,
            heard: None,
            sort: wanted.sort.unwrap_or(Sort::Rate),
            filter: wanted.filter,
            panel: Panel::Connections,
            dialog: None,
            is_paused: false,
            connections: Cursor::default(),
            endpoints: Cursor::default(),
            chosen: None,
        }
    }

    /// What to ask the daemon: for the connections on the screen, and as many before and behind them, for whoever scrolls.
    pub(super) fn question(&self) -> Question {
        let Cursor { first, height, .. } = self.connections;
        let around = height.max(LEAST);
        let offset = first.saturating_sub(around);
        let mut query = Serializer::new(String::new());
        for word in self.filter.split_whitespace() {
            match word.split_once('=') {
                Some((key, value)) => query.append_pair(key, value),
                None => query.append_pair("any", word),
            };
        }
        query.append_pair("sort", self.sort.label());
        query.append_pair("offset", &offset.to_string());
        query.append_pair("limit", &(first - offset + height + around).to_string());
        let connections = format!("{}?{}", admin::CONNECTIONS, query.finish());
        let inspected = match &self.dialog {
            Some(Dialog::Inspect(one, _)) => Some(format!("{}?id={}", admin::CONNECTIONS, one.id)),
            _ => None,
        };
        Question {
            connections,
            offset,
            inspected,
        }
    }

    /// Takes what the daemon said.
    pub(super) fn take(&mut self, looked: Result<Look, Trouble>, now: Instant) {
        let look = match looked {
            Ok(look) => look,
            Err(trouble) => {
                self.trouble = Some(trouble.to_string());
                return;
            }
        };
        self.trouble = None;
        self.history.add(&look.status, now);
        if let (Some(Dialog::Inspect(one, is_there)), Some(found)) =
            (&mut self.dialog, &look.inspected)
        {
            match found.connections.first() {
                // The answer may be to an older question.
                Some(found) if found.id == one.id => **one = found.clone(),
                Some(_) => {}
                None => *is_there = IsThere::No,
            }
        }
        let mut listed = look.list.connections.iter();
        if let Some(at) = listed.position(|one| Some(one.id) == self.chosen) {
            self.connections.at = look.offset + at;
        }
        self.look = Some(look);
        self.connections.fit(self.total());
        self.endpoints.fit(self.all_endpoints().count());
    }

    /// Takes what the daemon answered to an order.
    pub(super) fn hear(&mut self, told: Result<String, String>) {
        self.heard = Some(told);
    }

    /// How many connections there are to scroll through.
    pub(super) fn total(&self) -> usize {
        let matching = self.look.as_ref().map_or(0, |look| look.list.matching);
        usize::try_from(matching).unwrap_or(usize::MAX)
    }

    /// A connection by its place in the order, if it is one that was listed.
    pub(super) fn connection(&self, at: usize) -> Option<&ConnectionStatus> {
        let look = self.look.as_ref()?;
        look.list.connections.get(at.checked_sub(look.offset)?)
    }

    /// Every endpoint of every group.
    pub(super) fn all_endpoints(&self) -> impl Iterator<Item = (&GroupStatus, &EndpointStatus)> {
        let groups = self.look.iter().flat_map(|look| &look.status.groups);
        groups.flat_map(|group| group.endpoints.iter().map(move |one| (group, one)))
    }

    /// Does what a key means.
    pub(super) fn key(&mut self, key: KeyEvent) -> Step {
        self.heard = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Step::Quit,
                KeyCode::Char('z') => Step::Suspend,
                _ => Step::Stay,
            };
        }
        match self.dialog.take() {
            Some(Dialog::Filter(text)) => self.filter_key(key.code, text),
            Some(Dialog::Confirm(_, order)) if key.code == KeyCode::Char('y') => Step::Tell(order),
            Some(Dialog::Inspect(one, is_there)) if key.code == KeyCode::Char('x') => {
                if is_there == IsThere::Yes {
                    self.confirm_end(&one);
                }
                Step::Stay
            }
            Some(Dialog::Inspect(..)) if matches!(key.code, KeyCode::Up | KeyCode::Down) => {
                // The next one, without going back to the list.
                let step = self.list_key(key.code);
                self.inspect();
                if step == Step::Quit { step } else { Step::Look }
            }
            // Any other key closes what was open.
            Some(_) => Step::Stay,
            None => self.list_key(key.code),
        }
    }

    fn filter_key(&mut self, code: KeyCode, mut text: String) -> Step {
        match code {
            KeyCode::Esc => return Step::Stay,
            KeyCode::Enter => {
                self.filter = text;
                return self.begin_again();
            }
            KeyCode::Backspace => _ = text.pop(),
            KeyCode::Char(letter) => text.push(letter),
            _ => {}
        }
        self.dialog = Some(Dialog::Filter(text));
        Step::Stay
    }

    fn list_key(&mut self, code: KeyCode) -> Step {
        match code {
            KeyCode::Char('q') => return Step::Quit,
            KeyCode::Char('?' | 'h') => self.dialog = Some(Dialog::Help),
            KeyCode::Char('/' | 'f') => self.dialog = Some(Dialog::Filter(self.filter.clone())),
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Tab => {
                self.panel = match self.panel {
                    Panel::Connections if self.all_endpoints().next().is_some() => Panel::Endpoints,
                    _ => Panel::Connections,
                };
            }
            KeyCode::Esc if !self.filter.is_empty() => {
                self.filter.clear();
                return self.begin_again();
            }
            KeyCode::Char('s') => return self.sort_by(self.sort.next()),
            KeyCode::Char('r') => return self.sort_by(Sort::Rate),
            KeyCode::Char('b') => return self.sort_by(Sort::Bytes),
            KeyCode::Char('a') => return self.sort_by(Sort::Age),
            KeyCode::Char('t') => return self.sort_by(Sort::Rtt),
            KeyCode::Char('d') => self.confirm_drain(),
            KeyCode::Enter if self.panel == Panel::Connections => {
                self.inspect();
                return Step::Look;
            }
            KeyCode::Char('x') if self.panel == Panel::Connections => {
                if let Some(one) = self.connection(self.connections.at).cloned() {
                    self.confirm_end(&one);
                }
            }
            _ => return self.movement(code),
        }
        Step::Stay
    }

    fn movement(&mut self, code: KeyCode) -> Step {
        let (connections, endpoints) = (self.total(), self.all_endpoints().count());
        let (cursor, total) = match self.panel {
            Panel::Connections => (&mut self.connections, connections),
            Panel::Endpoints => (&mut self.endpoints, endpoints),
        };
        let (before, page) = (cursor.first, cursor.page());
        match code {
            KeyCode::Up | KeyCode::Char('k') => cursor.go(-1, total),
            KeyCode::Down | KeyCode::Char('j') => cursor.go(1, total),
            KeyCode::PageUp => cursor.go(-page, total),
            KeyCode::PageDown => cursor.go(page, total),
            KeyCode::Home | KeyCode::Char('g') => cursor.go_to(0, total),
            KeyCode::End | KeyCode::Char('G') => cursor.go_to(usize::MAX, total),
            _ => return Step::Stay,
        }
        let has_scrolled = cursor.first != before;
        if self.panel == Panel::Connections {
            // At the top it stays there, whoever that is.
            let at = self.connections.at;
            let one = self.connection(at).filter(|_| at > 0);
            self.chosen = one.map(|one| one.id);
        }
        if has_scrolled { Step::Look } else { Step::Stay }
    }

    fn sort_by(&mut self, sort: Sort) -> Step {
        self.sort = sort;
        self.begin_again()
    }

    fn begin_again(&mut self) -> Step {
        self.chosen = None;
        self.connections.go_to(0, 0);
        Step::Look
    }

    fn inspect(&mut self) {
        let one = self.connection(self.connections.at).cloned();
        self.dialog = one.map(|one| Dialog::Inspect(Box::new(one), IsThere::Yes));
    }

    fn confirm_end(&mut self, one: &ConnectionStatus) {
        let question = format!("Reset connection {} to {}?", one.id, one.to);
        self.dialog = Some(Dialog::Confirm(question, Order::End(one.id)));
    }

    fn confirm_drain(&mut self) {
        if self.panel != Panel::Endpoints {
            self.heard = Some(Err("choose an endpoint first (tab)".to_owned()));
            return;
        }
        let Some((group, one)) = self.all_endpoints().nth(self.endpoints.at) else {
            return;
        };
        // All that come from the same entry of the file, which is what can be drained.
        let target = format!("{}/{}", group.name, one.source);
        self.dialog = Some(if one.drained {
            let question = format!("Give {target} connections again?");
            Dialog::Confirm(question, Order::Restore(target))
        } else {
            let question = format!("Give {target} no new connections?");
            Dialog::Confirm(question, Order::Drain(target))
        });
    }
}

#[cfg(test)]
mod tests;
