//! Reading requests and replies of the Kubernetes API, and writing replies as the API server writes them.

use bytes::Bytes;
use futures::FutureExt;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Uri,
    header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, UPGRADE},
    request::Parts,
};
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::{Value, json};

use super::model::{
    AnsweredBy, Identity, ListVersion, Outcome, PatchType, Representation, Request, Verb,
};
use crate::connect::ReplyBody;

/// What a request says, read once when it is made.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) verb: Verb,
    pub(super) path: String,
    pub(super) target: Target,
    pub(super) query: Vec<(String, String)>,
    /// In which form objects are wanted; `None` for forms that are handed through unseen (tables, protobuf).
    pub(super) representation: Option<Representation>,
    pub(super) body: Option<Value>,
}

/// What the path names. All empty for paths outside the resources.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Target {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) resource: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
}

impl Asked {
    pub(super) fn read(parts: &Parts, body: &Body) -> Self {
        let query: Vec<(String, String)> =
            form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let mut target = Target::of(parts.uri.path());
        let watch =
            query.iter().any(|(key, value)| key == "watch" && matches!(&**value, "true" | "1"));
        let verb = verb(parts, &target, watch);
        // kube sends bodies that are whole and in memory; others are streams, and not looked at.
        let body = body
            .try_clone()
            .and_then(|body| body.collect().now_or_never())
            .and_then(Result::ok)
            .and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
        if verb == Verb::Create && target.name.is_none() {
            target.name = body.as_ref().and_then(|body: &Value| text(body, "/metadata/name"));
        }
        Self {
            verb,
            path: parts.uri.path().to_owned(),
            target,
            query,
            representation: representation(&parts.headers),
            body,
        }
    }

    /// Tells those who listen to the target `laggard::sent` at TRACE that it is sent on.
    pub(super) fn tell(&self, method: &Method, uri: &Uri, headers: &HeaderMap) {
        let content_type = || headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        tracing::trace!(
            target: "laggard::sent",
            %method,
            %uri,
            content_type = content_type(),
            body = self.body.as_ref().map(ToString::to_string),
        );
    }

    /// The last value of a query parameter, `None` where it is empty.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let value = self.query.iter().rev().find(|(key, _)| key == name)?.1.as_str();
        (!value.is_empty()).then_some(value)
    }

    /// Which state a list, or the initial events of a watch, may show.
    pub(super) fn list_version(&self) -> ListVersion {
        let version = self.parameter("resourceVersion").unwrap_or_default();
        match (version, self.parameter("resourceVersionMatch")) {
            ("", _) => ListVersion::Consistent,
            ("0", _) => ListVersion::Any,
            (version, Some("Exact")) => ListVersion::Exact(version.to_owned()),
            (version, _) => ListVersion::NotOlderThan(version.to_owned()),
        }
    }

    /// Whether the reply must be passed on as it comes: it is no JSON document, or may never end.
    pub(super) fn streams_its_reply(&self) -> bool {
        const STREAMING: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];
        self.verb == Verb::Connect
            || self.target.subresource.as_deref().is_some_and(|name| STREAMING.contains(&name))
            || (self.verb == Verb::Watch && self.identity().is_none())
    }

    /// Which streams this list or watch belongs to. `None` if it can be none of ours.
    pub(super) fn identity(&self) -> Option<Identity> {
        if !matches!(self.verb, Verb::List | Verb::Watch)
            || self.target.resource.is_empty()
            || self.target.name.is_some()
        {
            return None;
        }
        Some(Identity {
            group: self.target.group.clone(),
            version: self.target.version.clone(),
            resource: self.target.resource.clone(),
            namespace: self.target.namespace.clone(),
            labels: self.parameter("labelSelector").map(str::to_owned),
            fields: self.parameter("fieldSelector").map(str::to_owned),
            representation: self.representation?,
        })
    }

    pub(super) fn record(&self, span: Option<String>) -> Request {
        let precondition = || text(self.body.as_ref()?, "/metadata/resourceVersion");
        let owned = |name: &str| self.parameter(name).map(str::to_owned);
        Request {
            number: 0,
            verb: self.verb,
            path: self.path.clone(),
            group: self.target.group.clone(),
            version: self.target.version.clone(),
            resource: self.target.resource.clone(),
            subresource: self.target.subresource.clone(),
            namespace: self.target.namespace.clone(),
            name: self.target.name.clone(),
            labels: owned("labelSelector"),
            fields: owned("fieldSelector"),
            resource_version_asked: if self.verb.is_write() {
                precondition()
            } else {
                owned("resourceVersion")
            },
            resource_version_match: owned("resourceVersionMatch"),
            resource_version_answered: None,
            outcome: Outcome::Pending,
            answered_by: AnsweredBy::Server,
            span,
            pass: None,
            ordinal: 0,
            started: std::time::Duration::ZERO,
            finished: None,
            body: self.body.clone(),
        }
    }
}

fn verb(parts: &Parts, target: &Target, watch: bool) -> Verb {
    if parts.headers.contains_key(UPGRADE) {
        return Verb::Connect;
    }
    let named = target.name.is_some() || target.resource.is_empty();
    match parts.method {
        Method::GET if watch => Verb::Watch,
        Method::GET if named => Verb::Get,
        Method::GET => Verb::List,
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH => Verb::Patch(patch_type(&parts.headers)),
        Method::DELETE if named => Verb::Delete,
        Method::DELETE => Verb::DeleteCollection,
        _ => Verb::Other,
    }
}

fn patch_type(headers: &HeaderMap) -> PatchType {
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match content_type.split(';').next().unwrap_or_default().trim() {
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => PatchType::Apply,
        "application/merge-patch+json" => PatchType::Merge,
        "application/json-patch+json" => PatchType::Json,
        "application/strategic-merge-patch+json" => PatchType::Strategic,
        _ => PatchType::Other,
    }
}

fn representation(headers: &HeaderMap) -> Option<Representation> {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("as=PartialObjectMetadata") {
        Some(Representation::Metadata)
    } else if accept.contains("as=") || accept.contains("protobuf") || accept.contains("cbor") {
        None
    } else {
        Some(Representation::Full)
    }
}

impl Target {
    /// Source: Kubernetes, "API concepts", Resource URIs.
    fn of(path: &str) -> Self {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let (group, version, rest) = match &segments[..] {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Self::default(),
        };
        let (namespace, rest) = match rest {
            // A namespace is itself an object, with these two subresources.
            ["namespaces", _, "status" | "finalize", ..] => (None, rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            _ => (None, rest),
        };
        let Some((resource, rest)) = rest.split_first() else { return Self::default() };
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            resource: (*resource).to_owned(),
            namespace: namespace.map(str::to_owned),
            name: rest.first().map(|name| (*name).to_owned()),
            subresource: rest.get(1).map(|name| (*name).to_owned()),
        }
    }

    /// `statefulsets.apps`, as the server's messages write it.
    pub(super) fn qualified_resource(&self) -> String {
        if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }
}

/// The same watch from another resource version, as a continuation: no initial events.
pub(super) fn watch_from(uri: &Uri, resource_version: &str) -> Uri {
    let dropped = ["resourceVersion", "resourceVersionMatch", "sendInitialEvents"];
    with_query(uri, &dropped, &[("resourceVersion", resource_version)])
}

/// The same list or watch of all namespaces, of one of them.
pub(super) fn in_namespace(uri: &Uri, target: &Target, namespace: &str) -> Uri {
    let Target { group, version, resource, .. } = target;
    let api = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
    let mut path = format!("{api}/{version}/namespaces/{namespace}/{resource}");
    if let Some(query) = uri.query() {
        path = format!("{path}?{query}");
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = path.parse().ok();
    // Its parts came out of a valid address, and a namespace is a DNS label.
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// A list, or the initial events of a watch, as a list of the state at exactly one resource version.
pub(super) fn list_exactly(uri: &Uri, resource_version: &str) -> Uri {
    let dropped = [
        "resourceVersion",
        "resourceVersionMatch",
        "sendInitialEvents",
        "watch",
        "allowWatchBookmarks",
        "timeoutSeconds",
    ];
    let added = [("resourceVersion", resource_version), ("resourceVersionMatch", "Exact")];
    with_query(uri, &dropped, &added)
}

/// The headers of a watch, as a list of the same has them.
pub(super) fn headers_of_list(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("as=PartialObjectMetadata;") {
        let accept = accept.replace("as=PartialObjectMetadata;", "as=PartialObjectMetadataList;");
        if let Ok(accept) = HeaderValue::from_str(&accept) {
            headers.insert(ACCEPT, accept);
        }
    }
    headers
}

fn with_query(uri: &Uri, dropped: &[&str], added: &[(&str, &str)]) -> Uri {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (key, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        if !dropped.contains(&&*key) {
            query.append_pair(&key, &value);
        }
    }
    query.extend_pairs(added);
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = format!("{}?{}", uri.path(), query.finish()).parse().ok();
    // The path came out of a valid address and the query is encoded, so this is one again.
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// A string at a JSON pointer.
pub(super) fn text(value: &Value, pointer: &str) -> Option<String> {
    value.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
}

/// The reply to a list of `objects`, the state at `resource_version`.
pub(super) fn list_reply(
    objects: Vec<Value>,
    kind: Option<&(String, String)>,
    resource_version: &str,
) -> Value {
    let (api_version, kind) = kind.map(|(a, k)| (a.as_str(), k.as_str())).unwrap_or(("v1", ""));
    json!({
        "kind": format!("{kind}List"),
        "apiVersion": api_version,
        "metadata": {"resourceVersion": resource_version},
        "items": objects,
    })
}

/// A reply whose whole body is `bytes`.
pub(super) fn whole(bytes: Bytes) -> ReplyBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A reply that carries `value` as JSON.
pub(super) fn json_reply(code: StatusCode, value: &Value) -> Response<ReplyBody> {
    let mut reply = Response::new(whole(Bytes::from(value.to_string())));
    *reply.status_mut() = code;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if code == StatusCode::TOO_MANY_REQUESTS {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    reply
}

/// The `Status` object with which the API server refuses `asked` with `code`.
///
/// Source: Kubernetes apimachinery, `pkg/api/errors/errors.go`.
pub(super) fn refusal(code: StatusCode, asked: &Asked) -> Value {
    let resource = asked.target.qualified_resource();
    let name = asked.target.name.clone().unwrap_or_default();
    let object = if name.is_empty() { resource } else { format!("{resource} {name:?}") };
    let exists = code == StatusCode::CONFLICT && asked.verb == Verb::Create;
    let (reason, message) = match code.as_u16() {
        400 => ("BadRequest", "the server rejected our request".to_owned()),
        401 => ("Unauthorized", "Unauthorized".to_owned()),
        403 => ("Forbidden", format!("{object} is forbidden: refused by the test")),
        404 => ("NotFound", format!("{object} not found")),
        405 => ("MethodNotAllowed", format!("{} is not supported on {object}", asked.verb)),
        409 if exists => ("AlreadyExists", format!("{object} already exists")),
        409 => (
            "Conflict",
            format!(
                "Operation cannot be fulfilled on {object}: the object has been modified; \
                 please apply your changes to the latest version and try again"
            ),
        ),
        410 => ("Expired", "The resourceVersion for the provided watch is too old.".to_owned()),
        413 => ("RequestEntityTooLarge", format!("{object}: request is too large")),
        415 => ("UnsupportedMediaType", format!("{object}: unsupported media type")),
        422 => ("Invalid", format!("{object} is invalid: refused by the test")),
        429 => (
            "TooManyRequests",
            "the server has received too many requests and has asked us to try again later"
                .to_owned(),
        ),
        500 => ("InternalError", "Internal error occurred: answered by the test".to_owned()),
        503 => (
            "ServiceUnavailable",
            "the server is currently unable to handle the request".to_owned(),
        ),
        504 => {
            ("Timeout", "Timeout: request did not complete within the allowed duration".to_owned())
        }
        _ => ("Unknown", "answered by the test".to_owned()),
    };
    let mut details =
        json!({"name": name, "group": asked.target.group, "kind": asked.target.resource});
    if code == StatusCode::TOO_MANY_REQUESTS {
        details["retryAfterSeconds"] = json!(1);
    }
    status_object(code.as_u16(), reason, &message, details)
}

/// A `Status` that says failure.
pub(super) fn status_object(code: u16, reason: &str, message: &str, details: Value) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": details,
        "code": code,
    })
}

/// The ERROR frame by which the API server ends a watch whose resource version it no longer knows.
pub(super) fn gone_frame(resource_version: &str) -> Bytes {
    let message = format!("too old resource version: {resource_version}");
    let status = status_object(410, "Expired", &message, json!({}));
    Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status})))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, uri: &str, headers: &[(http::HeaderName, &'static str)]) -> Asked {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Asked::read(&parts, &Body::empty())
    }

    #[test]
    fn each_path_names_its_resource_and_verb() {
        let get = Method::GET;
        for (method, uri, verb, expected) in [
            (&get, "/api/v1/pods", Verb::List, ("", "pods", None, None, None)),
            (
                &get,
                "/api/v1/namespaces/a/pods?limit=2",
                Verb::List,
                ("", "pods", Some("a"), None, None),
            ),
            (&get, "/api/v1/namespaces", Verb::List, ("", "namespaces", None, None, None)),
            (&get, "/api/v1/namespaces/a", Verb::Get, ("", "namespaces", None, Some("a"), None)),
            (
                &Method::PUT,
                "/api/v1/namespaces/a/finalize",
                Verb::Update,
                ("", "namespaces", None, Some("a"), Some("finalize")),
            ),
            (
                &get,
                "/apis/apps/v1/namespaces/a/statefulsets/s/status",
                Verb::Get,
                ("apps", "statefulsets", Some("a"), Some("s"), Some("status")),
            ),
            (
                &get,
                "/apis/apps/v1/statefulsets?watch=true",
                Verb::Watch,
                ("apps", "statefulsets", None, None, None),
            ),
            (
                &Method::DELETE,
                "/api/v1/namespaces/a/pods",
                Verb::DeleteCollection,
                ("", "pods", Some("a"), None, None),
            ),
            (
                &Method::DELETE,
                "/api/v1/namespaces/a/pods/p",
                Verb::Delete,
                ("", "pods", Some("a"), Some("p"), None),
            ),
            (&get, "/version", Verb::Get, ("", "", None, None, None)),
            (&get, "/apis/apps/v1", Verb::Get, ("", "", None, None, None)),
        ] {
            let asked = asked(method.clone(), uri, &[]);
            let target = &asked.target;
            let found = (
                target.group.as_str(),
                target.resource.as_str(),
                target.namespace.as_deref(),
                target.name.as_deref(),
                target.subresource.as_deref(),
            );
            assert_eq!((asked.verb, found), (verb, expected), "{method} {uri}");
        }
    }

    #[test]
    fn headers_tell_the_kind_of_patch_the_representation_and_an_upgrade() {
        let path = "/api/v1/namespaces/a/pods/p";
        let apply = asked(Method::PATCH, path, &[(CONTENT_TYPE, "application/apply-patch+yaml")]);
        assert_eq!(apply.verb, Verb::Patch(PatchType::Apply));
        let exec = asked(Method::GET, &format!("{path}/exec"), &[(UPGRADE, "websocket")]);
        assert!(exec.streams_its_reply() && exec.verb == Verb::Connect);

        let list = "/api/v1/pods?watch=1&labelSelector=a%3Db%2Cc&resourceVersion=5";
        let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        let identity = asked(Method::GET, list, &[(ACCEPT, metadata)]).identity().unwrap();
        assert_eq!(identity.representation, Representation::Metadata);
        assert_eq!(identity.labels.as_deref(), Some("a=b,c"));
        let table =
            asked(Method::GET, list, &[(ACCEPT, "application/json;as=Table;g=meta.k8s.io;v=v1")]);
        assert!(table.identity().is_none() && table.streams_its_reply());
    }

    #[test]
    fn a_continued_watch_keeps_its_selectors_and_asks_for_no_initial_events() {
        let uri: Uri = "/api/v1/pods?watch=true&labelSelector=a%3Db%20c&sendInitialEvents=true\
                        &resourceVersionMatch=NotOlderThan&resourceVersion=0"
            .parse()
            .unwrap();
        assert_eq!(
            watch_from(&uri, "17").to_string(),
            "/api/v1/pods?watch=true&labelSelector=a%3Db+c&resourceVersion=17"
        );
    }
}
