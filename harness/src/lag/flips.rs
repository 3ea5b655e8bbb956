//! Answering a live read from the lagging view of the client's own stream.

use http::StatusCode;
use serde_json::{Value, json};

use super::{
    chronicle::{AnsweredFrom, ViewOf},
    engine::{Engine, Registry, Which},
    filter::list_streams,
    model::{
        CachedRead, Connection, LabelSelector, ObjectKey, Objects, Query, Representation, Verb,
    },
    reading::{self, Compare, Question},
    streams::Stream,
    wire::{self, Asked},
};

/// A reply from a view, and which one it was.
pub(super) struct Flipped {
    pub(super) code: StatusCode,
    pub(super) value: Value,
    pub(super) from: Option<AnsweredFrom>,
}

/// The reply that `asked` would get from a store fed by the client's own stream, or, where it has none, by one
/// of ours. How far that store is, the scheduler chooses.
pub(super) fn answer(engine: &Engine, asked: &Asked) -> Flipped {
    try_answer(engine, asked).unwrap_or_else(|message| {
        let code = StatusCode::INTERNAL_SERVER_ERROR;
        let value = wire::status_object(500, "InternalError", &message, json!({}));
        Flipped { code, value, from: None }
    })
}

fn try_answer(engine: &Engine, asked: &Asked) -> Result<Flipped, String> {
    if !matches!(asked.target.subresource.as_deref(), None | Some("status")) {
        return Err(format!(
            "failed to flip a read of {}: a view holds no such subresource",
            asked.path
        ));
    }
    let which = engine.look(|registry| choose(registry, asked))?;
    let selection = Selection::of(asked)?;
    let key = ObjectKey {
        namespace: asked.target.namespace.clone(),
        name: asked.target.name.clone().unwrap_or_default(),
    };
    let query = match (asked.verb, asked.parameter("labelSelector")) {
        (Verb::Get, _) => Query::Get(key.clone()),
        (Verb::List, None) if asked.parameter("fieldSelector").is_none() => Query::All,
        (Verb::List, Some(labels)) if asked.parameter("fieldSelector").is_none() => {
            Query::Labels(labels.to_owned())
        }
        (Verb::List, _) => Query::Filtered,
        (verb, _) => return Err(format!("failed to flip a {verb}: only get and list read a view")),
    };
    let select = |objects: &Objects<'_>| -> Vec<ObjectKey> {
        if asked.verb == Verb::Get {
            return objects.contains_key(&key).then(|| key.clone()).into_iter().collect();
        }
        let selected = objects.iter().filter(|(key, object)| selection.selects(key, object));
        selected.map(|(key, _)| (*key).clone()).collect()
    };
    let question = Question { which, query, site: None, compare: Compare::Objects };
    let answer = reading::read(engine, question, &select, None);
    let of = match which {
        Which::Client(index) => ViewOf::Stream(index),
        Which::Replica(index) => ViewOf::Replica(index),
    };
    let CachedRead { incarnation, position, .. } = answer.read;
    let from = Some(AnsweredFrom::View { of, incarnation, position });
    let mut objects = answer.objects.into_iter().map(|(_, object)| represented(object, asked));
    if asked.verb == Verb::Get {
        let (code, value) = match objects.next() {
            Some(object) => (StatusCode::OK, object),
            None => (StatusCode::NOT_FOUND, wire::refusal(StatusCode::NOT_FOUND, asked)),
        };
        return Ok(Flipped { code, value, from });
    }
    let items: Vec<Value> = objects.collect();
    let value = engine.look(|registry| list(registry.at(which), asked, items));
    Ok(Flipped { code: StatusCode::OK, value, from })
}

/// The stream whose store a cached read in place of this live one would ask.
///
/// One without selectors goes before one with, one of just this scope before a wider one, one whose client
/// is there before a closed one, the first instance before the second.
fn choose(registry: &Registry, asked: &Asked) -> Result<Which, String> {
    let covers = |stream: &Stream| {
        let identity = &stream.identity;
        identity.group == asked.target.group
            && identity.version == asked.target.version
            && identity.resource == asked.target.resource
            && identity.representation == Representation::Full
            && (identity.namespace.is_none() || identity.namespace == asked.target.namespace)
    };
    let rank = |stream: &Stream| {
        let identity = &stream.identity;
        (
            identity.labels.is_some() || identity.fields.is_some(),
            identity.namespace != asked.target.namespace,
            stream.connection() == Connection::Closed,
            stream.instance,
        )
    };
    let streams = registry.streams.iter().enumerate().filter(|(_, stream)| covers(stream));
    let own = streams.min_by_key(|(_, stream)| rank(stream));
    let replica = || registry.replicas.iter().position(covers).map(Which::Replica);
    own.map(|(index, _)| Which::Client(index)).or_else(replica).ok_or_else(|| {
        format!(
            "failed to flip {} {}: this client has no stream of full objects that covers it; its streams are:{}",
            asked.verb,
            asked.path,
            list_streams(&registry.descriptions())
        )
    })
}

/// What a list asks for.
struct Selection {
    namespace: Option<String>,
    labels: Option<LabelSelector>,
    fields: Vec<(NameField, String)>,
}

impl Selection {
    fn of(asked: &Asked) -> Result<Self, String> {
        let labels = asked.parameter("labelSelector").map(str::parse).transpose();
        let labels = labels.map_err(|error| format!("failed to flip a list: {error}"))?;
        let fields = asked.parameter("fieldSelector").map(name_selector).transpose()?;
        let namespace = asked.target.namespace.clone();
        Ok(Self { namespace, labels, fields: fields.unwrap_or_default() })
    }

    fn selects(&self, key: &ObjectKey, object: &Value) -> bool {
        let namespace = self.namespace.as_ref();
        namespace.is_none_or(|namespace| key.namespace.as_ref() == Some(namespace))
            && self.labels.as_ref().is_none_or(|labels| labels.matches(object))
            && self.fields.iter().all(|(field, value)| match field {
                NameField::Name => key.name == *value,
                NameField::Namespace => key.namespace.as_deref().unwrap_or_default() == value,
            })
    }
}

fn list(stream: &Stream, asked: &Asked, items: Vec<Value>) -> Value {
    let (api_version, kind) = match (asked.representation, stream.kind()) {
        (Some(Representation::Metadata), _) => ("meta.k8s.io/v1", "PartialObjectMetadata"),
        (_, Some((api_version, kind))) => (api_version.as_str(), kind.as_str()),
        // Nothing has been received that tells the kind, so there are no items either.
        (_, None) => ("v1", ""),
    };
    json!({
        "kind": format!("{kind}List"),
        "apiVersion": api_version,
        "metadata": {"resourceVersion": stream.delivered_resource_version().unwrap_or("0")},
        "items": items,
    })
}

#[derive(Clone, Copy)]
enum NameField {
    Name,
    Namespace,
}

/// Field selectors on the two fields that every resource has.
fn name_selector(selector: &str) -> Result<Vec<(NameField, String)>, String> {
    let requirement = |text: &str| {
        let (field, value) = text.split_once("==").or_else(|| text.split_once('='))?;
        let field = match field.trim() {
            "metadata.name" => NameField::Name,
            "metadata.namespace" => NameField::Namespace,
            _ => return None,
        };
        Some((field, value.trim().to_owned()))
    };
    let parts = selector.split(',').filter(|part| !part.is_empty());
    parts.map(requirement).collect::<Option<_>>().ok_or_else(|| {
        format!(
            "failed to flip a list with field selector {selector:?}: \
             only metadata.name and metadata.namespace are known here"
        )
    })
}

/// The object in the form that was asked for.
fn represented(object: Value, asked: &Asked) -> Value {
    if asked.representation != Some(Representation::Metadata) {
        return object;
    }
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}
