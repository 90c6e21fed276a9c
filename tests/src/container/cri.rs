//! What a kubelet says to a runtime, over gRPC: as much of it as makes a pod.

use std::path::Path;

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{net::UnixStream, runtime::Builder};

/// What a pod is called.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
}

/// Where its cgroups are.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxPod {
    #[prost(string, tag = "1")]
    pub(super) cgroup_parent: String,
}

/// A pod.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodConfig {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<PodMetadata>,
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<LinuxPod>,
}

/// `RunPodSandbox`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RunPod {
    #[prost(message, optional, tag = "1")]
    pub(super) config: Option<PodConfig>,
}

/// What a container is called, and the how many-th of its name it is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint32, tag = "2")]
    pub(super) attempt: u32,
}

/// An image.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Image {
    #[prost(string, tag = "1")]
    pub(super) image: String,
}

/// Something of the host that a container is shown.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Mount {
    #[prost(string, tag = "1")]
    pub(super) container_path: String,
    #[prost(string, tag = "2")]
    pub(super) host_path: String,
    #[prost(bool, tag = "3")]
    pub(super) readonly: bool,
}

/// A container.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub(super) image: Option<Image>,
    #[prost(message, repeated, tag = "7")]
    pub(super) mounts: Vec<Mount>,
    /// Empty, and there: without it the runtime takes what is not there.
    #[prost(message, optional, tag = "15")]
    pub(super) linux: Option<Nothing>,
}

/// `CreateContainer`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CreateContainer {
    #[prost(string, tag = "1")]
    pub(super) pod: String,
    #[prost(message, optional, tag = "2")]
    pub(super) config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pub(super) pod_config: Option<PodConfig>,
}

/// Names a pod or a container: `StartContainer`, `RemoveContainer`, `StopPodSandbox`, `RemovePodSandbox`, and what is answered to those
/// that make one.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Id {
    #[prost(string, tag = "1")]
    pub(super) id: String,
}

/// `ImageStatus`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ImageStatus {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<Image>,
}

/// The answer to it: nothing, where there is no such image.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ImageKnown {
    #[prost(message, optional, tag = "1")]
    pub(super) image: Option<Id>,
}

/// A message without a field that matters.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Nothing {}

/// Calls a method of `runtime.v1` at a socket.
///
/// # Errors
/// What the runtime says against it.
pub(super) fn call<Answer: Message + Default>(
    socket: &Path,
    method: &str,
    question: &impl Message,
) -> Result<Answer, String> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime of tasks");
    let question = question.encode_to_vec();
    let answer = runtime.block_on(exchange(socket, method, &question));
    let answer = answer.map_err(|error| format!("{method}: {error}"))?;
    Answer::decode(&*answer).map_err(|error| format!("{method}: {error}"))
}

async fn exchange(
    socket: &Path,
    method: &str,
    question: &[u8],
) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let stream = TokioIo::new(UnixStream::connect(socket).await?);
    let (mut asker, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
    // It ends with the runtime of tasks.
    tokio::spawn(connection);
    let length = u32::try_from(question.len())?.to_be_bytes();
    let body = Bytes::from([&[0], &length[..], question].concat());
    let uri = format!("http://localhost/runtime.v1.{method}");
    let request = Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body))?;
    let (head, body) = asker.send_request(request).await?.into_parts();
    let body = body.collect().await?;
    let status = body.trailers().unwrap_or(&head.headers).clone();
    if status.get("grpc-status").is_none_or(|code| code != "0") {
        return Err(format!("{status:?}").into());
    }
    // Behind a byte and a length.
    Ok(body.to_bytes().get(5..).unwrap_or_default().to_vec())
}
