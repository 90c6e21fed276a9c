//! The admin socket: how a running daemon is asked about itself. HTTP/1.1 over a Unix socket that only its owner may open.
//!
//! It knows requests and answers, not what they mean: each question goes to whoever runs the daemon, who answers when he
//! gets to it. So an answer is never of a moment when something was half changed, and nothing here needs a lock.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`](crate::status::Status) |
//! | `GET /v1/connections?rule=web&to=10.0.0.0/8&sort=rate&limit=100` | | [`List`](crate::status::connections::List) of those that are open; all of the query may be left out, and much repeated: see below |
//! | `POST /v1/end` | which connection is to be reset: `{"id": 7}` | the connection |
//! | `POST /v1/explain` | a [`Request`](crate::status::explanation::Request): where to, and who opens it or where it comes from | [`Explanation`](crate::status::explanation::Explanation), without the hooks, which whoever asks may look at |
//! | `GET /v1/rules` | | [`Rules`](crate::status::rules::Rules), with what each has selected |
//! | `GET /v1/upstreams` | | [`Upstreams`](crate::status::upstreams::Upstreams), with their endpoints |
//! | `GET /v1/ready` | | [`Readiness`](crate::status::readiness::Readiness) |
//! | `GET /readyz`, `GET /healthz` | | a sentence, 503 where connections are not captured; also over TCP, where `[daemon]` has `health` |
//! | `GET /metrics` | | the numbers for Prometheus, as text; also over TCP, where `[daemon]` has `metrics` |
//! | `GET /` | | the page for browsers, over TCP only, where `[daemon]` has `dashboard`; with those of the above that look and are JSON |
//! | `POST /v1/drain` | what, and for how long connections may go on: `{"target": "web/10.0.0.1:80", "timeout_ms": 30000}` | [`DrainStatus`](crate::status::DrainStatus); to be followed in the status |
//! | `POST /v1/restore` | what: `{"target": "web/10.0.0.1:80"}` | what was restored |
//!
//! Connections are chosen by `id`, `role`, `rule`, `to` and `client` (an address, a prefix, a part of the name that the client asked
//! for, each also with a port, or `:PORT`), `process` (an id, or what it is called), `path`, `via` (an upstream or an endpoint) and
//! `any` (a part of any of these). All that is said must hold. `sort` is `rate`, `bytes`, `age`, `rtt` or `id`. `limit` is 1000 if
//! nothing is said, and at most 20000; so many are told of behind the first `offset` ones.
//!
//! All of it is JSON but the numbers. An answer other than 200 is `{"error": "…"}`: 400 when the body is not understood, 409 when what it asks for
//! cannot be done, 503 when the daemon is busy. Asking for what is so already is no error, so that a client may ask again. A
//! new field may come with any release; what a field means changes only with the number in the path. What a client says beyond
//! that is refused, rather than not done.

mod client;
mod dashboard;
mod scrape;

use std::{
    convert::Infallible,
    fmt, fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::AbortHandle,
    time::{sleep, timeout},
};

pub(crate) use client::get;
pub use client::{AskError, ask, probe, tell};
pub use scrape::{Offer, Scrapes, ScrapesError};

/// Where the socket is, unless the configuration says otherwise.
pub const DEFAULT_PLACE: &str = "/run/culvert/admin.sock";
/// The path of [`Question::Status`].
pub const STATUS: &str = "/v1/status";
/// The path of [`Question::Drain`].
pub const DRAIN: &str = "/v1/drain";
/// The path of [`Question::Restore`].
pub const RESTORE: &str = "/v1/restore";

/// The path of [`Question::Connections`].
pub const CONNECTIONS: &str = "/v1/connections";
/// The path of [`Question::End`].
pub const END: &str = "/v1/end";
/// The path of [`Question::Explain`].
pub const EXPLAIN: &str = "/v1/explain";
/// The path of [`Question::Rules`].
pub const RULES: &str = "/v1/rules";
/// The path of [`Question::Upstreams`].
pub const UPSTREAMS: &str = "/v1/upstreams";
/// The path of [`Question::Ready`].
pub const READY: &str = "/v1/ready";
/// The path of [`Question::ReadyProbe`].
pub const READY_PROBE: &str = "/readyz";
/// The path of [`Question::HealthProbe`].
pub const HEALTH_PROBE: &str = "/healthz";
/// The path of [`Question::Metrics`].
pub const METRICS: &str = "/metrics";

/// What can be asked, and how.
const QUESTIONS: [(&str, Method, Question); 12] = [
    (STATUS, Method::GET, Question::Status),
    (CONNECTIONS, Method::GET, Question::Connections),
    (END, Method::POST, Question::End),
    (EXPLAIN, Method::POST, Question::Explain),
    (RULES, Method::GET, Question::Rules),
    (UPSTREAMS, Method::GET, Question::Upstreams),
    (READY, Method::GET, Question::Ready),
    (READY_PROBE, Method::GET, Question::ReadyProbe),
    (HEALTH_PROBE, Method::GET, Question::HealthProbe),
    (METRICS, Method::GET, Question::Metrics),
    (DRAIN, Method::POST, Question::Drain),
    (RESTORE, Method::POST, Question::Restore),
];

/// Connections at a time; further ones wait.
const MOST_CONNECTIONS: usize = 16;
/// How long a client may take to ask, and the daemon to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest body of a request.
const MOST_BYTES: usize = 64 * 1024;
/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is no admin socket.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error(
        "another culvert answers at {0}; name a place of its own for this one: `admin` in [daemon]"
    )]
    Taken(PathBuf),
    /// There is something else.
    #[error("{0} is there already and is no socket")]
    NoSocket(PathBuf),
    /// The system does not allow it.
    #[error("cannot make the admin socket {place}")]
    Socket {
        /// Where.
        place: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl BindError {
    fn socket(place: &Path, source: io::Error) -> Self {
        Self::Socket {
            place: place.to_owned(),
            source,
        }
    }
}

/// What a client wants to know, or to have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// How the daemon is.
    Status,
    /// Which connections are open.
    Connections,
    /// One of them is to be reset.
    End,
    /// Why a connection would be captured, or would not.
    Explain,
    /// What the rules have selected.
    Rules,
    /// How the upstreams are.
    Upstreams,
    /// Whether connections are captured.
    Ready,
    /// The same, for what looks at the status of an answer only.
    ReadyProbe,
    /// Whether the daemon answers at all.
    HealthProbe,
    /// The numbers for Prometheus.
    Metrics,
    /// Something is to get no new connections.
    Drain,
    /// It is to get them again.
    Restore,
}

/// What a client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What it asked for, as JSON.
    Json(String),
    /// What it asked for, as text of some type.
    Text(&'static str, String),
    /// What it says is not understood.
    Malformed(String),
    /// That cannot be done.
    Impossible(String),
    /// Not now, as text.
    Unready(String),
}

impl Answer {
    /// What it asked for.
    pub fn of(answer: &impl Serialize) -> Self {
        match serde_json::to_string(answer) {
            Ok(json) => Self::Json(json),
            Err(error) => Self::Impossible(format!("there is no such answer: {error}")),
        }
    }
}

/// A question that waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub question: Question,
    /// What the URL says behind its path.
    pub query: String,
    body: Bytes,
    answer: oneshot::Sender<Answer>,
}

impl Asked {
    /// Does what the client says.
    #[must_use]
    pub fn told<W, T, E>(&self, work: impl FnOnce(W) -> Result<T, E>) -> Answer
    where
        W: DeserializeOwned,
        T: Serialize,
        E: fmt::Display,
    {
        match serde_json::from_slice(&self.body).map(work) {
            Ok(Ok(done)) => Answer::of(&done),
            // With its causes, where it has some.
            Ok(Err(error)) => Answer::Impossible(format!("{error:#}")),
            Err(error) => Answer::Malformed(format!("the body is not understood: {error}")),
        }
    }

    /// Answers.
    pub fn answer(self, answer: Answer) {
        // A client that is gone wants none.
        _ = self.answer.send(answer);
    }
}

/// An admin socket that is open. It is removed when dropped; after a kill, the next one at its place replaces it.
#[derive(Debug)]
pub struct Admin {
    place: PathBuf,
    questions: mpsc::Receiver<Asked>,
    accepting: AbortHandle,
}

impl Admin {
    /// Opens the socket, in the runtime that serves it.
    ///
    /// # Errors
    /// When the place is taken or cannot be used.
    pub fn bind(place: &Path) -> Result<Self, BindError> {
        let failed = |source| BindError::socket(place, source);
        make_room(place)?;
        if let Some(directory) = place.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let listener = UnixListener::bind(place).map_err(failed)?;
        // Until then `may_ask` keeps others out.
        fs::set_permissions(place, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let (ask, questions) = mpsc::channel(MOST_CONNECTIONS);
        let accepting = tokio::spawn(accept_all(listener, ask)).abort_handle();
        Ok(Self {
            place: place.to_owned(),
            questions,
            accepting,
        })
    }

    /// The next question. May be dropped and called again.
    pub async fn next(&mut self) -> Asked {
        next_of(&mut self.questions).await
    }
}

async fn next_of(questions: &mut mpsc::Receiver<Asked>) -> Asked {
    match questions.recv().await {
        Some(asked) => asked,
        // Accepting has panicked.
        None => std::future::pending().await,
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Err(error) = remove(&self.place) {
            tracing::warn!(%error, place = %self.place.display(), "cannot remove the admin socket");
        }
    }
}

/// Removes the socket of a daemon that was killed, where it is unless the configuration says otherwise.
///
/// # Errors
/// When the system does not allow it. A daemon that lives keeps its socket.
pub fn remove_stale() -> Result<(), BindError> {
    match make_room(Path::new(DEFAULT_PLACE)) {
        Err(BindError::Taken(_)) => Ok(()),
        removed => removed,
    }
}

/// Removes a socket, and its directory if that was all in it.
fn remove(place: &Path) -> io::Result<()> {
    fs::remove_file(place)?;
    if let Some(directory) = place.parent() {
        // It may be somebody else's, or have something else in it.
        _ = fs::remove_dir(directory);
    }
    Ok(())
}

/// Removes the socket of a daemon that was killed.
fn make_room(place: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::socket(place, source);
    match fs::symlink_metadata(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NoSocket(place.to_owned()));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(place) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            remove(place).map_err(failed)
        }
        Err(error) => Err(failed(error)),
        Ok(_) => Err(BindError::Taken(place.to_owned())),
    }
}

async fn accept_all(listener: UnixListener, ask: mpsc::Sender<Asked>) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) if may_ask(&stream) => {
                tokio::spawn(serve(stream, Door::Admin, ask.clone(), permit));
            }
            Ok(_) => tracing::warn!(
                "a process of another user has opened the admin socket; it gets no answer"
            ),
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the admin socket");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Whether the process at the other end is root's or of the daemon's own user.
fn may_ask(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// By where somebody asks, which says what he may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Admin,
    Web(Offer),
}

/// One connection, one request.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    door: Door,
    ask: mpsc::Sender<Asked>,
    _permit: OwnedSemaphorePermit,
) {
    let ask = &ask;
    let service = service_fn(async |request| match door {
        Door::Admin => respond(request, |_| true, ask).await,
        Door::Web(Offer::Metrics) => {
            respond(request, |question| question == Question::Metrics, ask).await
        }
        Door::Web(Offer::Health) => {
            let may = |question| matches!(question, Question::ReadyProbe | Question::HealthProbe);
            respond(request, may, ask).await
        }
        Door::Web(Offer::Dashboard) => dashboard::respond(request, ask).await,
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a client of the admin socket");
    }
}

async fn respond(
    request: Request<Incoming>,
    may: fn(Question) -> bool,
    ask: &mpsc::Sender<Asked>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    let mut known = QUESTIONS.iter().filter(|(_, _, question)| may(*question));
    let Some((_, method, question)) = known.find(|(known, ..)| *known == path) else {
        return Ok(failure(StatusCode::NOT_FOUND, "no such path"));
    };
    if request.method() != method {
        let mut refusal = failure(StatusCode::METHOD_NOT_ALLOWED, &format!("only {method}"));
        let allowed = HeaderValue::from_str(method.as_str());
        refusal
            .headers_mut()
            .extend(allowed.ok().map(|allowed| (ALLOW, allowed)));
        return Ok(refusal);
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = Limited::new(request.into_body(), MOST_BYTES).collect();
    let body = match timeout(PATIENCE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return Ok(failure(StatusCode::BAD_REQUEST, &error.to_string())),
        Err(_) => return Ok(failure(StatusCode::REQUEST_TIMEOUT, "the body is late")),
    };
    Ok(match answer(*question, query, body, ask).await {
        Some(Answer::Json(json)) => reply(StatusCode::OK, JSON, json),
        Some(Answer::Text(kind, text)) => reply(StatusCode::OK, kind, text),
        Some(Answer::Malformed(what)) => failure(StatusCode::BAD_REQUEST, &what),
        Some(Answer::Unready(text)) => reply(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text),
        Some(Answer::Impossible(what)) => failure(StatusCode::CONFLICT, &what),
        None => failure(
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon is busy, or about to end",
        ),
    })
}

async fn answer(
    question: Question,
    query: String,
    body: Bytes,
    ask: &mpsc::Sender<Asked>,
) -> Option<Answer> {
    let (answer, answered) = oneshot::channel();
    let asked = Asked {
        question,
        query,
        body,
        answer,
    };
    ask.try_send(asked).ok()?;
    timeout(PATIENCE, answered).await.ok()?.ok()
}

fn failure(status: StatusCode, what: &str) -> Response<Full<Bytes>> {
    let error = serde_json::json!({ "error": what });
    reply(status, JSON, error.to_string())
}

const JSON: &str = "application/json";
/// The type of an answer in words.
pub const PLAIN: &str = "text/plain; charset=utf-8";

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn place() -> (TempDir, PathBuf) {
        let directory = TempDir::new().unwrap();
        let place = directory.path().join("below").join("admin.sock");
        (directory, place)
    }

    /// Answers one question while somebody asks.
    async fn ask_while(admin: &mut Admin, place: &Path, path: &str) -> Result<Bytes, AskError> {
        answer_while(admin, ask(place, path)).await
    }

    async fn answer_while<T>(admin: &mut Admin, asking: impl Future<Output = T>) -> T {
        tokio::select! {
            answer = asking => answer,
            () = async {
                let asked = admin.next().await;
                let answer = match asked.question {
                    Question::Status => Answer::Json("{\"fine\":true}".to_owned()),
                    Question::Drain => asked.told(|text: String| Ok::<_, String>(text + "!")),
                    Question::Restore => asked.told(|text: String| Err::<(), _>(text + "?")),
                    _ => Answer::Text("text/plain", asked.query.clone()),
                };
                asked.answer(answer);
                std::future::pending::<()>().await;
            } => unreachable!("it never ends"),
        }
    }

    #[tokio::test]
    async fn a_question_gets_the_daemons_answer() {
        let (_directory, place) = place();
        let mut admin = Admin::bind(&place).unwrap();
        let answer = ask_while(&mut admin, &place, STATUS).await.unwrap();
        assert_eq!(answer, "{\"fine\":true}");
    }

    #[tokio::test]
    async fn what_the_url_says_comes_with_the_question() {
        let (_directory, place) = place();
        let mut admin = Admin::bind(&place).unwrap();
        let asked = format!("{CONNECTIONS}?rule=a%20b&limit=7");
        let answer = ask_while(&mut admin, &place, &asked).await.unwrap();
        assert_eq!(answer, "rule=a%20b&limit=7");
    }

    #[tokio::test]
    async fn what_is_not_there_is_refused() {
        let (_directory, place) = place();
        let mut admin = Admin::bind(&place).unwrap();
        let error = ask_while(&mut admin, &place, "/v1/nothing")
            .await
            .unwrap_err();
        assert!(
            matches!(error, AskError::Refused { status: 404, .. }),
            "{error}"
        );
        let mut stream = UnixStream::connect(&place).await.unwrap();
        stream
            .write_all(b"POST /v1/status HTTP/1.1\r\nhost: culvert\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    }

    #[tokio::test]
    async fn what_is_to_be_done_is_done_or_said_why_not() {
        let (_directory, place) = place();
        let mut admin = Admin::bind(&place).unwrap();
        let done = answer_while(&mut admin, tell(&place, DRAIN, &"web")).await;
        assert_eq!(done.unwrap(), "\"web!\"");
        let unknown = "the body is not understood: invalid type: integer `7`";
        for (path, body, status, says) in [
            (RESTORE, serde_json::json!("web"), 409, "web?"),
            (DRAIN, serde_json::json!(7), 400, unknown),
        ] {
            let told = answer_while(&mut admin, tell(&place, path, &body)).await;
            let error = told.unwrap_err();
            let AskError::Refused {
                status: found,
                text,
            } = &error
            else {
                panic!("{error}");
            };
            assert!(*found == status && text.starts_with(says), "{error}");
        }
    }

    #[tokio::test]
    async fn only_the_owner_may_open_it_and_nothing_is_left() {
        let (_directory, place) = place();
        let admin = Admin::bind(&place).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o600);
        drop(admin);
        assert!(!place.exists());
        let error = ask(&place, STATUS).await.unwrap_err();
        assert!(matches!(error, AskError::NoDaemon { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_killed_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let (_directory, place) = place();
        let first = Admin::bind(&place).unwrap();
        assert!(matches!(Admin::bind(&place), Err(BindError::Taken(_))));
        drop(first);
        fs::create_dir(place.parent().unwrap()).unwrap();
        // What a kill leaves: the name, and nobody who listens.
        drop(std::os::unix::net::UnixListener::bind(&place).unwrap());
        drop(Admin::bind(&place).unwrap());
        fs::create_dir(place.parent().unwrap()).unwrap();
        fs::write(&place, "a file").unwrap();
        assert!(matches!(Admin::bind(&place), Err(BindError::NoSocket(_))));
    }

    #[tokio::test]
    async fn silent_clients_keep_nobody_out() {
        let (_directory, place) = place();
        let mut admin = Admin::bind(&place).unwrap();
        let _silent = UnixStream::connect(&place).await.unwrap();
        assert!(ask_while(&mut admin, &place, STATUS).await.is_ok());
    }
}
