//! What Docker and Podman say, which speak the same HTTP.

use std::path::Path;

use tokio::net::UnixStream;

use super::runtimes::Silence;
use crate::{admin::get, cgroup::runtime::is_id};

/// The id of a container of just this name.
pub(super) async fn id_of(socket: &Path, name: &str) -> Result<Option<String>, Silence> {
    let stream = UnixStream::connect(socket).await?;
    if name.contains('/') {
        // That is how pods have them.
        return Ok(None);
    }
    let path = format!("/containers/{name}/json");
    let (status, body) = get(stream, &path)
        .await
        .map_err(|error| Silence::Away(error.to_string()))?;
    if status == 404 {
        return Ok(None);
    }
    let answer: serde_json::Value = serde_json::from_slice(&body).map_err(|error| {
        Silence::Away(format!(
            "status {status}, and not what runtimes answer: {error}"
        ))
    })?;
    let text = |key: &str| answer.get(key).and_then(serde_json::Value::as_str);
    // It may also be found by the first digits of an id, which are no name.
    let is_called = text("Name").is_some_and(|it| it.trim_start_matches('/') == name);
    match text("Id").filter(|id| is_id(id)) {
        Some(id) if is_called => Ok(Some(id.to_owned())),
        Some(_) => Ok(None),
        None => Err(Silence::Away(format!("status {status}, without an id"))),
    }
}
