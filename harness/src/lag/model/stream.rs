//! Which stream is meant, and how it stands.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::View;

/// What a watch asks for: everything in it but the resource version.
///
/// Two watches with one identity are two instances of it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Identity {
    /// API group; empty for the core group.
    pub group: String,
    /// API version, such as `v1`.
    pub version: String,
    /// The plural name, such as `statefulsets`.
    pub resource: String,
    /// The namespace; `None` for all of them, and for cluster-scoped resources.
    pub namespace: Option<String>,
    /// The label selector as sent.
    pub labels: Option<String>,
    /// The field selector as sent.
    pub fields: Option<String>,
    /// Whether whole objects or their metadata alone are sent.
    pub representation: Representation,
}

impl Identity {
    /// `statefulsets.apps`, or `pods` in the core group.
    #[must_use]
    pub fn qualified_resource(&self) -> String {
        if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.qualified_resource(), self.version)?;
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace:?}")?,
            None => f.write_str(" in all namespaces")?,
        }
        if let Some(labels) = &self.labels {
            write!(f, ", labels {labels:?}")?;
        }
        if let Some(fields) = &self.fields {
            write!(f, ", fields {fields:?}")?;
        }
        write!(f, ", {}", self.representation)
    }
}

/// In which form a stream carries its objects.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Representation {
    /// The whole objects: `Controller::new`, `watches`, `reflector` over `watcher`.
    Full,
    /// `PartialObjectMetadata`: `owns`, `metadata_watcher`.
    Metadata,
}

impl fmt::Display for Representation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "full objects",
            Self::Metadata => "metadata only",
        })
    }
}

/// Whether the client of a stream is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Connection {
    /// It has an open watch.
    Open,
    /// Its watch has ended and it has not come back yet.
    BetweenWatches,
    /// It dropped its watch: a finished wait, a stopped controller, or one that is about to list again.
    Closed,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::BetweenWatches => "between watches",
            Self::Closed => "closed by the client",
        })
    }
}

/// One stream as it stood when it was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct StreamDescription {
    /// What it watches.
    pub identity: Identity,
    /// Counts the watches of this identity that were open at once, from 1.
    pub instance: usize,
    /// What its client has been shown.
    pub view: View,
    /// How many events have been received and not handed on.
    pub behind: usize,
    /// Whether it is held.
    pub held: bool,
    /// Whether its client is there.
    pub connection: Connection,
    /// The resource version that its client knows; `None` while an initial list is being streamed.
    pub delivered_resource_version: Option<String>,
    /// The newest resource version received for it.
    pub received_resource_version: Option<String>,
    /// Why the connection to the server is being made anew, if it is.
    pub trouble: Option<String>,
}

impl fmt::Display for StreamDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".to_owned());
        write!(
            f,
            "{}, instance {}: position {} of incarnation {}, {} behind, rv {} shown of {} received, {}, {}",
            self.identity,
            self.instance,
            self.view.position,
            self.view.incarnation,
            self.behind,
            version(&self.delivered_resource_version),
            version(&self.received_resource_version),
            if self.held { "held" } else { "not held" },
            self.connection,
        )?;
        if !self.view.ready {
            f.write_str(", initial list not complete")?;
        }
        if let Some(trouble) = &self.trouble {
            write!(f, ", reconnecting ({trouble})")?;
        }
        Ok(())
    }
}
