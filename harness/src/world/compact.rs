//! Compaction: etcd forgets the past that nobody can ask about any more, or it would fill up.

use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;

use super::{WorldError, Worlds};

/// Some five hundred small worlds, forked and erased; tens of megabytes. etcd needs a fraction of a
/// second for so much, beside its other work.
const DUE_AFTER: i64 = 10_000;

/// How far compaction has come.
#[derive(Debug, Default)]
pub(super) struct Compactor {
    /// etcd's revision when it was last tried.
    tried_at: AtomicI64,
}

/// How much space etcd uses, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Usage {
    /// What its keys, old versions included, take up. It is brought up to date ten times a second.
    pub in_use: u64,
    /// The size of its file, which never shrinks; what is not in use is used again.
    pub allocated: u64,
    /// Beyond this size of its file it takes nothing more; `None` before etcd 3.6, which does not
    /// say.
    pub quota: Option<u64>,
}

impl Worlds {
    /// Makes etcd forget what nobody can ask about any more, and returns what it still needs.
    ///
    /// - Kept is all of the past since the oldest world began that still has a key, a fork or one
    ///   made through the API server: clients of it may watch from any revision of it.
    /// - A world that is no fork, and of which a moment was taken, does not count: it is a source,
    ///   and its past is kept as bytes. Whoever goes on working in a source may be told by the
    ///   server that an old revision is gone (410), as by any server.
    /// - Moments, and forks of them, are never affected.
    ///
    /// A server in production compacts every five minutes, and so does that of a plane, but for
    /// [exploring](crate::plane::PlaneBuilder::exploring) ones, which leave it to this. Dropping the future
    /// does not undo it.
    ///
    /// # Errors
    ///
    /// [`WorldError::Etcd`].
    pub async fn compact(&self) -> Result<Usage, WorldError> {
        let (etcd, tap) = (&self.shared.etcd, &self.shared.tap);
        let current = etcd.revision().await?;
        self.shared.compactor.tried_at.store(current, Relaxed);
        // A watch that is behind what is forgotten would miss it.
        tap.reach(etcd, current).await?;
        // Whatever begins from now on begins after `current`.
        let oldest = tap.history().oldest_needed();
        let upto = oldest.map_or(current, |first| current.min(first - 1));
        if upto > 0 {
            etcd.compact(upto).await?;
            tracing::debug!(revision = upto, current, "etcd was compacted");
        }
        self.usage().await
    }

    /// The same, if so much was written since the last time that it pays; returns whether it was
    /// done. To be called after each erasure: asks nobody if it is not due.
    ///
    /// # Errors
    ///
    /// As for [`compact`](Self::compact).
    pub async fn compact_if_due(&self) -> Result<bool, WorldError> {
        let seen = self.shared.tap.seen();
        let tried_at = &self.shared.compactor.tried_at;
        let before = tried_at.load(Relaxed);
        // Of several at once one does it.
        let due = seen - before >= DUE_AFTER
            && tried_at.compare_exchange(before, seen, Relaxed, Relaxed).is_ok();
        if due {
            self.compact().await?;
        }
        Ok(due)
    }

    /// How much space etcd uses.
    ///
    /// # Errors
    ///
    /// [`WorldError::Etcd`].
    pub async fn usage(&self) -> Result<Usage, WorldError> {
        let status = self.shared.etcd.status().await?;
        let bytes = |number: i64| u64::try_from(number).unwrap_or_default();
        let quota = bytes(status.quota);
        Ok(Usage {
            in_use: bytes(status.size_in_use),
            allocated: bytes(status.size),
            quota: (quota > 0).then_some(quota),
        })
    }
}
