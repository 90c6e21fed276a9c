//! A real browser without a window, driven by its protocol for debuggers over two pipes.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead as _, BufReader, Write as _, pipe},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::Stdio,
    sync::mpsc::{self, Receiver},
    thread,
};

use nix::fcntl::{FcntlArg, fcntl};
use serde_json::{Value, json};

use crate::{
    Sandbox,
    eventually::{in_time, patience},
    process::Running,
};

const PROGRAM: &str = "/usr/bin/chromium";
/// The descriptors that it reads from and writes to.
const ENDS: [i32; 2] = [3, 4];

/// What somebody looks at the page with.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// In CSS pixels.
    pub width: u32,
    /// In CSS pixels.
    pub height: u32,
    /// Whether it is a telephone: touched, with more dots for each pixel.
    pub is_phone: bool,
    /// Whether its owner prefers dark pages.
    pub is_dark: bool,
}

/// A browser that shows one page. It ends, with all its processes, when this is dropped.
#[derive(Debug)]
pub struct Browser {
    to: File,
    heard: Receiver<Value>,
    /// What it told by itself, and nobody has taken yet.
    events: VecDeque<Value>,
    last: u64,
    session: Option<String>,
    _running: Running,
}

impl Browser {
    /// Starts one in a sandbox, where nothing of it is captured, with an empty page.
    pub fn start(sandbox: &Sandbox) -> Self {
        // A test that is skipped looks as if it had passed.
        assert!(Path::new(PROGRAM).exists(), "apt-get install chromium");
        let (its_in, to) = pipe().expect("a pipe");
        let (from, its_out) = pipe().expect("a pipe");
        // Beyond the numbers that they get in the browser.
        let ends = [its_in.as_fd(), its_out.as_fd()].map(|end| {
            fcntl(end, FcntlArg::F_DUPFD_CLOEXEC(10)).expect("another number for a pipe")
        });
        // What it writes goes with it.
        let script = format!("mount -t tmpfs tmpfs /tmp && exec {PROGRAM} \"$@\"");
        let mut command = sandbox.outsider("unshare");
        command
            // Its many processes end with the first one.
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &script, "browser"])
            .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .arg("--user-data-dir=/tmp/profile")
            .env("HOME", "/tmp")
            .stderr(Stdio::null());
        // SAFETY: single system calls, which may be made between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for (end, number) in ends.into_iter().zip(ENDS) {
                    if libc::dup2(end, number) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let running = Running::start(&mut command);
        for end in ends {
            nix::unistd::close(end).expect("a pipe to close");
        }
        let (told, heard) = mpsc::channel();
        thread::spawn(move || {
            for message in BufReader::new(from).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("JSON of the browser");
                if told.send(message).is_err() {
                    break;
                }
            }
        });
        let mut browser = Self {
            to: File::from(OwnedFd::from(to)),
            heard,
            events: VecDeque::new(),
            last: 0,
            session: None,
            _running: running,
        };
        let page = browser.tell("Target.createTarget", &json!({"url": "about:blank"}));
        let page = json!({"targetId": page["targetId"], "flatten": true});
        let attached = browser.tell("Target.attachToTarget", &page);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Network", "Log", "Runtime"] {
            browser.tell(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Looks with another device.
    pub fn take(&mut self, device: Device) {
        let Device {
            width,
            height,
            is_phone,
            is_dark,
        } = device;
        let scale = if is_phone { 2 } else { 1 };
        self.tell("Emulation.setDeviceMetricsOverride", &json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": is_phone}),
        );
        self.tell(
            "Emulation.setTouchEmulationEnabled",
            &json!({"enabled": is_phone}),
        );
        let scheme = if is_dark { "dark" } else { "light" };
        let scheme = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.tell(
            "Emulation.setEmulatedMedia",
            &json!({"media": "", "features": scheme}),
        );
    }

    /// Goes to a page, and waits until its scripts have run.
    pub fn open(&mut self, address: &str) {
        let gone = self.tell("Page.navigate", &json!({"url": address}));
        assert_eq!(gone.get("errorText"), None, "{address}");
        self.await_true("document.readyState === 'complete'");
    }

    /// What an expression comes to on the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.tell("Runtime.evaluate", &asked);
        assert_eq!(answer.get("exceptionDetails"), None, "{expression}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true on the page.
    pub fn await_true(&mut self, expression: &str) {
        let is_true = in_time(|| (self.evaluate(expression) == true).then_some(()));
        if is_true.is_none() {
            let page = self.evaluate("document.documentElement.outerHTML");
            panic!("not so: {expression}\n{page}");
        }
    }

    /// Taps on what a selector selects, wherever that is on the page.
    pub fn tap(&mut self, selector: &str) {
        let place = format!(
            "(() => {{ const it = document.querySelector({selector:?}); it.scrollIntoView({{ block: 'center' }}); \
             const box = it.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        );
        let place = self.evaluate(&place);
        let touch = json!({"type": "touchStart", "touchPoints": [{"x": place[0], "y": place[1]}]});
        self.tell("Input.dispatchTouchEvent", &touch);
        let end = json!({"type": "touchEnd", "touchPoints": []});
        self.tell("Input.dispatchTouchEvent", &end);
    }

    /// Types into what has been tapped on.
    pub fn type_in(&mut self, text: &str) {
        self.tell("Input.insertText", &json!({"text": text}));
    }

    /// A picture of the page, whole, as PNG in base64.
    pub fn picture(&mut self) -> String {
        let asked = json!({"captureBeyondViewport": true});
        let mut answer = self.tell("Page.captureScreenshot", &asked);
        match answer["data"].take() {
            Value::String(data) => data,
            other => panic!("no picture: {other}"),
        }
    }

    /// Parameters of the events of a kind that came since this was asked last.
    pub fn told(&mut self, kind: &str) -> Vec<Value> {
        while let Ok(message) = self.heard.try_recv() {
            self.events.push_back(message);
        }
        let is_meant = |event: &Value| event["method"] == kind;
        let (meant, others): (VecDeque<_>, _) = self.events.drain(..).partition(is_meant);
        self.events = others;
        meant
            .into_iter()
            .map(|mut event| event["params"].take())
            .collect()
    }

    /// Has it do something, and returns what it answers.
    fn tell(&mut self, method: &str, parameters: &Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let written = write!(self.to, "{message}\0");
        written.unwrap_or_else(|error| panic!("cannot tell the browser {message}: {error}"));
        loop {
            let heard = self.heard.recv_timeout(patience());
            let mut heard = heard.unwrap_or_else(|error| panic!("no answer to {message}: {error}"));
            if heard["id"] != self.last {
                self.events.push_back(heard);
                continue;
            }
            assert_eq!(heard.get("error"), None, "{message}");
            return heard["result"].take();
        }
    }
}
