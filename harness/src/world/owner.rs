//! Who owns which world, as etcd knows it: so that what a dead process left can be told from what
//! a live one is using.
//!
//! An owner is a key that hangs on a lease: it goes by itself when nobody renews it. A mark is a key
//! for each fork, with the owner's id as its value: written by the fork's first transaction, removed
//! by the erasure. All are outside of the API server's part of etcd.

use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::WorldError;
use super::etcd::Etcd;
use super::wire::{Compare, Operation, Range, Txn};

const OWNERS: &str = "/laggard/owners/";
const MARKS: &str = "/laggard/worlds/";

/// This process, or rather one set of worlds in it.
#[derive(Debug)]
pub(super) struct Owner {
    id: String,
    ttl: Duration,
    lease: AtomicI64,
}

impl Owner {
    /// Registers an owner who counts as dead when nothing was heard of it for `ttl`.
    pub(super) async fn register(etcd: &Etcd, ttl: Duration) -> Result<Self, WorldError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let owner = Self { id, ttl, lease: 0.into() };
        owner.renew(etcd).await?;
        Ok(owner)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// How often it should be renewed.
    pub(super) fn interval(&self) -> Duration {
        self.ttl / 4
    }

    /// Tells etcd that the owner lives.
    pub(super) async fn renew(&self, etcd: &Etcd) -> Result<(), WorldError> {
        let lease = self.lease();
        if lease != 0 {
            if etcd.keep_alive(lease).await? {
                return Ok(());
            }
            tracing::warn!(owner = %self.id, "was taken for dead, having said nothing for too long");
        }
        let lease = etcd.grant(self.ttl).await?;
        let put = Operation::put_with_lease(format!("{OWNERS}{}", self.id), lease);
        let txn = Txn { success: vec![put], ..Txn::default() };
        etcd.txn("register as an owner of worlds", &txn).await?;
        self.lease.store(lease, Relaxed);
        Ok(())
    }

    /// From now on its worlds belong to nobody.
    pub(super) async fn leave(&self, etcd: &Etcd) -> Result<(), WorldError> {
        etcd.revoke(self.lease()).await
    }

    pub(super) fn lease(&self) -> i64 {
        self.lease.load(Relaxed)
    }
}

/// The key and value that say whose a world is.
pub(super) fn mark(namespace: &str, owner: &str) -> (String, Vec<u8>) {
    (format!("{MARKS}{namespace}"), owner.as_bytes().to_vec())
}

/// All marks whose owner is gone, and the revision at which that was so.
pub(super) async fn of_the_dead(etcd: &Etcd) -> Result<(Vec<String>, i64), WorldError> {
    let marks = Range { keys_only: false, ..Range::keys(MARKS) };
    let success = vec![Operation::range(Range::keys(OWNERS)), Operation::range(marks)];
    // Both at one revision: an owner registers before it marks.
    let done = etcd
        .txn("list worlds and their owners", &Txn { compare: Vec::<Compare>::new(), success })
        .await?;
    let mut answers = done.responses.into_iter().map(|it| it.range.map(|it| it.kvs));
    let owners = answers.next().flatten().unwrap_or_default();
    let marks = answers.next().flatten().unwrap_or_default();
    let alive = |owner: &[u8]| owners.iter().any(|it| it.key[OWNERS.len()..] == *owner);
    let dead = marks.into_iter().filter(|mark| !alive(&mark.value));
    let names = dead.map(|mark| String::from_utf8_lossy(&mark.key[MARKS.len()..]).into_owned());
    Ok((names.collect(), done.header.revision))
}
