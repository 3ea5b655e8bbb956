//! What goes to etcd's JSON gateway and comes back, as JSON.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes, as the gateway writes them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Base64(pub(super) Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map(Self).map_err(serde::de::Error::custom)
    }
}

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

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Empty {}

#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) version: String,
    #[serde(rename = "dbSize", default, deserialize_with = "number")]
    pub(super) size: i64,
    #[serde(rename = "dbSizeInUse", default, deserialize_with = "number")]
    pub(super) size_in_use: i64,
    /// 0 before etcd 3.6.
    #[serde(rename = "dbSizeQuota", default, deserialize_with = "number")]
    pub(super) quota: i64,
}

#[derive(Debug, Serialize)]
pub(super) struct Compact {
    pub(super) revision: i64,
    /// Answer when the space is free, rather than when the revision is taken note of.
    pub(super) physical: bool,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Range {
    pub(super) key: Base64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range_end: Option<Base64>,
    /// 0: the present.
    pub(super) revision: i64,
    pub(super) keys_only: bool,
    pub(super) count_only: bool,
}

impl Range {
    /// The keys that begin with `prefix`.
    pub(super) fn keys(prefix: &str) -> Self {
        Self {
            key: Base64(prefix.as_bytes().to_vec()),
            range_end: Some(Base64(end_of(prefix.as_bytes()))),
            keys_only: true,
            ..Self::default()
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Read {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Header {
    #[serde(default, deserialize_with = "number")]
    pub(super) revision: i64,
}

#[derive(Debug, Deserialize)]
pub(super) struct KeyValue {
    pub(super) key: Base64,
    #[serde(default)]
    pub(super) value: Base64,
    #[serde(default, deserialize_with = "number")]
    pub(super) mod_revision: i64,
}

/// At most 128 comparisons and as many operations, etcd's default limit.
#[derive(Debug, Default, Serialize)]
pub(super) struct Txn {
    pub(super) compare: Vec<Compare>,
    pub(super) success: Vec<Operation>,
}

#[derive(Debug, Serialize)]
pub(super) struct Compare {
    key: Base64,
    target: &'static str,
    result: &'static str,
    version: i64,
}

impl Compare {
    /// There is no such key.
    pub(super) fn absent(key: &str) -> Self {
        let key = Base64(key.as_bytes().to_vec());
        Self { key, target: "VERSION", result: "EQUAL", version: 0 }
    }

    /// There is such a key.
    pub(super) fn present(key: &str) -> Self {
        Self { result: "GREATER", ..Self::absent(key) }
    }
}

#[derive(Debug, Serialize)]
pub(super) enum Operation {
    #[serde(rename = "request_put")]
    Put { key: Base64, value: Base64, lease: i64 },
    #[serde(rename = "request_delete_range")]
    DeleteRange { key: Base64, range_end: Base64 },
    #[serde(rename = "request_range")]
    Range(Range),
}

impl Operation {
    pub(super) fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: Base64(key.into()), value: Base64(value.into()), lease: 0 }
    }

    /// A key without a value that goes with the lease.
    pub(super) fn put_with_lease(key: impl Into<Vec<u8>>, lease: i64) -> Self {
        Self::Put { key: Base64(key.into()), value: Base64::default(), lease }
    }

    pub(super) fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self::DeleteRange { key: Base64(key.into()), range_end: Base64::default() }
    }

    /// Deletes all keys that begin with `prefix`.
    pub(super) fn delete_all(prefix: &str) -> Self {
        Self::DeleteRange {
            key: Base64(prefix.as_bytes().to_vec()),
            range_end: Base64(end_of(prefix.as_bytes())),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Done {
    #[serde(default)]
    pub(super) header: Header,
    /// Whether the comparisons held.
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    pub(super) responses: Vec<Answer>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) response_range: Option<Read>,
}

#[derive(Debug, Serialize)]
pub(super) struct Grant {
    #[serde(rename = "TTL")]
    pub(super) ttl: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct LeaseId {
    #[serde(rename = "ID")]
    pub(super) id: i64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Lease {
    #[serde(rename = "ID", default, deserialize_with = "number")]
    pub(super) id: i64,
    #[serde(rename = "TTL", default, deserialize_with = "number")]
    pub(super) ttl: i64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Streamed<T> {
    pub(super) result: T,
}

#[derive(Debug, Serialize)]
pub(super) struct WatchRequest {
    pub(super) create_request: WatchCreate,
}

#[derive(Debug, Serialize)]
pub(super) struct WatchCreate {
    pub(super) key: Base64,
    pub(super) range_end: Base64,
    pub(super) start_revision: i64,
    pub(super) fragment: bool,
}

/// One message of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Changes<'a> {
    #[serde(borrow)]
    pub(super) result: Option<ChangesResult<'a>>,
    /// Instead of a result, when the gateway ends the watch.
    pub(super) error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ChangesResult<'a> {
    #[serde(default)]
    pub(super) canceled: bool,
    #[serde(borrow, default)]
    pub(super) cancel_reason: Cow<'a, str>,
    #[serde(default, deserialize_with = "number")]
    pub(super) compact_revision: i64,
    /// The rest of the last revision's changes comes with the next message.
    #[serde(default)]
    pub(super) fragment: bool,
    #[serde(borrow, default)]
    pub(super) events: Vec<Change<'a>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Change<'a> {
    /// Absent for a put.
    #[serde(rename = "type", default)]
    pub(super) kind: ChangeKind,
    #[serde(borrow)]
    pub(super) kv: ChangedKey<'a>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum ChangeKind {
    #[default]
    Put,
    Delete,
}

/// The value stays as it is on the wire, since most of them interest nobody.
#[derive(Debug, Deserialize)]
pub(super) struct ChangedKey<'a> {
    pub(super) key: Base64,
    #[serde(borrow, default)]
    value: Cow<'a, str>,
    #[serde(default, deserialize_with = "number")]
    pub(super) mod_revision: i64,
    #[serde(default, deserialize_with = "number")]
    pub(super) version: i64,
}

impl ChangedKey<'_> {
    pub(super) fn value(&self) -> Result<Vec<u8>, base64::DecodeError> {
        STANDARD.decode(self.value.as_bytes())
    }
}

/// The gateway writes 64-bit numbers as strings, as JSON's own are not exact.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
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
    fn a_message_of_a_watch_is_read_as_etcd_writes_it() {
        let line = br#"{"result":{"header":{"revision":"5"},"events":[
            {"kv":{"key":"YQ==","create_revision":"2","mod_revision":"3","version":"2","value":"Yg=="}},
            {"type":"DELETE","kv":{"key":"YQ==","mod_revision":"5"}}]}}"#;
        let changes: Changes<'_> = serde_json::from_slice(line).unwrap();
        let events = changes.result.unwrap().events;
        assert_eq!((events[0].kind, events[1].kind), (ChangeKind::Put, ChangeKind::Delete));
        assert_eq!(events[0].kv.value().unwrap(), b"b");
        assert_eq!((events[0].kv.version, events[1].kv.mod_revision), (2, 5));
        assert!(matches!(events[0].kv.value, std::borrow::Cow::Borrowed(_)));
    }
}
