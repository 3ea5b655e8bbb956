//! What a release has handed on.

use std::fmt;

use super::{
    model::{Change, ObjectKey, ShownEvent},
    streams::Carried,
};

/// What a release has handed on.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Released {
    /// An event.
    #[non_exhaustive]
    Event {
        /// What happened to the object.
        change: Change,
        /// Which object.
        key: ObjectKey,
        /// The resource version of the change.
        resource_version: String,
    },
    /// An error of the server, such as an expired resource version; the frame as it was sent.
    #[non_exhaustive]
    Error {
        /// The line of the watch.
        frame: String,
    },
}

impl Released {
    /// The resource version of the event; `None` for errors.
    #[must_use]
    pub fn resource_version(&self) -> Option<&str> {
        match self {
            Self::Event { resource_version, .. } => Some(resource_version),
            Self::Error { .. } => None,
        }
    }

    /// What happened; `None` for errors.
    #[must_use]
    pub fn change(&self) -> Option<Change> {
        match self {
            Self::Event { change, .. } => Some(*change),
            Self::Error { .. } => None,
        }
    }

    /// The event as the record of a run has it.
    pub(super) fn event(&self) -> Option<ShownEvent> {
        match self {
            Self::Event { change, key, resource_version } => Some(ShownEvent {
                change: *change,
                key: key.clone(),
                resource_version: resource_version.clone(),
            }),
            Self::Error { .. } => None,
        }
    }

    /// `metadata.name` of the object; `None` for errors.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Event { key, .. } => Some(&key.name),
            Self::Error { .. } => None,
        }
    }
}

impl From<&Carried<'_>> for Released {
    fn from(carried: &Carried<'_>) -> Self {
        match carried {
            Carried::Event(event) => Self::Event {
                change: event.change,
                key: event.key.clone(),
                resource_version: event.resource_version.clone(),
            },
            Carried::Error(bytes) => {
                Self::Error { frame: String::from_utf8_lossy(bytes).trim_end().to_owned() }
            }
        }
    }
}

impl fmt::Display for Released {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event { change, key, resource_version } => {
                write!(f, "{change} {key} rv {resource_version}")
            }
            Self::Error { frame } => f.write_str(frame),
        }
    }
}
