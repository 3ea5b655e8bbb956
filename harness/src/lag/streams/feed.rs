//! What a stream has received of what a write has done.

use std::fmt;

use serde_json::Value;

use super::{
    super::{
        model::{FieldSelector, Identity, LabelSelector, ObjectKey, compare_resource_versions},
        wire::{self, Target},
    },
    BodyState, Gate, Stream, Upstream,
};

/// What the streams that show an object have to receive after a write.
#[derive(Clone, Debug)]
pub(in crate::lag) enum Expected {
    /// The object at this version, or a newer one; or its leaving the selectors.
    Version {
        key: ObjectKey,
        resource_version: String,
        /// The object after the write, for judging selectors; `None` if it is not known.
        object: Option<Value>,
        /// Whether that is the object with all its fields.
        whole: bool,
    },
    /// The deletion of the object with this UID, or of whatever has the name.
    Gone { key: ObjectKey, uid: Option<String> },
}

/// Whether a stream has what is expected of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::lag) enum Met {
    /// It has, or nothing is expected of it.
    Yes,
    No,
    /// Whether it is to show the object is not known.
    Undecided,
}

impl Stream {
    /// Whether its events are those of that resource in that namespace. Versions share one history.
    pub(in crate::lag) fn is_of(&self, target: &Target) -> bool {
        self.identity.group == target.group && self.identity.resource == target.resource
    }

    /// Whether the server's events reach it now: its watch is open, and its connection stands or is made anew.
    pub(in crate::lag) fn is_fed(&self) -> bool {
        let coming = match &self.upstream {
            Upstream::Flowing => true,
            Upstream::Over(_) => matches!(self.gate, Gate::Held { .. }),
            Upstream::Expired => false,
        };
        self.body == BodyState::Open && coming
    }

    pub(in crate::lag) fn meets(&self, expected: &Expected) -> Met {
        let key = expected.key();
        let scope = &self.identity.namespace;
        if !self.is_fed() || (scope.is_some() && *scope != key.namespace) {
            return Met::Yes;
        }
        if !self.initial_complete() {
            return Met::No;
        }
        let newest = self.log.newest(key);
        match expected {
            Expected::Gone { uid, .. } => {
                let there = newest.is_some_and(|object| {
                    uid.is_none() || wire::text(object, "/metadata/uid") == *uid
                });
                if there { Met::No } else { Met::Yes }
            }
            Expected::Version { resource_version, object, whole, .. } => {
                if self.has_version(key, resource_version) {
                    return Met::Yes;
                }
                // What left the selectors is expected as a deletion.
                if newest.is_some() {
                    return Met::No;
                }
                match selects(&self.identity, object.as_ref(), *whole) {
                    Some(true) => Met::No,
                    Some(false) => Met::Yes,
                    None => Met::Undecided,
                }
            }
        }
    }

    fn has_version(&self, key: &ObjectKey, resource_version: &str) -> bool {
        let reaches = |version: &str| {
            version == resource_version
                || compare_resource_versions(version, resource_version)
                    .is_some_and(std::cmp::Ordering::is_ge)
        };
        // A watch "from any state" begins with events in no order.
        let ordered = !matches!(self.log.initial_resource_version(), "" | "0");
        let of_object = match self.log.newest_event(key) {
            Some(event) => Some(event.resource_version.clone()),
            None => self
                .log
                .newest(key)
                .and_then(|object| wire::text(object, "/metadata/resourceVersion")),
        };
        of_object.is_some_and(|version| reaches(&version))
            || (ordered && self.received_resource_version().is_some_and(reaches))
    }
}

/// Whether a stream shows `object`; `None` if that cannot be told.
fn selects(identity: &Identity, object: Option<&Value>, whole: bool) -> Option<bool> {
    if identity.labels.is_none() && identity.fields.is_none() {
        return Some(true);
    }
    let object = object?;
    let labels: Option<LabelSelector> =
        identity.labels.as_deref().map(str::parse).transpose().ok()?;
    let fields: Option<FieldSelector> =
        identity.fields.as_deref().map(str::parse).transpose().ok()?;
    if labels.is_some_and(|labels| !labels.matches(object)) {
        return Some(false);
    }
    let Some(fields) = fields else { return Some(true) };
    (whole || fields.is_of_metadata()).then(|| fields.matches(object))
}

impl Expected {
    pub(in crate::lag) fn key(&self) -> &ObjectKey {
        match self {
            Self::Version { key, .. } | Self::Gone { key, .. } => key,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { key, resource_version, .. } => {
                write!(f, "{key} at rv {resource_version}")
            }
            Self::Gone { key, uid: Some(uid) } => write!(f, "the deletion of {key} (uid {uid})"),
            Self::Gone { key, uid: None } => write!(f, "the deletion of {key}"),
        }
    }
}
