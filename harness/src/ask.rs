//! Requests to an API server in plain JSON, for what needs no type.

use std::time::Duration;

use http::Method;
use kube::{Client, Error};
use serde_json::{Value, json};

/// What the authorizer knows has no event to offer, so it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// Sends one request, with a body or without, and reads its answer.
pub(crate) async fn ask(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Error> {
    let mut request = http::Request::builder().method(method).uri(path);
    if body.is_some() {
        request = request.header(http::header::CONTENT_TYPE, "application/json");
    }
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    client.request(request.body(body).map_err(Error::HttpError)?).await
}

/// The answer, or `None` where there is nothing at that path; any other refusal is an error.
pub(crate) fn if_found<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        // Where nothing is served yet, the API server says so in plain text, which has the code alone.
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the error of a watch is that etcd told an update without the version before it, which a server without a
/// watch cache ends the watch for. The next watch from the same place has it.
///
/// etcd begins a watch before it has noted that it is to tell previous versions, so a change in between comes without
/// one: once in some thousand watches that are opened as their objects change. A server with a watch cache keeps
/// that from its clients. (Where the version before really is gone, for a compaction, the error stays.)
/// Source: etcd 3.7, `etcdserver/api/v3rpc/watch.go`, `recvLoop`; Kubernetes, `apiserver`, `storage/etcd3/event.go`,
/// `parseEvent`.
pub(crate) fn is_without_previous(message: &str) -> bool {
    message.contains("PrevKv=nil")
}

/// The status of an access review: whether the authorizer allows what `spec` describes, and why.
pub(crate) async fn review(client: &Client, spec: &Value) -> Result<Value, Error> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec,
    });
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let mut answer = ask(client, Method::POST, path, Some(&review)).await?;
    Ok(answer["status"].take())
}

/// Asks until the authorizer allows what `spec` describes; `last` is the last status that did not. Has no limit of its own.
pub(crate) async fn until_allowed(
    client: &Client,
    spec: &Value,
    last: &mut Value,
) -> Result<(), Error> {
    loop {
        *last = review(client, spec).await?;
        if last["allowed"] == true {
            return Ok(());
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
