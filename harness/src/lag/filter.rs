//! Which streams a test means, and the message when that is none or more than one.

use std::fmt::Write as _;

use super::{
    model::{Connection, Identity, Representation, StreamDescription},
    streams::Stream,
};

/// Names streams by what was said about them; what was not said matches everything.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Filter {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) resource: String,
    /// `None` only where everything is meant, as is an empty resource.
    pub(super) representation: Option<Representation>,
    /// `Some(None)` means the streams over all namespaces.
    pub(super) namespace: Option<Option<String>>,
    /// `Some(None)` means the streams without a label selector.
    pub(super) labels: Option<Option<String>>,
    /// `Some(None)` means the streams without a field selector.
    pub(super) fields: Option<Option<String>>,
    pub(super) instance: Option<usize>,
}

impl Filter {
    /// One stream and no other.
    pub(super) fn exactly(identity: &Identity, instance: usize) -> Self {
        Self {
            group: identity.group.clone(),
            version: identity.version.clone(),
            resource: identity.resource.clone(),
            representation: Some(identity.representation),
            namespace: Some(identity.namespace.clone()),
            labels: Some(identity.labels.clone()),
            fields: Some(identity.fields.clone()),
            instance: Some(instance),
        }
    }

    /// Every stream of every resource, in every form.
    pub(super) fn everything() -> Self {
        Self {
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            representation: None,
            namespace: None,
            labels: None,
            fields: None,
            instance: None,
        }
    }

    fn is_everything(&self) -> bool {
        self.resource.is_empty()
    }

    pub(super) fn matches(&self, identity: &Identity, instance: usize) -> bool {
        let fits = |wanted: &Option<Option<String>>, found: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| wanted == found)
        };
        if self.is_everything() {
            return true;
        }
        self.group == identity.group
            && self.version == identity.version
            && self.resource == identity.resource
            && self.representation.is_none_or(|wanted| wanted == identity.representation)
            && fits(&self.namespace, &identity.namespace)
            && fits(&self.labels, &identity.labels)
            && fits(&self.fields, &identity.fields)
            && self.instance.is_none_or(|wanted| wanted == instance)
    }

    /// Whether everything that `other` can name is named by this one too.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let wider = |this: &Option<Option<String>>, that: &Option<Option<String>>| {
            this.is_none() || this == that
        };
        if self.is_everything() {
            return true;
        }
        self.group == other.group
            && self.version == other.version
            && self.resource == other.resource
            && self.representation == other.representation
            && wider(&self.namespace, &other.namespace)
            && wider(&self.labels, &other.labels)
            && wider(&self.fields, &other.fields)
            && (self.instance.is_none() || self.instance == other.instance)
    }

    /// The streams that are meant: those whose client is there, and only if there are none, the closed ones.
    pub(super) fn choose(&self, streams: &[Stream]) -> Vec<usize> {
        let matching: Vec<usize> = (0..streams.len())
            .filter(|index| self.matches(&streams[*index].identity, streams[*index].instance))
            .collect();
        let (closed, present): (Vec<_>, Vec<_>) = matching
            .into_iter()
            .partition(|index| streams[*index].connection() == Connection::Closed);
        if present.is_empty() { closed } else { present }
    }
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_everything() {
            return f.write_str("all streams");
        }
        let dot = if self.group.is_empty() { "" } else { "." };
        write!(f, "{}{dot}{} ({})", self.resource, self.group, self.version)?;
        match &self.namespace {
            None => {}
            Some(Some(namespace)) => write!(f, " in namespace {namespace:?}")?,
            Some(None) => f.write_str(" in all namespaces")?,
        }
        for (word, value) in [("labels", &self.labels), ("fields", &self.fields)] {
            match value {
                None => {}
                Some(Some(value)) => write!(f, ", {word} {value:?}")?,
                Some(None) => write!(f, ", no {word}")?,
            }
        }
        if let Some(representation) = self.representation {
            write!(f, ", {representation}")?;
        }
        if let Some(instance) = self.instance {
            write!(f, ", instance {instance}")?;
        }
        Ok(())
    }
}

/// The streams with, for each, the calls that single it out among them.
pub(super) fn list_choices(streams: &[StreamDescription]) -> String {
    let differ = |part: fn(&StreamDescription) -> &Option<String>| {
        streams.iter().any(|stream| part(stream) != part(&streams[0]))
    };
    let by_namespace = differ(|stream| &stream.identity.namespace);
    let by_labels = differ(|stream| &stream.identity.labels);
    let by_fields = differ(|stream| &stream.identity.fields);
    let mut text = String::new();
    for stream in streams {
        let mut calls = String::new();
        let identity = &stream.identity;
        let mut narrow = |wanted: bool, value: &Option<String>, method: &str, without: &str| {
            // Writing to a string cannot fail.
            let _ = match (wanted, value) {
                (false, _) => Ok(()),
                (true, Some(value)) => write!(calls, ".{method}({value:?})"),
                (true, None) => write!(calls, ".{without}()"),
            };
        };
        narrow(by_namespace, &identity.namespace, "in_namespace", "in_all_namespaces");
        narrow(by_labels, &identity.labels, "labels", "without_labels");
        narrow(by_fields, &identity.fields, "fields", "without_fields");
        let twin = |other: &&StreamDescription| other.identity == stream.identity;
        if streams.iter().filter(twin).count() > 1 {
            let _ = write!(calls, ".instance({})", stream.instance);
        }
        let _ = write!(text, "\n  {calls}: {stream}");
    }
    text
}

/// The streams, one a line.
pub(super) fn list_streams(streams: &[StreamDescription]) -> String {
    if streams.is_empty() {
        return "\n  (none)".to_owned();
    }
    streams.iter().map(|stream| format!("\n  {stream}")).collect()
}
