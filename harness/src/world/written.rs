//! What was written into a world, as it is in etcd, and the writing of it into another.

use std::sync::Arc;

use bytes::Bytes;

use super::history::Record;
use super::key::{Resource, object_key};
use super::owner::mark;
use super::wire::{Compare, Operation, Txn};
use super::{WorldError, Worlds};

/// One change of one object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) directory: String,
    pub(crate) name: String,
    /// `None`: deleted.
    pub(crate) value: Option<Bytes>,
}

/// A change that was made, and what is known of its object.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) revision: i64,
    /// `None` for a deletion: its value, which says so, is gone.
    pub(crate) object: Option<Object>,
    pub(crate) change: Change,
}

#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) resource: Resource,
    pub(crate) uid: String,
}

impl Written {
    /// That of the object; `None` for a deletion.
    pub(crate) fn uid(&self) -> Option<&str> {
        Some(&*self.object.as_ref()?.uid)
    }
}

impl Worlds {
    /// etcd's present revision: all that was acknowledged before this call is in it.
    pub(crate) async fn revision(&self) -> Result<i64, WorldError> {
        self.shared.etcd.revision().await
    }

    /// The changes of a world after one revision and up to another, but for Events; `None` if one of them is such as no
    /// other world may hold.
    pub(crate) async fn written(
        &self,
        namespace: &str,
        after: i64,
        until: i64,
    ) -> Result<Option<Vec<Written>>, WorldError> {
        let records = self.records(namespace, after, until).await?;
        Ok(records.iter().map(|record| record.written()).collect())
    }

    /// How many changes, but for Events, were made in a world after one revision and up to now.
    pub(crate) async fn changes_after(
        &self,
        namespace: &str,
        after: i64,
    ) -> Result<usize, WorldError> {
        let now = self.revision().await?;
        Ok(self.records(namespace, after, now).await?.len())
    }

    async fn records(
        &self,
        namespace: &str,
        after: i64,
        until: i64,
    ) -> Result<Vec<Arc<Record>>, WorldError> {
        self.shared.tap.reach(&self.shared.etcd, until).await?;
        let mut records = self.shared.tap.history().of(namespace, until)?;
        records.retain(|record| record.revision > after);
        Ok(records)
    }

    /// Makes a change in a fork, and returns its revision. `None` if the fork is no longer there.
    pub(crate) async fn write(
        &self,
        namespace: &str,
        change: Change,
    ) -> Result<Option<i64>, WorldError> {
        let (mark, _) = mark(namespace, self.shared.owner.id());
        let key = object_key(&change.directory, namespace, &change.name);
        let operation = match change.value {
            Some(value) => Operation::put(key, value),
            None => Operation::delete(key),
        };
        let txn = Txn { compare: vec![Compare::present(&mark)], success: vec![operation] };
        let done = self.shared.etcd.txn(&format!("write into {namespace}"), &txn).await?;
        Ok(done.succeeded.then_some(done.header.revision))
    }
}

impl Record {
    fn written(&self) -> Option<Written> {
        let object = match self.facts() {
            None => None,
            Some(Ok(facts)) if facts.refusal.is_none() => {
                let resource = Resource::of(&self.directory, &facts.api_version);
                Some(Object { resource, uid: facts.uid.clone() })
            }
            Some(_) => return None,
        };
        let change = Change {
            directory: self.directory.to_string(),
            name: self.name.clone(),
            value: self.value.clone(),
        };
        Some(Written { revision: self.revision, object, change })
    }
}
