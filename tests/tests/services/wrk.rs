//! `wrk`, which looks at every byte of every answer.

use std::{fs, process::Command};

use culvert_tests::{Sandbox, process::output};
use serde::Deserialize;

/// Compares every answer with a file, and tells what there is to tell in one line.
const SCRIPT: &str = r#"
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(arguments)
  wrong = 0
  local file = io.open(arguments[1], "rb")
  expected = file:read("*a")
  file:close()
end
function response(status, headers, body)
  if status ~= 200 or body ~= expected then wrong = wrong + 1 end
end
function done(summary, latency, requests)
  local wrong = 0
  for _, thread in ipairs(threads) do wrong = wrong + thread:get("wrong") end
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"wrong":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d}\n',
    summary.requests, wrong, errors.connect, errors.read, errors.write, errors.timeout))
end
"#;

/// What it saw.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Seen {
    /// Answers.
    pub(super) requests: u64,
    /// Those that were not what they should be.
    pub(super) wrong: u64,
    /// Connections that could not be made.
    pub(super) connect: u64,
    /// Those that ended without an answer.
    pub(super) read: u64,
    /// Those that took no request.
    pub(super) write: u64,
    /// Answers that took longer than anything does.
    pub(super) timeout: u64,
}

impl Seen {
    /// Panics unless there was no error of any kind, and enough to have had some.
    pub(super) fn assert_flawless(self, what: &str) {
        assert!(self.requests > 20, "{what}: {self:?}");
        assert_eq!(self.failures(), 0, "{what}: {self:?}");
    }

    /// Everything that went wrong.
    pub(super) fn failures(self) -> u64 {
        self.wrong + self.connect + self.read + self.write + self.timeout
    }
}

/// A run of some seconds with some connections, by a command that gets its arguments. Each answer has to be `page`.
pub(super) fn wrk(
    sandbox: &Sandbox,
    mut command: Command,
    seconds: u32,
    connections: u32,
    url: &str,
    page: &str,
) -> Seen {
    let script = sandbox.directory().join("wrk.lua");
    let expected = sandbox.directory().join("expected");
    // The same for all that run at a time.
    if !script.exists() {
        fs::write(&expected, page).unwrap();
        fs::write(&script, SCRIPT).unwrap();
    }
    let (seconds, connections) = (format!("{seconds}s"), connections.to_string());
    command.args([
        "-t",
        "1",
        "-d",
        &seconds,
        "-c",
        &connections,
        "--timeout",
        "20s",
        "-s",
    ]);
    let said = output(command.arg(script).arg(url).arg("--").arg(expected));
    let line = said.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {said}"))
}
