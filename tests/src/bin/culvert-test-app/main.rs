//! Makes connections as a test tells it: reads one [`Call`] a line from standard input and answers each with one line
//! on standard output.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "the test sees a panic of this program as its own failure"
)]

mod calls;
mod many;
mod passing;
mod streams;
mod uring;
mod visits;

use std::io::{BufRead, Write};

use culvert_tests::app::protocol::Call;

use calls::App;

fn main() {
    let mut app = App::default();
    let mut output = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let call: Call = serde_json::from_str(&line).expect("a call");
        let reply = app.answer(&call);
        let reply = serde_json::to_string(&reply).expect("JSON");
        // Whoever told us what to do may be gone; then there is nobody to answer.
        if writeln!(output, "{reply}")
            .and_then(|()| output.flush())
            .is_err()
        {
            return;
        }
    }
}
