//! Streams of our own: what the server does to a resource, whether a client watches it or not.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header::ACCEPT};
use kube::{Resource, client::Body};
use tower::ServiceExt;

use super::{
    Lag,
    engine::{self, Which},
    layer::read_whole,
    model::{Identity, ListVersion, Representation},
    streams::{List, Start, Stream},
    upstream::Drain,
    wire,
};
use crate::text::chain;

impl Lag {
    /// Follows a resource in one namespace: its history is in the [record of a run](Self::run), fences wait for it,
    /// and a flipped read of it has a view to be answered from though no client watches it.
    ///
    /// Returns when its present state is known. Twice is once.
    ///
    /// # Errors
    /// [`ObserveError`] if the server does not list or watch it.
    pub async fn observe<K: Resource<DynamicType = ()>>(
        &self,
        namespace: &str,
    ) -> Result<(), ObserveError> {
        let (group, version, plural) = (K::group(&()), K::version(&()), K::plural(&()));
        self.observe_resource(&group, &version, &plural, namespace).await
    }

    /// The same for a resource that has no Rust type here; `group` is empty for the core group.
    ///
    /// # Errors
    /// As [`observe`](Self::observe).
    pub async fn observe_resource(
        &self,
        group: &str,
        version: &str,
        plural: &str,
        namespace: &str,
    ) -> Result<(), ObserveError> {
        let identity = Identity {
            group: group.to_owned(),
            version: version.to_owned(),
            resource: plural.to_owned(),
            namespace: Some(namespace.to_owned()),
            labels: None,
            fields: None,
            representation: Representation::Full,
        };
        let known = |registry: &engine::Registry| {
            registry.replicas.iter().any(|replica| replica.identity == identity)
        };
        if self.engine.look(known) {
            return Ok(());
        }
        let failed = |problem: String| ObserveError { identity: identity.to_string(), problem };
        let prefix = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        let path = format!("{prefix}/{version}/namespaces/{namespace}/{plural}");
        let (upstream, _) = self.upstream();
        let list = get(&path).map_err(&failed)?;
        let reply = upstream.clone().oneshot(list).await.map_err(|e| failed(chain(&*e)))?;
        let (reply, value) = read_whole(reply).await.map_err(|error| failed(chain(&*error)))?;
        let value = value.filter(|_| reply.status() == StatusCode::OK);
        let Some(value) = value else {
            return Err(failed(format!("the server answers the list with {}", reply.status())));
        };
        let resource_version = wire::text(&value, "/metadata/resourceVersion").unwrap_or_default();
        let watch = get(&format!(
            "{path}?watch=true&allowWatchBookmarks=true&resourceVersion={resource_version}"
        ))
        .map_err(&failed)?;
        let (uri, headers) = (watch.uri().clone(), watch.headers().clone());
        let reply = upstream.clone().oneshot(watch).await.map_err(|e| failed(chain(&*e)))?;
        if reply.status() != StatusCode::OK {
            return Err(failed(format!("the server answers the watch with {}", reply.status())));
        }
        let (kind, objects) = engine::items(&value);
        let asked = ListVersion::Consistent;
        let list = List { resource_version, kind, objects, asked, request: 0, chosen: false };
        let start = Start::Listed { list: std::sync::Arc::new(list) };
        let (replica, epoch) = self.engine.change(|registry| {
            let mut stream = Stream::new(identity.clone(), 1, start, true);
            let epoch = stream.open();
            registry.replicas.push(stream);
            (registry.replicas.len() - 1, epoch)
        });
        let engine = std::sync::Arc::downgrade(&self.engine);
        let stream = Which::Replica(replica);
        let drain = Drain { engine, upstream, stream, epoch, uri, headers };
        let drain = tokio::spawn(drain.run(reply.into_body())).abort_handle();
        self.engine.change(|registry| registry.replicas[replica].drained_by(drain));
        Ok(())
    }
}

fn get(uri: &str) -> Result<Request<Body>, String> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let mut request =
        Request::get(uri).body(Body::from(Bytes::new())).map_err(|e| e.to_string())?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// A resource that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to observe {identity}: {problem}; is the resource installed, and may this user list and watch it?"
)]
pub struct ObserveError {
    identity: String,
    problem: String,
}
