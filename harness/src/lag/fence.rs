//! Fences: a reply to a write is handed back once every open stream that must show the write has received its event.
//!
//! Then *how far is this stream behind?* has an exact answer right after a write. How many events a write
//! makes is never counted: the reply says which version, or whose deletion, has to arrive.

use std::sync::Arc;

use http::{HeaderMap, Request, StatusCode, header};
use kube::client::Body;
use serde_json::Value;
use tokio::time::Instant;
use tower::ServiceExt;

use super::{
    engine::{Engine, Registry},
    model::{ObjectKey, Verb},
    streams::{Expected, Met},
    wire::{self, Asked, Target},
};
use crate::connect::Upstream;
use crate::text::chain;

/// A reply that is not handed back, since the event of its write does not arrive.
///
/// The write has taken effect. It reaches the code under test as [`kube::Error::Service`].
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to hand back the reply to {request}: {problem}; the write has taken effect: are the connections of \
     these watches alive? `Lag::with_fences(false)` hands replies back at once{evidence}"
)]
pub struct FenceError {
    request: String,
    problem: String,
    evidence: String,
}

/// What is needed to look at the server once more, where a reply does not tell enough.
pub(super) struct Looker {
    pub(super) upstream: Upstream,
    pub(super) headers: HeaderMap,
}

/// What a reply says about the events that its write makes.
enum Effect {
    None,
    /// These, of this resource.
    Known(Vec<Expected>),
    /// It does not say; the object itself does.
    AskObject(ObjectKey),
    /// It lists what was deleted, as it was before.
    AskCollection(Vec<(ObjectKey, Option<String>)>),
}

/// Waits until the streams have received what the write `asked` has done.
///
/// # Errors
/// When the engine's deadline has passed, or the server does not tell what it has done.
pub(super) async fn pass(
    engine: &Arc<Engine>,
    looker: &Looker,
    asked: &Asked,
    status: StatusCode,
    reply: Option<&Value>,
) -> Result<(), FenceError> {
    if !engine.fences() || !asked.verb.is_write() || !status.is_success() || is_dry_run(asked) {
        return Ok(());
    }
    let target = object_target(asked);
    let watched =
        |registry: &Registry| registry.fed().any(|stream| stream.is_of(&target) && stream.is_fed());
    if target.resource.is_empty() || !engine.look(watched) {
        return Ok(());
    }
    let deadline = Instant::now() + engine.deadline();
    let look = Look { looker, asked, target: &target };
    let mut expected = match effect(asked, &target, reply) {
        Effect::None => return Ok(()),
        Effect::Known(expected) => expected,
        Effect::AskObject(key) => vec![look.object(&key).await?],
        Effect::AskCollection(deleted) => look.collection(deleted).await?,
    };
    // A reply that carries only a part of the object cannot say whether a field selector matches it.
    let undecided = engine.look(|registry| {
        let open = |expected: &&Expected| {
            let mut streams = registry.fed().filter(|stream| stream.is_of(&target));
            streams.any(|stream| stream.meets(expected) == Met::Undecided)
        };
        expected.iter().filter(open).map(|expected| expected.key().clone()).collect::<Vec<_>>()
    });
    for key in undecided {
        let whole = look.object(&key).await?;
        expected.retain(|known| *known.key() != key);
        expected.push(whole);
    }
    wait(engine, asked, &target, &expected, deadline).await
}

async fn wait(
    engine: &Arc<Engine>,
    asked: &Asked,
    target: &Target,
    expected: &[Expected],
    deadline: Instant,
) -> Result<(), FenceError> {
    let missing = |registry: &Registry| -> Vec<String> {
        let streams = registry.fed().filter(|stream| stream.is_of(target));
        streams
            .flat_map(|stream| expected.iter().map(move |expected| (stream, expected)))
            .filter(|(stream, expected)| stream.meets(expected) != Met::Yes)
            .map(|(stream, expected)| format!("\n  {expected} in {}", stream.describe()))
            .collect()
    };
    let all = |registry: &Registry| missing(registry).is_empty().then_some(());
    if engine.wait(deadline, all).await.is_some() {
        return Ok(());
    }
    let evidence = engine.look(missing).concat();
    Err(FenceError {
        request: format!("{} {}", asked.verb, asked.path),
        problem: format!("streams have not received its event within {:?}", engine.deadline()),
        evidence,
    })
}

/// What events a write makes, by its reply.
///
/// Source: Kubernetes apiserver, `pkg/registry/generic/registry/store.go` (`Delete`, `DeleteCollection`,
/// `ShouldDeleteDuringUpdate`) and `pkg/endpoints/handlers/delete.go`.
fn effect(asked: &Asked, target: &Target, reply: Option<&Value>) -> Effect {
    let Some(reply) = reply else { return Effect::None };
    if asked.verb == Verb::DeleteCollection {
        let items = reply.get("items").and_then(Value::as_array).into_iter().flatten();
        let deleted = items.filter_map(|item| Some((ObjectKey::of(item)?, uid(item)))).collect();
        return Effect::AskCollection(deleted);
    }
    let name = target.name.clone().or_else(|| wire::text(reply, "/metadata/name"));
    let Some(name) = name else { return Effect::None };
    let key = ObjectKey { namespace: target.namespace.clone(), name };
    let is_status = reply.get("kind").and_then(Value::as_str) == Some("Status");
    if is_status {
        // A deletion that is answered by a Status has been carried out; all others say too little
        // (bindings, evictions).
        return match (asked.verb, wire::text(reply, "/details/uid")) {
            (Verb::Delete, Some(uid)) => {
                Effect::Known(vec![Expected::Gone { key, uid: Some(uid) }])
            }
            _ => Effect::AskObject(key),
        };
    }
    match expectation(target, key, reply, is_whole(asked, reply)) {
        Some(expected) => Effect::Known(vec![expected]),
        // Reviews, tokens: nothing that is stored.
        None => Effect::None,
    }
}

/// What an object as the server has it after a write means for the streams.
fn expectation(target: &Target, key: ObjectKey, object: &Value, whole: bool) -> Option<Expected> {
    let resource_version = wire::text(object, "/metadata/resourceVersion")?;
    if is_removed(target, object) {
        return Some(Expected::Gone { key, uid: uid(object) });
    }
    // The metadata of a scale is not that of its object.
    let metadata = object.get("kind").and_then(Value::as_str) != Some("Scale");
    let object = metadata.then(|| object.clone());
    Some(Expected::Version { key, resource_version, object, whole })
}

/// Whether the write that left this object has removed it: its resource version is the one it had before.
///
/// A grace period that is not over keeps it, and a namespace is kept by the finalizers of its spec.
fn is_removed(target: &Target, object: &Value) -> bool {
    let empty =
        |pointer: &str| object.pointer(pointer).and_then(Value::as_array).is_none_or(Vec::is_empty);
    object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null())
        && empty("/metadata/finalizers")
        && object
            .pointer("/metadata/deletionGracePeriodSeconds")
            .and_then(Value::as_i64)
            .is_none_or(|seconds| seconds == 0)
        && (target.resource != "namespaces" || empty("/spec/finalizers"))
}

fn uid(object: &Value) -> Option<String> {
    wire::text(object, "/metadata/uid")
}

/// Whether the reply shows all of the object that the streams carry.
fn is_whole(asked: &Asked, reply: &Value) -> bool {
    let kind = reply.get("kind").and_then(Value::as_str);
    asked.representation == Some(super::model::Representation::Full)
        && !matches!(kind, Some("Scale" | "PartialObjectMetadata"))
}

/// The object that a write is about: of a binding, the pod.
fn object_target(asked: &Asked) -> Target {
    let mut target = asked.target.clone();
    target.subresource = None;
    if target.group.is_empty() && target.resource == "bindings" {
        target.resource = "pods".to_owned();
    }
    target
}

fn is_dry_run(asked: &Asked) -> bool {
    let in_body = || {
        let body = asked.body.as_ref()?.get("dryRun")?.as_array()?;
        (asked.verb == Verb::Delete || asked.verb == Verb::DeleteCollection)
            .then_some(!body.is_empty())
    };
    asked.parameter("dryRun").is_some() || in_body().unwrap_or(false)
}

/// A look at the server past the client: it is neither recorded nor held.
struct Look<'a> {
    looker: &'a Looker,
    asked: &'a Asked,
    target: &'a Target,
}

impl Look<'_> {
    async fn object(&self, key: &ObjectKey) -> Result<Expected, FenceError> {
        let path =
            format!("{}/{}", collection_path(self.target, key.namespace.as_deref()), key.name);
        Ok(match self.read(&path).await? {
            Some(object) => expectation(self.target, key.clone(), &object, true)
                .ok_or_else(|| self.failure(&path, "the reply has no resource version"))?,
            None => Expected::Gone { key: key.clone(), uid: None },
        })
    }

    async fn collection(
        &self,
        deleted: Vec<(ObjectKey, Option<String>)>,
    ) -> Result<Vec<Expected>, FenceError> {
        if deleted.is_empty() {
            return Ok(Vec::new());
        }
        let path = collection_path(self.target, self.target.namespace.as_deref());
        let list = self.read(&path).await?.unwrap_or_default();
        let items = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let left = |key: &ObjectKey, uid: &Option<String>| {
            items
                .iter()
                .find(|item| ObjectKey::of(item).as_ref() == Some(key) && self::uid(item) == *uid)
        };
        let expected = deleted.into_iter().map(|(key, uid)| {
            match left(&key, &uid)
                .and_then(|item| expectation(self.target, key.clone(), item, true))
            {
                Some(expected) => expected,
                None => Expected::Gone { key, uid },
            }
        });
        Ok(expected.collect())
    }

    /// The JSON at `path`; `None` for a 404.
    async fn read(&self, path: &str) -> Result<Option<Value>, FenceError> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.parse().map_err(|_| self.failure(path, "no such address"))?;
        *request.headers_mut() = self.looker.headers.clone();
        for stale in [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::TRANSFER_ENCODING] {
            request.headers_mut().remove(stale);
        }
        let json = header::HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::ACCEPT, json);
        let reply = self.looker.upstream.clone().oneshot(request).await;
        let reply = reply.map_err(|error| self.failure(path, &chain(&*error)))?;
        match reply.status() {
            StatusCode::NOT_FOUND => return Ok(None),
            status if !status.is_success() => {
                return Err(self.failure(path, &format!("the server answers {status}")));
            }
            _ => {}
        }
        let bytes = http_body_util::BodyExt::collect(reply.into_body())
            .await
            .map_err(|error| self.failure(path, &chain(&*error)))?
            .to_bytes();
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| self.failure(path, &error.to_string()))
    }

    fn failure(&self, path: &str, problem: &str) -> FenceError {
        FenceError {
            request: format!("{} {}", self.asked.verb, self.asked.path),
            problem: format!("its reply names no version, and reading {path} failed"),
            evidence: format!("\n  {problem}"),
        }
    }
}

fn collection_path(target: &Target, namespace: Option<&str>) -> String {
    let group = if target.group.is_empty() {
        format!("/api/{}", target.version)
    } else {
        format!("/apis/{}/{}", target.group, target.version)
    };
    let namespace = namespace.map(|name| format!("/namespaces/{name}")).unwrap_or_default();
    format!("{group}{namespace}/{}", target.resource)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target(resource: &str) -> Target {
        Target { resource: resource.to_owned(), ..Target::default() }
    }

    fn removed(resource: &str, more: Value) -> bool {
        let mut object = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        for (key, value) in more.as_object().unwrap() {
            if key == "spec" {
                object["spec"] = value.clone();
            } else {
                object["metadata"][key] = value.clone();
            }
        }
        is_removed(&target(resource), &object)
    }

    #[test]
    fn a_reply_tells_whether_the_object_is_gone() {
        assert!(removed("configmaps", json!({})));
        assert!(removed("pods", json!({"deletionGracePeriodSeconds": 0, "finalizers": []})));
        assert!(!removed("pods", json!({"deletionGracePeriodSeconds": 30})));
        assert!(!removed("configmaps", json!({"finalizers": ["a/b"]})));
        assert!(!removed("namespaces", json!({"spec": {"finalizers": ["kubernetes"]}})));
        assert!(removed("namespaces", json!({"spec": {"finalizers": []}})));
        assert!(!removed("configmaps", json!({"deletionTimestamp": null})));
    }
}
