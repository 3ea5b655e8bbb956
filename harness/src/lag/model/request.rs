//! One recorded request.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A request as the code under test made it, and what became of it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Request {
    /// Counts the requests of one [`Lag`](crate::lag::Lag), from 1, in the order in which they were made.
    pub number: u64,
    /// What was asked.
    pub verb: Verb,
    /// The path, without the query.
    pub path: String,
    /// API group; empty for the core group, and for paths that name no resource.
    pub group: String,
    /// API version, such as `v1`.
    pub version: String,
    /// The plural name, such as `statefulsets`; empty for paths that name no resource (discovery, health).
    pub resource: String,
    /// Such as `status`.
    pub subresource: Option<String>,
    /// The namespace of the path.
    pub namespace: Option<String>,
    /// The name in the path; of a create, the name in the object sent, or in the reply where the server made it up.
    pub name: Option<String>,
    /// The label selector as sent.
    pub labels: Option<String>,
    /// The field selector as sent.
    pub fields: Option<String>,
    /// `resourceVersion` of the query; of a write, the one in the body, which is a precondition.
    pub resource_version_asked: Option<String>,
    /// `resourceVersionMatch` of the query.
    pub resource_version_match: Option<String>,
    /// `metadata.resourceVersion` of the reply.
    pub resource_version_answered: Option<String>,
    /// What came of it.
    pub outcome: Outcome,
    /// Who decided that.
    pub answered_by: AnsweredBy,
    /// The innermost `tracing` span in which the request was made. `None` where no subscriber records the span.
    pub span: Option<String>,
    /// The number of the [pass](crate::lag::Passes) in which it was made, if exactly one was under way.
    pub pass: Option<u32>,
    /// Which request of its pass it was with this verb, target, name and span, from 1; 0 outside of passes.
    pub ordinal: u32,
    /// When it was made, counted from the making of the [`Lag`](crate::lag::Lag).
    pub started: Duration,
    /// When its reply was handed back (of a watch: when the watch began), counted in the same way.
    pub finished: Option<Duration>,
    /// The body sent, where it is JSON.
    pub body: Option<Value>,
}

/// Whether a resource only tells people what happened: Events, which nobody decides by and no state has.
pub(crate) fn is_for_people(group: &str, resource: &str) -> bool {
    resource == "events" && matches!(group, "" | "events.k8s.io")
}

impl Request {
    /// One of the core group in the namespace `n` that the server has answered with 200, for a test to change.
    #[cfg(test)]
    pub(crate) fn sample(number: u64, verb: Verb, resource: &str) -> Self {
        Self {
            number,
            verb,
            path: String::new(),
            group: String::new(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: None,
            namespace: Some("n".to_owned()),
            name: None,
            labels: None,
            fields: None,
            resource_version_asked: None,
            resource_version_match: None,
            resource_version_answered: None,
            outcome: Outcome::Status(200),
            answered_by: AnsweredBy::Server,
            span: None,
            pass: None,
            ordinal: 0,
            started: Duration::ZERO,
            finished: None,
            body: None,
        }
    }

    /// Whether it is a GET or LIST that any state may answer (`resourceVersion=0`), such as
    /// `get_with(GetParams::any())`: from the server's watch cache, so as old as that is.
    #[must_use]
    pub fn is_cached_read(&self) -> bool {
        matches!(self.verb, Verb::Get | Verb::List)
            && self.resource_version_asked.as_deref() == Some("0")
    }

    /// `statefulsets.apps/status`, or the path where it names no resource.
    #[must_use]
    pub fn target(&self) -> String {
        if self.resource.is_empty() {
            return self.path.clone();
        }
        let mut target = self.resource.clone();
        if !self.group.is_empty() {
            target = format!("{target}.{}", self.group);
        }
        if let Some(subresource) = &self.subresource {
            target = format!("{target}/{subresource}");
        }
        target
    }
}

/// The verbs of the Kubernetes API, as its access rules name them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verb {
    /// One object.
    Get,
    /// A collection.
    List,
    /// The changes of a collection.
    Watch,
    /// POST.
    Create,
    /// PUT: replaces the object.
    Update,
    /// PATCH, of one of four kinds.
    Patch(PatchType),
    /// DELETE of one object.
    Delete,
    /// DELETE of a collection.
    DeleteCollection,
    /// A connection that leaves HTTP: exec, attach, port-forward.
    Connect,
    /// Another method.
    Other,
}

impl Verb {
    /// Whether it changes the state of the server if it succeeds.
    #[must_use]
    pub fn is_write(self) -> bool {
        matches!(
            self,
            Self::Create | Self::Update | Self::Patch(_) | Self::Delete | Self::DeleteCollection
        )
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch(PatchType::Apply) => "apply",
            Self::Patch(PatchType::Merge) => "patch (merge)",
            Self::Patch(PatchType::Json) => "patch (json)",
            Self::Patch(PatchType::Strategic) => "patch (strategic)",
            Self::Patch(PatchType::Other) => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Connect => "connect",
            Self::Other => "other",
        })
    }
}

/// The kinds of PATCH, by content type.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PatchType {
    /// Server-side apply.
    Apply,
    /// JSON merge patch.
    Merge,
    /// JSON patch: a list of operations.
    Json,
    /// Strategic merge patch.
    Strategic,
    /// None of the known content types.
    Other,
}

/// What came of a request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// No reply yet.
    Pending,
    /// A reply with this HTTP status code.
    Status(u16),
    /// The transport failed; the text is the error's.
    Failed(String),
    /// The caller gave up waiting.
    Abandoned,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.pad("pending"),
            Self::Status(code) => f.pad(&code.to_string()),
            Self::Failed(_) => f.pad("failed"),
            Self::Abandoned => f.pad("abandoned"),
        }
    }
}

/// Who decided the outcome of a request.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AnsweredBy {
    /// The API server.
    Server,
    /// An [`answer`](crate::lag::Lag::answer) set by the test.
    Answer,
    /// A [`flip`](crate::lag::Lag::flip): the lagging view.
    Flip,
    /// The log of the stream, or its end: a watch that came back.
    Log,
}

impl fmt::Display for AnsweredBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Server => "server",
            Self::Answer => "answer",
            Self::Flip => "flip",
            Self::Log => "log",
        })
    }
}
