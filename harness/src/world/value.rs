//! Stored objects, read as far as forks need it: what they are, their UID, and whether they may be
//! copied at all.
//!
//! Built-in kinds are stored as protobuf behind a magic number, custom resources as JSON. The few
//! fields that matter are found by their numbers, so no schema has to be at hand.

use serde::Deserialize;

use super::error::RefusalReason;
use super::key::{CLAIMS, RESOURCE_QUOTAS, SECRETS, SERVICES};

/// k8s.io/apimachinery: pkg/runtime/serializer/protobuf/protobuf.go.
const PROTOBUF: &[u8] = b"k8s\0";

/// What is known of one stored object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Facts {
    pub(super) api_version: String,
    pub(super) uid: String,
    /// Why no fork may hold it.
    pub(super) refusal: Option<RefusalReason>,
}

impl Facts {
    /// Reads an object out of `directory`.
    ///
    /// # Errors
    ///
    /// What is wrong with it: an encrypted object, CBOR, an object without a UID.
    pub(super) fn of(directory: &str, value: &[u8]) -> Result<Self, String> {
        let (api_version, uid, refusal) = match value.strip_prefix(PROTOBUF) {
            Some(envelope) => {
                let broken = || "broken protobuf".to_owned();
                let message = Message::new(envelope);
                let type_meta = message.message(1).ok_or_else(broken)?;
                let object = message.message(2).ok_or_else(broken)?;
                let metadata = object.message(1).ok_or_else(broken)?;
                let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
                let refusal = refusal(directory, &object);
                (text(type_meta.text(1)), text(metadata.text(5)), refusal)
            }
            None if value.first() == Some(&b'{') => {
                let object: Json = serde_json::from_slice(value).map_err(|it| it.to_string())?;
                (object.api_version, object.metadata.uid, None)
            }
            None => {
                let start = value.iter().take(12).map(|byte| char::from(*byte).escape_default());
                let start: String = start.flatten().collect();
                return Err(format!("neither protobuf nor JSON, but {start:?} and so on"));
            }
        };
        if uid.len() != UID_LENGTH || !uid.is_ascii() {
            return Err(format!("its UID is {uid:?}"));
        }
        Ok(Self { api_version, uid, refusal })
    }
}

/// 8, 4, 4, 4 and 12 digits with hyphens between.
pub(super) const UID_LENGTH: usize = 36;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    api_version: String,
    metadata: JsonMetadata,
}

#[derive(Deserialize)]
struct JsonMetadata {
    uid: String,
}

/// Field numbers: k8s.io/api: core/v1/generated.proto.
fn refusal(directory: &str, object: &Message<'_>) -> Option<RefusalReason> {
    let text = |path: [u64; 2]| object.message(path[0])?.text(path[1]).map(str::to_owned);
    match directory {
        SERVICES => text([2, 3])
            .filter(|address| !address.is_empty() && address != "None")
            .map(RefusalReason::ClusterIp),
        CLAIMS => {
            let volume = text([2, 3]).filter(|volume| !volume.is_empty());
            let bound = text([3, 1]).is_some_and(|phase| phase == "Bound");
            (volume.is_some() || bound)
                .then(|| RefusalReason::BoundVolume(volume.unwrap_or_default()))
        }
        SECRETS => (object.text(3) == Some("kubernetes.io/service-account-token"))
            .then_some(RefusalReason::ServiceAccountToken),
        RESOURCE_QUOTAS => Some(RefusalReason::ResourceQuota),
        _ => None,
    }
}

/// A protobuf message, field by field. What is broken ends it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The texts, byte strings and messages under a number.
    pub(super) fn all(self, number: u64) -> impl Iterator<Item = &'a [u8]> {
        self.filter(move |&(found, _)| found == number).map(|(_, bytes)| bytes)
    }

    pub(super) fn texts(self, number: u64) -> impl Iterator<Item = &'a str> {
        self.all(number).filter_map(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The last one counts, says the format, if a field that should be single is not.
    pub(super) fn text(&self, number: u64) -> Option<&'a str> {
        self.texts(number).last()
    }

    pub(super) fn message(&self, number: u64) -> Option<Message<'a>> {
        self.all(number).last().map(Message::new)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        Some(taken)
    }
}

/// The fields that have bytes; numbers are passed over.
impl<'a> Iterator for Message<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let tag = self.varint()?;
            match tag & 7 {
                0 => drop(self.varint()?),
                1 => drop(self.take(8)?),
                2 => {
                    let length = self.varint()?;
                    return Some((tag >> 3, self.take(length)?));
                }
                5 => drop(self.take(4)?),
                _ => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2, bytes.len() as u8];
        field.extend_from_slice(bytes);
        field
    }

    fn stored(fields: &[Vec<u8>]) -> Vec<u8> {
        let metadata = field(1, &field(5, UID.as_bytes()));
        let object = [metadata].iter().chain(fields).flatten().copied().collect::<Vec<_>>();
        [PROTOBUF.to_vec(), field(1, &field(1, b"v1")), field(2, &object)].concat()
    }

    #[test]
    fn the_uid_is_found_in_both_encodings() {
        let json = format!(r#"{{"apiVersion":"a.b/v2","metadata":{{"x":1,"uid":"{UID}"}}}}"#);
        let facts = Facts::of("a.b/cs", json.as_bytes()).unwrap();
        assert_eq!((facts.uid.as_str(), facts.api_version.as_str()), (UID, "a.b/v2"));
        let facts = Facts::of("pods", &stored(&[])).unwrap();
        assert_eq!((facts.uid.as_str(), facts.api_version.as_str()), (UID, "v1"));
    }

    #[test]
    fn what_belongs_to_the_cluster_is_refused_and_what_does_not_is_not() {
        let refusal =
            |directory, fields: &[Vec<u8>]| Facts::of(directory, &stored(fields)).unwrap().refusal;
        let spec = |text: &[u8]| vec![field(2, &field(3, text))];
        assert_eq!(refusal(SERVICES, &spec(b"None")), None);
        assert_eq!(refusal(SERVICES, &spec(b"")), None);
        let address = RefusalReason::ClusterIp("10.0.0.9".to_owned());
        assert_eq!(refusal(SERVICES, &spec(b"10.0.0.9")), Some(address));
        assert_eq!(refusal(CLAIMS, &spec(b"")), None);
        let volume = RefusalReason::BoundVolume("v".to_owned());
        assert_eq!(refusal(CLAIMS, &spec(b"v")), Some(volume));
        assert_eq!(refusal(SECRETS, &[field(3, b"Opaque")]), None);
        let token = field(3, b"kubernetes.io/service-account-token");
        assert_eq!(refusal(SECRETS, &[token]), Some(RefusalReason::ServiceAccountToken));
        assert_eq!(refusal(RESOURCE_QUOTAS, &[]), Some(RefusalReason::ResourceQuota));
    }

    #[test]
    fn an_encoding_that_is_not_known_is_an_error_that_shows_its_beginning() {
        let error = Facts::of("secrets", b"k8s:enc:aescbc:v1:key:xyz").unwrap_err();
        assert!(error.contains("k8s:enc:aesc"), "{error}");
        let cut = &stored(&[])[..20];
        assert!(Facts::of("pods", cut).is_err());
    }
}
