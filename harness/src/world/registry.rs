//! All that an API server keeps in its etcd, at one revision, and the way back to it.
//!
//! The way back keeps the rule of forks: within one resource each change has a transaction, and so a revision, of its
//! own. A list or a watch that begins at any of them shows what a server could have shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::address::EtcdAddress;
use super::error::WorldError;
use super::etcd::Etcd;
use super::key::{self, REGISTRY};
use super::rounds::{self, Step};
use super::wire::{Compare, Operation, Range, Txn};

/// What the server's own controllers write back is gone after one more round; whoever writes on for so long has not been
/// stopped.
const ROUNDS: usize = 20;

/// An etcd that is being started has no event to offer.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// What the servers write about themselves, some of it at any time after they are ready, and what only tells people what
/// happened.
const LEFT_ALONE: [&str; 8] = [
    "/registry/events/",
    "/registry/masterleases/",
    "/registry/peerserverleases/",
    "/registry/leases/kube-system/",
    "/registry/servicecidrs/kubernetes",
    "/registry/services/specs/default/kubernetes",
    "/registry/services/endpoints/default/kubernetes",
    "/registry/endpointslices/default/kubernetes",
];

/// The address of the Service `kubernetes`, as protobuf has the `parentRef` of an IPAddress: its fields 2, 3 and 4, each
/// with its length (Kubernetes, `staging/src/k8s.io/api/networking/v1/generated.proto`).
const OF_THE_SERVER: &[u8] = b"\x12\x08services\x1a\x07default\x22\x0akubernetes";

const APISERVICES: &str = "/registry/apiregistration.k8s.io/apiservices/";

/// The label of an APIService that the server makes for the custom resources of a version, and removes with them, as JSON
/// has it. Those of built-in versions have `onstart`, and are made once. Source: Kubernetes, `kube-aggregator`,
/// `pkg/controllers/autoregister/autoregister_controller.go`.
const FOLLOWS_DEFINITIONS: &[u8] = b"\"kube-aggregator.kubernetes.io/automanaged\":\"true\"";

/// What other keys belong to: made before they are, and removed after them.
const HOLDERS: [&str; 2] = ["namespaces", "apiextensions.k8s.io/customresourcedefinitions"];

/// Keys with their values.
pub(crate) type Keys = BTreeMap<String, Vec<u8>>;

/// The keys of an API server at one revision.
#[derive(Clone)]
pub(crate) struct Registry {
    revision: i64,
    keys: Keys,
}

/// A key that was not as it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Difference {
    pub(crate) key: String,
    /// What it had: `None` if it was missing.
    pub(crate) had: Option<Vec<u8>>,
    /// What it has now: `None` if it is gone.
    pub(crate) has: Option<Vec<u8>>,
}

impl Registry {
    /// Reads all keys, at a revision or, without one, at the present.
    pub(crate) async fn read(
        address: &EtcdAddress,
        revision: Option<i64>,
    ) -> Result<Self, WorldError> {
        read(&Etcd::connect(address).await?, revision.unwrap_or_default()).await
    }

    /// The present revision.
    pub(crate) async fn present(address: &EtcdAddress) -> Result<i64, WorldError> {
        Etcd::connect(address).await?.revision().await
    }

    /// The revision that it was read at.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn into_keys(self) -> Keys {
        self.keys
    }

    /// The values of one resource.
    pub(crate) fn of(&self, directory: &str) -> impl Iterator<Item = &[u8]> {
        let keys = self.keys.iter().filter(move |(key, _)| directory_of(key) == directory);
        keys.map(|(_, value)| value.as_slice())
    }

    /// Deletes what has been made since, and puts back what was changed or deleted, until there is no difference. Tells
    /// all differences that there were, each key once, in the order of the keys.
    ///
    /// Dropping the future leaves a part of the way undone, and nothing half-written: it can be done again.
    pub(crate) async fn put_back(
        &self,
        address: &EtcdAddress,
    ) -> Result<Vec<Difference>, WorldError> {
        let etcd = Etcd::connect(address).await?;
        let mut all: BTreeMap<String, Difference> = BTreeMap::new();
        for round in 0.. {
            let present = read(&etcd, 0).await?;
            let differences = differences(&present.keys, &self.keys);
            if differences.is_empty() {
                break;
            }
            if round == ROUNDS {
                let left = differences.into_iter().map(|difference| difference.key).collect();
                return Err(WorldError::NotPutBack { rounds: ROUNDS, left });
            }
            for phase in phases(&differences) {
                for batch in batches(&phase) {
                    let success = batch.into_iter().map(operation).collect();
                    etcd.txn("put the plane back", &Txn { success, ..Txn::default() }).await?;
                }
            }
            for difference in differences {
                all.entry(difference.key.clone()).or_insert(difference);
            }
        }
        Ok(all.into_values().collect())
    }
}

/// Puts keys into an etcd that need not answer yet, in their order, which is for each resource that of its revisions. What
/// its server was quicker to make is left as it is. Has no limit of its own; dropping the future is harmless.
pub(crate) async fn seed(
    address: &EtcdAddress,
    keys: &[(String, Vec<u8>)],
) -> Result<(), WorldError> {
    let etcd = loop {
        match Etcd::connect(address).await {
            Ok(etcd) => break etcd,
            Err(error) => {
                tracing::trace!(%error, "etcd does not answer yet");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    };
    let steps = keys.iter().map(|(key, value)| Step {
        directory: directory_of(key),
        bytes: key.len() + value.len(),
        change: (key, value),
    });
    for batch in rounds::batches(steps) {
        let compare = batch.iter().map(|(key, _)| Compare::absent(key)).collect();
        let success = batch
            .iter()
            .map(|(key, value)| Operation::put(key.as_str(), value.as_slice()))
            .collect();
        let done = etcd.txn("put the template there", &Txn { compare, success }).await?;
        if !done.succeeded {
            tracing::debug!(?batch, "the server made some of these already");
        }
    }
    Ok(())
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The values have the secrets of the plane.
        let keys = self.keys.len();
        f.debug_struct("Registry").field("revision", &self.revision).field("keys", &keys).finish()
    }
}

async fn read(etcd: &Etcd, revision: i64) -> Result<Registry, WorldError> {
    let range = Range { keys_only: false, revision, ..Range::keys(REGISTRY) };
    let read = etcd.range("read all keys", &range).await?;
    let keys = read
        .kvs
        .into_iter()
        .filter_map(|it| Some((String::from_utf8(it.key.into()).ok()?, it.value.to_vec())))
        .filter(|(key, value)| !is_left_alone(key, value))
        .collect();
    let revision = if revision == 0 { read.header.revision } else { revision };
    Ok(Registry { revision, keys })
}

fn is_left_alone(key: &str, value: &[u8]) -> bool {
    let has = |part: &[u8]| value.windows(part.len()).any(|it| it == part);
    LEFT_ALONE.iter().any(|prefix| key.starts_with(prefix))
        || (key.starts_with("/registry/ipaddresses/") && has(OF_THE_SERVER))
        || (key.starts_with(APISERVICES) && has(FOLLOWS_DEFINITIONS))
}

fn differences(present: &Keys, wanted: &Keys) -> Vec<Difference> {
    let keys: BTreeSet<&String> = present.keys().chain(wanted.keys()).collect();
    keys.into_iter()
        .filter(|key| present.get(*key) != wanted.get(*key))
        .map(|key| Difference {
            key: key.clone(),
            had: present.get(key).cloned(),
            has: wanted.get(key).cloned(),
        })
        .collect()
}

/// The operations in an order in which nothing is without what it belongs to.
fn phases(differences: &[Difference]) -> [Vec<&Difference>; 4] {
    let is_holder = |it: &&Difference| HOLDERS.contains(&directory_of(&it.key));
    let part = |holders: bool, gone: bool| {
        let of = differences.iter().filter(|it| is_holder(it) == holders);
        of.filter(|it| it.has.is_none() == gone).collect()
    };
    [part(true, false), part(false, true), part(false, false), part(true, true)]
}

fn batches<'a>(phase: &[&'a Difference]) -> Vec<Vec<&'a Difference>> {
    rounds::batches(phase.iter().map(|difference| Step {
        directory: directory_of(&difference.key),
        bytes: difference.key.len() + difference.has.as_ref().map_or(0, Vec::len),
        change: *difference,
    }))
}

fn operation(difference: &Difference) -> Operation {
    let key = difference.key.as_str();
    match &difference.has {
        Some(value) => Operation::put(key, value.as_slice()),
        None => Operation::delete(key),
    }
}

/// What the keys of the same resource have in common: `pods`, `example.com/widgets`.
pub(crate) fn directory_of(key: &str) -> &str {
    let path = key.strip_prefix(REGISTRY).unwrap_or(key);
    key::directory_of(path).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(of: &[(&str, &str)]) -> Keys {
        of.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn what_differs_is_deleted_put_back_or_left() {
        let wanted = keys(&[("/registry/a/1", "x"), ("/registry/a/2", "x"), ("/registry/a/3", "")]);
        let present =
            keys(&[("/registry/a/0", "x"), ("/registry/a/2", "y"), ("/registry/a/3", "")]);
        let found = differences(&present, &wanted);
        let told: Vec<_> = found.iter().map(|it| (&it.key[12..], it.has.is_some())).collect();
        assert_eq!(told, [("0", false), ("1", true), ("2", true)]);
    }

    #[test]
    fn a_resource_has_one_change_in_a_transaction_and_holders_stand_around_the_rest() {
        let crds = "/registry/apiextensions.k8s.io/customresourcedefinitions";
        let gone = |key: &str| (key.to_owned(), b"x".to_vec());
        let made: Keys = [
            gone(&format!("{crds}/widgets.example.com")),
            gone("/registry/example.com/widgets/n/a"),
            gone("/registry/example.com/widgets/n/b"),
            gone("/registry/pods/n/a"),
            gone("/registry/namespaces/n"),
        ]
        .into();
        let forth = differences(&made, &Keys::default());
        let back = differences(&Keys::default(), &made);
        let sizes = |differences: &[Difference]| {
            phases(differences)
                .map(|phase| batches(&phase).iter().map(Vec::len).collect::<Vec<_>>())
        };
        assert_eq!(sizes(&forth), [vec![], vec![2, 1], vec![], vec![2]]);
        assert_eq!(sizes(&back), [vec![2], vec![], vec![2, 1], vec![]]);
    }

    #[test]
    fn the_directory_is_that_of_the_resource() {
        for (key, directory) in [
            ("/registry/namespaces/n", "namespaces"),
            ("/registry/pods/n/x", "pods"),
            ("/registry/services/specs/n/x", "services/specs"),
            ("/registry/example.com/widgets/n/x", "example.com/widgets"),
            ("/registry/example.com/gadgets/x", "example.com/gadgets"),
        ] {
            assert_eq!(directory_of(key), directory);
        }
    }
}
