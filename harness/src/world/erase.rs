//! Erasing worlds, and sweeping away what dead owners and late writers left.

use std::collections::BTreeSet;

use super::key::{directory_prefix, is_world, namespace_key};
use super::owner::{mark, of_the_dead};
use super::wire::{Operation, Txn};
use super::{Shared, WorldError, sentinel};

/// A request that was on its way when its world was erased writes once; hardly any world needs a
/// third round. Whoever writes on for so long has not been stopped.
const ROUNDS: usize = 50;

/// etcd's default `--max-txn-ops`, but for the namespace, the mark and the sentinel.
const MAX_DIRECTORIES: usize = 124;

/// Deletes everything of a namespace, until a look finds nothing.
///
/// Each round deletes the kinds that have keys at that time; the look is at etcd's revision after
/// it. Should something be written later still, the tap reports it and it is erased again.
pub(super) async fn erase(shared: &Shared, namespace: &str) -> Result<(), WorldError> {
    shared.tap.history().mark_erased(namespace);
    let attempt = format!("erase {namespace}");
    for round in 1..=ROUNDS {
        let directories = shared.tap.history().directories(namespace);
        let mut success = vec![
            Operation::delete(namespace_key(namespace)),
            // In the same transaction as the objects: what has no mark has been erased.
            Operation::delete(mark(namespace, shared.owner.id()).0),
        ];
        success.extend(sentinel::delete(namespace));
        let prefixes = directories.iter().map(|directory| directory_prefix(directory, namespace));
        success.extend(prefixes.take(MAX_DIRECTORIES).map(|it| Operation::delete_all(&it)));
        let done = shared.etcd.txn(&attempt, &Txn { success, ..Txn::default() }).await?;
        shared.tap.reach(&shared.etcd, done.header.revision).await?;
        if shared.tap.history().directories(namespace).is_empty() {
            tracing::debug!(namespace, round, "erased");
            return Ok(());
        }
    }
    let left = shared.tap.history().keys(namespace);
    Err(WorldError::NotEmptied { namespace: namespace.to_owned(), rounds: ROUNDS, left })
}

/// Erases the worlds of dead owners and, of worlds that were erased, what came late.
pub(super) async fn sweep(shared: &Shared) -> Result<Vec<String>, WorldError> {
    let (dead, revision) = of_the_dead(&shared.etcd).await?;
    shared.tap.reach(&shared.etcd, revision).await?;
    // The first transaction of a fork makes its namespace, and an erasure is one transaction; so
    // objects without a namespace are never a part of either.
    let mut found: BTreeSet<_> = shared.tap.history().orphans().into_iter().collect();
    found.extend(dead.into_iter().filter(|namespace| is_world(namespace)));
    let mut swept = Vec::new();
    for namespace in found {
        erase(shared, &namespace).await?;
        tracing::info!(namespace, "erased what a dead owner or a late writer had left");
        swept.push(namespace);
    }
    Ok(swept)
}
