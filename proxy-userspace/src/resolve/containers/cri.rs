//! What runtimes of Kubernetes say: containerd and CRI-O, by gRPC, of all their containers and pods at once.
//!
//! The messages have only what is needed of those of `runtime.v1` (`k8s.io/cri-api`); a reader passes over the rest.

use std::{collections::BTreeMap, path::Path};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Request,
    body::Bytes,
    client::conn::http2,
    header::{CONTENT_TYPE, TE},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use percent_encoding::percent_decode_str;
use prost::Message;
use tokio::net::UnixStream;

use super::runtimes::Silence;
use crate::cgroup::runtime::is_id;

/// What is asked.
const SERVICE: &str = "http://localhost/runtime.v1.RuntimeService";
/// More than runtimes answer; kubelets take as much.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// Before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// The state of a container that has ended, whose name the next one has.
const EXITED: i32 = 2;

/// A request for everything.
#[derive(Clone, Copy, PartialEq, Message)]
struct All {}

#[derive(Clone, PartialEq, Message)]
struct ContainerList {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    pod: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<ContainerMetadata>,
    #[prost(int32, tag = "6")]
    state: i32,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodList {
    #[prost(message, repeated, tag = "1")]
    pods: Vec<Pod>,
}

#[derive(Clone, PartialEq, Message)]
struct Pod {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<PodMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// A container that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) id: String,
    name: String,
    /// The namespace and the name of its pod.
    pod: Option<(String, String)>,
}

impl Listed {
    /// Whether this is `container`, `pod/container` or `namespace/pod/container`.
    pub(super) fn is_called(&self, text: &str) -> bool {
        let Some((pod, name)) = text.rsplit_once('/') else {
            return text == self.name;
        };
        let Some((own_namespace, own_pod)) = &self.pod else {
            return false;
        };
        let is_pod = match pod.split_once('/') {
            None => pod == own_pod,
            Some((namespace, pod)) => namespace == own_namespace && pod == own_pod,
        };
        is_pod && name == self.name
    }

    /// The last of these.
    pub(super) fn whole(&self) -> Option<String> {
        let (namespace, pod) = self.pod.as_ref()?;
        Some(format!("{namespace}/{pod}/{}", self.name))
    }
}

/// The containers that run or are about to.
pub(super) async fn containers(socket: &Path) -> Result<Vec<Listed>, Silence> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(away)?;
    let asked = async {
        // In this order: the pod of a container is there before it.
        let containers: ContainerList = call(&mut sender, "ListContainers").await?;
        let pods: PodList = call(&mut sender, "ListPodSandbox").await?;
        Ok(listed(containers, pods))
    };
    tokio::pin!(connection, asked);
    // The answers come while the connection is driven, which may end first.
    tokio::select! {
        asked = &mut asked => return asked,
        driven = &mut connection => driven.map_err(away)?,
    }
    asked.await
}

fn listed(containers: ContainerList, pods: PodList) -> Vec<Listed> {
    let pods = pods.pods.into_iter().filter_map(|pod| {
        let metadata = pod.metadata?;
        Some((pod.id, (metadata.namespace, metadata.name)))
    });
    let pods: BTreeMap<_, _> = pods.collect();
    let listed = containers.containers.into_iter().filter_map(|container| {
        let is_meant = container.state != EXITED && is_id(&container.id);
        is_meant.then(|| Listed {
            name: container.metadata.unwrap_or_default().name,
            pod: pods.get(&container.pod).cloned(),
            id: container.id,
        })
    });
    listed.collect()
}

/// Calls a method that is asked for everything.
async fn call<Answer: Message + Default>(
    sender: &mut http2::SendRequest<Full<Bytes>>,
    method: &str,
) -> Result<Answer, Silence> {
    let mut message = vec![0; PREFIX];
    // An empty message has no bytes.
    All {}.encode(&mut message).map_err(away)?;
    let request = Request::post(format!("{SERVICE}/{method}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(Full::new(Bytes::from(message)))
        .map_err(away)?;
    let response = sender.send_request(request).await.map_err(away)?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MOST_BYTES).collect().await;
    let body = body.map_err(away)?;
    // Of an answer without a message the status is in the head.
    let status = match body.trailers() {
        Some(trailers) if !head.headers.contains_key(STATUS) => trailers.clone(),
        _ => head.headers,
    };
    require_success(&status, method)?;
    message_in(&body.to_bytes())
        .ok_or_else(|| Silence::Away(format!("{method}: no answer of a runtime")))
}

const STATUS: &str = "grpc-status";

fn require_success(status: &HeaderMap, method: &str) -> Result<(), Silence> {
    let text = |name: &str| status.get(name).and_then(|value| value.to_str().ok());
    match text(STATUS) {
        Some("0") => Ok(()),
        Some(code) => {
            let said = percent_decode_str(text("grpc-message").unwrap_or_default());
            let said = said.decode_utf8_lossy();
            Err(Silence::Away(format!("{method}: status {code}, {said}")))
        }
        None => Err(Silence::Away(format!("{method}: no answer of gRPC"))),
    }
}

fn message_in<Answer: Message + Default>(body: &[u8]) -> Option<Answer> {
    let (prefix, message) = body.split_first_chunk::<PREFIX>()?;
    let [0, length @ ..] = *prefix else {
        return None;
    };
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    (length == message.len())
        .then(|| Answer::decode(message).ok())
        .flatten()
}

fn away(error: impl std::fmt::Display) -> Silence {
    Silence::Away(error.to_string())
}

#[cfg(test)]
mod tests;
