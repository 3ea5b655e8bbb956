//! What goes to etcd and comes back: the messages of its gRPC services, with the fields that are used here.
//!
//! Source: etcd, `api/etcdserverpb/rpc.proto` and `api/mvccpb/kv.proto`; unknown fields are skipped.

use bytes::Bytes;
use prost::Message;

/// The first key after all that begin with `prefix`.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(string, tag = "2")]
    pub(super) version: String,
    #[prost(int64, tag = "3")]
    pub(super) size: i64,
    #[prost(int64, tag = "9")]
    pub(super) size_in_use: i64,
    /// 0 before etcd 3.6.
    #[prost(int64, tag = "12")]
    pub(super) quota: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Compact {
    #[prost(int64, tag = "1")]
    pub(super) revision: i64,
    /// Answer when the space is free, rather than when the revision is taken note of.
    #[prost(bool, tag = "2")]
    pub(super) physical: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Range {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    /// Empty: only the key itself.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) range_end: Vec<u8>,
    /// 0: the present.
    #[prost(int64, tag = "4")]
    pub(super) revision: i64,
    #[prost(bool, tag = "8")]
    pub(super) keys_only: bool,
    #[prost(bool, tag = "9")]
    pub(super) count_only: bool,
}

impl Range {
    /// The keys that begin with `prefix`.
    pub(super) fn keys(prefix: &str) -> Self {
        let key = prefix.as_bytes().to_vec();
        Self { range_end: end_of(&key), key, keys_only: true, ..Self::default() }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Read {
    #[prost(message, required, tag = "1")]
    pub(super) header: Header,
    #[prost(message, repeated, tag = "2")]
    pub(super) kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(int64, tag = "3")]
    pub(super) revision: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(int64, tag = "3")]
    pub(super) mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub(super) version: i64,
    /// A part of the message that it came in, all of which stays as long as this does.
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) value: Bytes,
}

/// At most 128 comparisons and as many operations, etcd's default limit.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Txn {
    #[prost(message, repeated, tag = "1")]
    pub(super) compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub(super) success: Vec<Operation>,
}

/// Of a key's version, which is 0 for a key that is not there.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Compare {
    #[prost(enumeration = "Comparison", tag = "1")]
    result: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    /// Always written: without it etcd finds everything equal.
    #[prost(int64, optional, tag = "4")]
    version: Option<i64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, prost::Enumeration)]
#[repr(i32)]
enum Comparison {
    Equal = 0,
    Greater = 1,
}

impl Compare {
    /// There is no such key.
    pub(super) fn absent(key: &str) -> Self {
        Self::version_zero(Comparison::Equal, key)
    }

    /// There is such a key.
    pub(super) fn present(key: &str) -> Self {
        Self::version_zero(Comparison::Greater, key)
    }

    fn version_zero(result: Comparison, key: &str) -> Self {
        Self { result: result.into(), key: key.as_bytes().to_vec(), version: Some(0) }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Operation {
    #[prost(oneof = "Request", tags = "1, 2, 3")]
    request: Option<Request>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Request {
    #[prost(message, tag = "1")]
    Range(Range),
    #[prost(message, tag = "2")]
    Put(Put),
    #[prost(message, tag = "3")]
    DeleteRange(DeleteRange),
}

#[derive(Clone, PartialEq, Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
    #[prost(int64, tag = "3")]
    lease: i64,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteRange {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
}

impl From<Request> for Operation {
    fn from(request: Request) -> Self {
        Self { request: Some(request) }
    }
}

impl Operation {
    pub(super) fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Request::Put(Put { key: key.into(), value: value.into(), lease: 0 }).into()
    }

    /// A key without a value that goes with the lease.
    pub(super) fn put_with_lease(key: impl Into<Vec<u8>>, lease: i64) -> Self {
        Request::Put(Put { key: key.into(), value: Vec::new(), lease }).into()
    }

    pub(super) fn delete(key: impl Into<Vec<u8>>) -> Self {
        Request::DeleteRange(DeleteRange { key: key.into(), range_end: Vec::new() }).into()
    }

    /// Deletes all keys that begin with `prefix`.
    pub(super) fn delete_all(prefix: &str) -> Self {
        let key = prefix.as_bytes().to_vec();
        Request::DeleteRange(DeleteRange { range_end: end_of(&key), key }).into()
    }

    pub(super) fn range(range: Range) -> Self {
        Request::Range(range).into()
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Done {
    #[prost(message, required, tag = "1")]
    pub(super) header: Header,
    /// Whether the comparisons held.
    #[prost(bool, tag = "2")]
    pub(super) succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    pub(super) responses: Vec<Answer>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Answer {
    #[prost(message, optional, tag = "1")]
    pub(super) range: Option<Read>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Grant {
    #[prost(int64, tag = "1")]
    pub(super) ttl: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LeaseId {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Lease {
    #[prost(int64, tag = "2")]
    pub(super) id: i64,
    #[prost(int64, tag = "3")]
    pub(super) ttl: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) create: Option<WatchCreate>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchCreate {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(super) start_revision: i64,
    #[prost(bool, tag = "8")]
    pub(super) fragment: bool,
}

/// One message of a watch.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Changes {
    #[prost(bool, tag = "4")]
    pub(super) canceled: bool,
    #[prost(int64, tag = "5")]
    pub(super) compact_revision: i64,
    #[prost(string, tag = "6")]
    pub(super) cancel_reason: String,
    /// The rest of the last revision's changes comes with the next message.
    #[prost(bool, tag = "7")]
    pub(super) fragment: bool,
    #[prost(message, repeated, tag = "11")]
    pub(super) events: Vec<Change>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Change {
    #[prost(enumeration = "ChangeKind", tag = "1")]
    pub(super) kind: i32,
    #[prost(message, required, tag = "2")]
    pub(super) kv: KeyValue,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum ChangeKind {
    Put = 0,
    Delete = 1,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_behind_it() {
        assert_eq!(end_of(b"/a/"), b"/a0");
        assert_eq!(end_of(b"a\xff"), b"b");
        assert_eq!(end_of(b"\xff"), b"\0");
    }

    #[test]
    fn a_comparison_with_zero_says_so() {
        let absent = Compare::absent("k").encode_to_vec();
        assert_eq!(absent, [0x1a, 1, b'k', 0x20, 0]);
        let present = Compare::present("k").encode_to_vec();
        assert_eq!(present, [0x08, 1, 0x1a, 1, b'k', 0x20, 0]);
    }
}
