//! Forks: a moment written again, under other names, in rounds.
//!
//! Two simpler forms give views that no cluster can show. All objects in one transaction share a
//! revision, and a list or a watch that begins at it shows some of them and not others. Each
//! object's last version alone makes a history that is not in the order in which things happened.
//! So every change is written again, those of one resource in their order and each in a
//! transaction of its own; one transaction holds at most one change of each resource.

use std::collections::BTreeMap;

use prost::Message as _;

use super::key::{NAMESPACES, ROLE_BINDINGS, ROLES, Resource};
use super::moment::{Change, Moment, ObjectChange};
use super::owner::mark;
use super::renames::{Renames, fresh_uid};
use super::rounds::{self, Step};
use super::wire::{Compare, Operation, Txn};
use super::{Shared, Unclaimed, WorldError, sentinel};

/// One namespace with all its objects, forked from a [`Moment`].
///
/// Dropping it changes nothing in etcd: [`Worlds::erase`](super::Worlds::erase) removes it.
#[derive(Clone, Debug)]
pub struct World {
    namespace: String,
    source: Moment,
    renames: Renames,
    /// The revision of each of the source's changes.
    revisions: Vec<i64>,
}

impl World {
    /// The name of its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The moment that it was forked from.
    #[must_use]
    pub fn source(&self) -> &Moment {
        &self.source
    }

    /// What is called otherwise here than in the source.
    #[must_use]
    pub fn renames(&self) -> &Renames {
        &self.renames
    }

    /// The revision of the fork's first transaction: before it, there is nothing of this world.
    #[must_use]
    pub fn first_revision(&self) -> i64 {
        self.revisions.iter().min().copied().unwrap_or_default()
    }

    /// The revision of the fork's last transaction: from it on, the world is whole.
    #[must_use]
    pub fn last_revision(&self) -> i64 {
        self.revisions.iter().max().copied().unwrap_or_default()
    }

    /// The last revision of each resource: a watch cache that has it has all of that resource.
    #[must_use]
    pub fn last_revisions(&self) -> BTreeMap<&Resource, i64> {
        // Ascending within each resource, so the last one stays.
        self.changes().map(|change| (change.resource, change.revision)).collect()
    }

    /// Every version and deletion of every object, with its name and revision here, in the order of
    /// the source's revisions, which within one resource is that of the fork's.
    ///
    /// Changes of different resources may be in another order here, and share a revision.
    pub fn changes(&self) -> impl Iterator<Item = ObjectChange<'_>> {
        self.source.changes().zip(&self.revisions).map(|(change, &revision)| ObjectChange {
            name: self.renames.text(&change.name),
            revision,
            ..change
        })
    }

    /// What became of a change of the source: the revision here of the change of that resource that
    /// has this revision there. `None` if there is none.
    ///
    /// So a resourceVersion of an object in the source becomes that of the same version here.
    #[must_use]
    pub fn revision(&self, resource: &Resource, source: i64) -> Option<i64> {
        let changes = self.source.changes().zip(&self.revisions);
        let found = changes.filter(|(it, _)| it.revision == source && it.resource == resource);
        // Several only where they were deleted together; the last one completes it.
        found.last().map(|(_, &revision)| revision)
    }
}

/// Writes a moment under a name. `None` if `given_up` said so between two transactions. From the
/// first one on, `unclaimed` is armed.
pub(super) async fn replay(
    shared: &Shared,
    moment: &Moment,
    namespace: &str,
    unclaimed: &mut Unclaimed,
    given_up: impl Fn() -> bool,
) -> Result<Option<World>, WorldError> {
    let renames = Renames::new(moment.namespace(), namespace, moment.uids(), fresh_uid);
    let mut revisions = vec![0; moment.raw().len()];
    shared.tap.history().mark_fork(namespace);
    let attempt = format!("fork {} into {namespace}", moment.namespace());
    let mut first = true;
    for batch in batches(moment, &renames, namespace) {
        if given_up() {
            return Ok(None);
        }
        let (changes, success): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let mut txn = Txn { success, ..Txn::default() };
        let (mark_key, mark_value) = mark(namespace, shared.owner.id());
        if first {
            unclaimed.namespace = Some(namespace.to_owned());
            // The mark is there before anything else, and no name is used twice.
            txn.success.push(Operation::put(mark_key.as_str(), mark_value));
            let namespace_key = super::key::namespace_key(namespace);
            txn.compare = vec![Compare::absent(&mark_key), Compare::absent(&namespace_key)];
        } else {
            // Somebody who took this process for dead may be erasing it.
            txn.compare = vec![Compare::present(&mark_key)];
        }
        let done = shared.etcd.txn(&attempt, &txn).await?;
        if !done.succeeded {
            if first {
                // Somebody else's.
                unclaimed.namespace = None;
            }
            return Err(WorldError::Taken { namespace: namespace.to_owned() });
        }
        first = false;
        for index in changes.into_iter().flatten() {
            revisions[index] = done.header.revision;
        }
    }
    Ok(Some(World { namespace: namespace.to_owned(), source: moment.clone(), renames, revisions }))
}

/// Whether the authorizer has anything to see of a fork.
pub(super) fn has_rbac(moment: &Moment) -> bool {
    moment.raw().iter().any(|it| matches!(&*it.record.directory, ROLES | ROLE_BINDINGS))
}

/// What goes into each transaction, each with the index of its change, which the sentinel has not. The place to spare is
/// for the mark.
///
/// The namespace and RBAC come first, so that the server has seen them when the rest comes.
fn batches(
    moment: &Moment,
    renames: &Renames,
    namespace: &str,
) -> Vec<Vec<(Option<usize>, Operation)>> {
    let early = |directory: &str| matches!(directory, NAMESPACES | ROLES | ROLE_BINDINGS);
    let phase = |is_early: bool| {
        let changes = moment.raw().iter().enumerate();
        let changes = changes.filter(move |(_, it)| early(&it.record.directory) == is_early);
        changes.map(|(index, it)| step(&it.record.directory, Some(index), operation(it, renames)))
    };
    let sentinel = has_rbac(moment).then(|| sentinel::put(namespace)).into_iter().flatten();
    let sentinel = sentinel.map(|(directory, operation)| step(directory, None, operation));
    [rounds::batches(phase(true).chain(sentinel)), rounds::batches(phase(false))].concat()
}

fn step(
    directory: &str,
    index: Option<usize>,
    operation: Operation,
) -> Step<'_, (Option<usize>, Operation)> {
    Step { directory, bytes: operation.encoded_len(), change: (index, operation) }
}

fn operation(change: &Change, renames: &Renames) -> Operation {
    let mut key = change.key.clone().into_bytes();
    renames.at(&mut key, &change.key_places);
    match value(change, renames) {
        Some(value) => Operation::put(key, value),
        None => Operation::delete(key),
    }
}

fn value(change: &Change, renames: &Renames) -> Option<Vec<u8>> {
    let mut value = change.record.value.as_ref()?.to_vec();
    renames.at(&mut value, &change.value_places);
    Some(value)
}
