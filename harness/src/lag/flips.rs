//! Answering a live read from the lagging view of the client's own stream.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Value, json};

use super::{
    engine::Registry,
    filter::list_streams,
    model::{Connection, LabelSelector, ObjectKey, Representation, Verb},
    streams::Stream,
    wire::{self, Asked},
};

/// The reply that `asked` would get from a store fed by the client's own stream.
pub(super) fn answer(registry: &Registry, asked: &Asked) -> (StatusCode, Value) {
    match try_answer(registry, asked) {
        Ok(answer) => answer,
        Err(message) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            wire::status_object(500, "InternalError", &message, json!({})),
        ),
    }
}

fn try_answer(registry: &Registry, asked: &Asked) -> Result<(StatusCode, Value), String> {
    let stream = choose(registry, asked)?;
    // Not older than what was read through the wrapper.
    let objects = stream.readable().into_first();
    let objects = objects.into_iter().map(|(key, object)| (key.clone(), object.clone())).collect();
    if !matches!(asked.target.subresource.as_deref(), None | Some("status")) {
        return Err(format!(
            "failed to flip a read of {}: a view holds no such subresource",
            asked.path
        ));
    }
    match asked.verb {
        Verb::Get => Ok(get(asked, &objects)),
        Verb::List => list(stream, asked, objects).map(|list| (StatusCode::OK, list)),
        verb => Err(format!("failed to flip a {verb}: only get and list read a view")),
    }
}

/// The stream whose store a cached read in place of this live one would ask.
///
/// One without selectors goes before one with, one of just this scope before a wider one, one whose client
/// is there before a closed one, the first instance before the second.
fn choose<'a>(registry: &'a Registry, asked: &Asked) -> Result<&'a Stream, String> {
    let covers = |stream: &&Stream| {
        let identity = &stream.identity;
        identity.group == asked.target.group
            && identity.version == asked.target.version
            && identity.resource == asked.target.resource
            && identity.representation == Representation::Full
            && (identity.namespace.is_none() || identity.namespace == asked.target.namespace)
    };
    let rank = |stream: &&Stream| {
        let identity = &stream.identity;
        (
            identity.labels.is_some() || identity.fields.is_some(),
            identity.namespace != asked.target.namespace,
            stream.connection() == Connection::Closed,
            stream.instance,
        )
    };
    registry.streams.iter().filter(covers).min_by_key(rank).ok_or_else(|| {
        format!(
            "failed to flip {} {}: this client has no stream of full objects that covers it; its streams are:{}",
            asked.verb,
            asked.path,
            list_streams(&registry.descriptions())
        )
    })
}

fn get(asked: &Asked, objects: &BTreeMap<ObjectKey, Value>) -> (StatusCode, Value) {
    let key = ObjectKey {
        namespace: asked.target.namespace.clone(),
        name: asked.target.name.clone().unwrap_or_default(),
    };
    match objects.get(&key) {
        Some(object) => (StatusCode::OK, represented(object.clone(), asked)),
        None => (StatusCode::NOT_FOUND, wire::refusal(StatusCode::NOT_FOUND, asked)),
    }
}

fn list(
    stream: &Stream,
    asked: &Asked,
    objects: BTreeMap<ObjectKey, Value>,
) -> Result<Value, String> {
    let labels: Option<LabelSelector> = asked
        .parameter("labelSelector")
        .map(str::parse)
        .transpose()
        .map_err(|error| format!("failed to flip a list: {error}"))?;
    let fields = asked.parameter("fieldSelector").map(name_selector).transpose()?;
    let namespace = asked.target.namespace.as_ref();
    let items: Vec<Value> = objects
        .into_iter()
        .filter(|(key, object)| {
            namespace.is_none_or(|namespace| key.namespace.as_ref() == Some(namespace))
                && labels.as_ref().is_none_or(|labels| labels.matches(object))
                && fields.iter().flatten().all(|(field, value)| match field {
                    NameField::Name => key.name == *value,
                    NameField::Namespace => key.namespace.as_deref().unwrap_or_default() == value,
                })
        })
        .map(|(_, object)| represented(object, asked))
        .collect();
    let (api_version, kind) = match (asked.representation, stream.kind()) {
        (Some(Representation::Metadata), _) => ("meta.k8s.io/v1", "PartialObjectMetadata"),
        (_, Some((api_version, kind))) => (api_version.as_str(), kind.as_str()),
        // Nothing has been received that tells the kind, so there are no items either.
        (_, None) => ("v1", ""),
    };
    Ok(json!({
        "kind": format!("{kind}List"),
        "apiVersion": api_version,
        "metadata": {"resourceVersion": stream.delivered_resource_version().unwrap_or("0")},
        "items": items,
    }))
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
