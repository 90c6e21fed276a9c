//! The other end: asking a running daemon.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than any answer has.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("no culvert answers at {place}; is it running, and is that its `admin` in [daemon]?")]
    NoDaemon {
        /// Where.
        place: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Nobody listens there, over TCP.
    #[error(
        "no culvert answers at {address}; is it running, and is that its `health` in [daemon]?"
    )]
    NoProbe {
        /// Where.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The daemon does not want to.
    #[error("{text} (the daemon answers {status})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        text: String,
    },
    /// The daemon hangs.
    #[error("the daemon has not answered for {} s", PATIENCE.as_secs())]
    Late,
    /// What listens there does not speak HTTP.
    #[error("what listens at {place} is no culvert")]
    Protocol {
        /// Where.
        place: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Asks the daemon at a socket.
///
/// # Errors
/// When nobody answers, or not with what was asked for.
pub async fn ask(place: &Path, path: &str) -> Result<Bytes, AskError> {
    request(place, Method::GET, path, Bytes::new()).await
}

/// Tells the daemon at a socket to do something.
///
/// # Errors
/// When nobody answers, or it cannot be done.
pub async fn tell(place: &Path, path: &str, what: &impl Serialize) -> Result<Bytes, AskError> {
    let body = serde_json::to_vec(what).map_err(|source| AskError::Protocol {
        place: place.to_owned(),
        source: Box::new(source),
    })?;
    request(place, Method::POST, path, body.into()).await
}

/// Asks a daemon whether it captures connections at the address for probes.
///
/// # Errors
/// When nobody answers there, or what it says why not.
pub async fn probe(address: SocketAddr) -> Result<Bytes, AskError> {
    let asked = async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|source| AskError::NoProbe { address, source })?;
        let place = address.to_string();
        let path = super::READY_PROBE;
        answer(place.as_ref(), stream, Method::GET, path, Bytes::new()).await
    };
    timeout(PATIENCE, asked).await.map_err(|_| AskError::Late)?
}

async fn request(place: &Path, method: Method, path: &str, body: Bytes) -> Result<Bytes, AskError> {
    let stream = UnixStream::connect(place)
        .await
        .map_err(|source| AskError::NoDaemon {
            place: place.to_owned(),
            source,
        })?;
    let asked = answer(place, stream, method, path, body);
    timeout(PATIENCE, asked).await.map_err(|_| AskError::Late)?
}

/// Asks over a connection, whatever kind it is of.
async fn answer(
    place: &Path,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Bytes, AskError> {
    let (status, body) = exchange(stream, method, path, body)
        .await
        .map_err(|source| AskError::Protocol {
            place: place.to_owned(),
            source,
        })?;
    if status == 200 {
        return Ok(body);
    }
    Err(AskError::Refused {
        status,
        text: error_in(&body),
    })
}

/// What an answer says that is none.
fn error_in(body: &[u8]) -> String {
    let answer: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let error = answer
        .as_ref()
        .and_then(|answer| answer.get("error")?.as_str());
    error.map_or_else(
        || String::from_utf8_lossy(body).trim_end().to_owned(),
        str::to_owned,
    )
}

/// Asks anybody who speaks HTTP/1 over a connection: the status, and the body.
///
/// # Errors
/// When he does not.
pub(crate) async fn get(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    path: &str,
) -> Result<(u16, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    exchange(stream, Method::GET, path, Bytes::new()).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(u16, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "culvert")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MOST_BYTES)
            .collect()
            .await?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(connection, answer);
    // The answer comes while the connection is driven, which may end first.
    tokio::select! {
        answer = &mut answer => return answer,
        driven = &mut connection => driven?,
    }
    answer.await
}
