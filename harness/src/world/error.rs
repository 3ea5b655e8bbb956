//! What can go wrong with worlds, and what a fork refuses.

use std::fmt::{self, Display};
use std::time::Duration;

use super::Resource;

/// A moment, a fork or an erasure failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorldError {
    /// etcd could not be asked, or would not answer.
    #[error("failed to {attempt} at the etcd {address}")]
    Etcd {
        /// What was asked for.
        attempt: String,
        /// Which etcd.
        address: String,
        /// Why it failed.
        source: Box<EtcdError>,
    },
    /// The name is not that of a world, so it could not be replaced by another of the same length.
    #[error(
        "{namespace:?} is not the name of a world; take one from `Worlds::name`: `lw-` and eight \
         of a-z and 0-9"
    )]
    Name {
        /// The namespace that was named.
        namespace: String,
    },
    /// There is no such namespace, or there was none at that revision.
    #[error(
        "there is no namespace {namespace} at revision {revision}; a moment is taken while its \
         world exists"
    )]
    NoSuchWorld {
        /// The namespace that was named.
        namespace: String,
        /// The revision that was asked for.
        revision: i64,
    },
    /// The revision lies in the future.
    #[error("revision {revision} is not reached yet: etcd is at {current}")]
    Future {
        /// The revision that was asked for.
        revision: i64,
        /// etcd's own.
        current: i64,
    },
    /// etcd has forgotten a part of the namespace's history.
    #[error(
        "the history of {namespace} begins before revision {first}, the first one that etcd still \
         has; take moments before etcd is compacted, or make the world anew"
    )]
    Compacted {
        /// The namespace that was named.
        namespace: String,
        /// The first revision that is known.
        first: i64,
    },
    /// The world holds something that must not be copied; make it through the API server instead.
    #[error(
        "cannot fork {namespace}: {}; make this world through the API server",
        listed(refusals)
    )]
    Refused {
        /// The namespace of the world.
        namespace: String,
        /// What stands in the way, each object once.
        refusals: Vec<Refusal>,
    },
    /// The name of a fork was taken, or the fork was erased by somebody else meanwhile.
    #[error(
        "the fork {namespace} was disturbed: a namespace of that name was made by hand, or this \
         process said nothing for so long that it was taken for dead; fork again"
    )]
    Taken {
        /// The namespace of the fork.
        namespace: String,
    },
    /// No name of a world is left, or etcd says so.
    #[error("found no name of a world that is not taken after {tries} tries")]
    NoName {
        /// How many were tried.
        tries: usize,
    },
    /// Writers did not stop, so the world could not be emptied.
    #[error(
        "failed to empty {namespace} in {rounds} rounds, since somebody goes on writing to it: \
         stop the world's clients first; still there: {}", left.join(", ")
    )]
    NotEmptied {
        /// The namespace of the world.
        namespace: String,
        /// How often it was swept.
        rounds: usize,
        /// Keys that were there at the last look.
        left: Vec<String>,
    },
    /// Writers did not stop, so the keys of the server could not be put back.
    #[error(
        "failed to put all keys back in {rounds} rounds, since somebody goes on writing: stop the clients of the plane \
         first; still different: {}", left.join(", ")
    )]
    NotPutBack {
        /// How often the keys were compared.
        rounds: usize,
        /// Keys that were different at the last look.
        left: Vec<String>,
    },
    /// The background did not come to rest.
    #[error(
        "{tasks} erasures are still under way after {limit:?}; does somebody go on writing to \
         worlds that were erased?"
    )]
    Unsettled {
        /// How long was waited.
        limit: Duration,
        /// How many go on.
        tasks: usize,
    },
    /// The API server did not show the fork in time.
    #[error("the API server does not show {namespace} after {limit:?}: waited for {awaited}{last}")]
    NotReady {
        /// The namespace of the world.
        namespace: String,
        /// What was waited for.
        awaited: String,
        /// How long.
        limit: Duration,
        /// What was seen last, if anything: `; …`.
        last: String,
    },
    /// The API server refused what readiness asks it.
    #[error("failed to ask the API server whether it shows {namespace}: {attempt}")]
    Asking {
        /// The namespace of the world.
        namespace: String,
        /// The request.
        attempt: String,
        /// The server's answer.
        source: Box<kube::Error>,
    },
    /// The runtime that these worlds were made in has ended.
    #[error("the runtime of these worlds has ended; use them in the runtime they were made in")]
    RuntimeEnded,
}

/// Why etcd did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdError {
    /// No connection came about.
    #[error("cannot connect; does etcd run?")]
    Connect(#[source] std::io::Error),
    /// The connection broke, or the other end does not speak HTTP/2.
    #[error("the connection broke; is it an etcd?")]
    Connection(#[source] h2::Error),
    /// There was no answer.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Something else answers there.
    #[error("it answers with the HTTP status {status}, as no etcd does")]
    NoEtcd {
        /// The status of the answer.
        status: u16,
    },
    /// etcd refused the request.
    #[error("it answered with the gRPC status {status}: {message}")]
    Refused {
        /// The status of the answer, as gRPC numbers them.
        status: u32,
        /// What it says.
        message: String,
    },
    /// etcd is full and takes nothing more.
    #[error(
        "it is full: its quota is used up ({message}); compact it while it is used \
         (`Worlds::compact_if_due` after each erasure), or give it a larger \
         `--quota-backend-bytes`"
    )]
    NoSpace {
        /// What it says.
        message: String,
    },
    /// The answer was not understood.
    #[error("cannot read the answer")]
    Answer(#[source] prost::DecodeError),
    /// The answer says that all went well, and nothing else.
    #[error("the answer has no message")]
    NoMessage,
    /// etcd ended a watch.
    #[error("the watch ended: {0}")]
    WatchEnded(String),
}

/// An object that a fork must not copy, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Refusal {
    /// The object's resource.
    pub resource: Resource,
    /// The object's name.
    pub name: String,
    /// The first revision at which it was like that.
    pub revision: i64,
    /// What is wrong with it.
    pub reason: RefusalReason,
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, name, revision, reason } = self;
        write!(f, "{resource} {name} (revision {revision}) {reason}")
    }
}

/// Why an object must not be copied.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RefusalReason {
    /// A Service with an address, which is allocated for the whole cluster, node ports included.
    ClusterIp(String),
    /// A claim that is bound to a volume, of which there is one.
    BoundVolume(String),
    /// A Secret with a service account's token, which is signed for a name and a UID.
    ServiceAccountToken,
    /// A quota, whose sums the API server and its controller keep beside the object.
    ResourceQuota,
    /// A value in an encoding in which names cannot be replaced.
    Encoding(String),
}

impl Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterIp(address) => {
                write!(f, "has the address {address}, and addresses are the whole cluster's")
            }
            Self::BoundVolume(volume) => {
                write!(f, "is bound to the volume {volume}, which can have one claim")
            }
            Self::ServiceAccountToken => {
                f.write_str("holds a token that is signed for this namespace and UID")
            }
            Self::ResourceQuota => f.write_str("counts what the API server admits"),
            Self::Encoding(problem) => {
                write!(f, "is stored in a form that is not known: {problem}")
            }
        }
    }
}

fn listed(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
