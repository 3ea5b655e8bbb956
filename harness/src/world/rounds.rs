//! Changes of many resources as transactions of etcd: at most one of each resource in one, in their order.

use std::collections::{BTreeMap, VecDeque};

/// etcd's default `--max-txn-ops`.
const MAX_OPERATIONS: usize = 128;

/// Below etcd's default `--max-request-bytes` of 1.5 MiB; an object that is larger by itself goes alone.
const MAX_BYTES: usize = 1024 * 1024;

/// A change, and what it is to be sorted by.
pub(super) struct Step<'a, T> {
    pub(super) directory: &'a str,
    /// Of its key and value.
    pub(super) bytes: usize,
    pub(super) change: T,
}

/// What goes into each transaction: as many as etcd's limits ask for, with a place to spare in each.
pub(super) fn batches<'a, T>(steps: impl IntoIterator<Item = Step<'a, T>>) -> Vec<Vec<T>> {
    let mut queues: BTreeMap<&str, VecDeque<Step<'a, T>>> = BTreeMap::new();
    for step in steps {
        queues.entry(step.directory).or_default().push_back(step);
    }
    let mut batches = Vec::new();
    while !queues.is_empty() {
        let (mut batch, mut size) = (Vec::new(), 0);
        for step in queues.values_mut().filter_map(VecDeque::pop_front) {
            let full = batch.len() + 1 >= MAX_OPERATIONS
                || (!batch.is_empty() && size + step.bytes > MAX_BYTES);
            if full {
                batches.push(std::mem::take(&mut batch));
                size = 0;
            }
            size += step.bytes;
            batch.push(step.change);
        }
        batches.push(batch);
        queues.retain(|_, queue| !queue.is_empty());
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_value_goes_alone() {
        let step = |directory, bytes| Step { directory, bytes, change: directory };
        let made = batches([step("a", MAX_BYTES), step("b", MAX_BYTES), step("c", 1)]);
        assert_eq!(made, [["a"], ["b"], ["c"]]);
    }
}
