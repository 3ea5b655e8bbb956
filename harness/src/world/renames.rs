//! What a fork calls things that its source calls otherwise.

use std::collections::HashMap;

use super::key::WORLD_LENGTH;
use super::value::UID_LENGTH;

/// The names that a fork has in place of its source's: that of the namespace, and the UIDs of the
/// world's own objects. Each is as long as the one it stands for.
///
/// # Example
///
/// Whatever was recorded in the source can be read as if it had been recorded in the fork:
///
/// ```no_run
/// # async fn example(world: &laggard::world::World) {
/// let line = format!(r#"{{"namespace":"{}"}}"#, world.source().namespace());
/// assert!(world.renames().text(&line).contains(world.namespace()));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Renames {
    namespace: (String, String),
    uids: HashMap<String, String>,
}

impl Renames {
    /// `uids` are renamed to what `fresh` says, which is as long.
    pub(super) fn new(
        from: &str,
        to: &str,
        uids: &[String],
        fresh: impl Fn(&str) -> String,
    ) -> Self {
        let uids = uids.iter().map(|uid| (uid.clone(), fresh(uid))).collect();
        Self { namespace: (from.to_owned(), to.to_owned()), uids }
    }

    /// The UID in the fork of an object that has this UID in the source.
    #[must_use]
    pub fn uid(&self, source: &str) -> Option<&str> {
        self.uids.get(source).map(String::as_str)
    }

    /// The UIDs of the source, each with that of the fork.
    pub(crate) fn uids(&self) -> impl Iterator<Item = (&str, &str)> {
        self.uids.iter().map(|(source, fork)| (&**source, &**fork))
    }

    /// The text with every occurrence replaced.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        self.bytes(&mut bytes);
        // All names are ASCII, of equal length, so what was UTF-8 still is.
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Replaces every occurrence in place.
    pub fn bytes(&self, bytes: &mut [u8]) {
        let places = places(bytes, &self.namespace.0, |uid| self.uids.contains_key(uid));
        self.at(bytes, &places);
    }

    /// Replaces the occurrences at these places.
    pub(super) fn at(&self, bytes: &mut [u8], places: &[Place]) {
        for place in places {
            let (start, new) = match *place {
                Place::Namespace(start) => (start, Some(self.namespace.1.as_str())),
                Place::Uid(start) => (start, uid_at(bytes, start).and_then(|uid| self.uid(uid))),
            };
            if let Some(new) = new {
                bytes[start..start + new.len()].copy_from_slice(new.as_bytes());
            }
        }
    }
}

/// Where something to be replaced begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Namespace(usize),
    Uid(usize),
}

/// All occurrences of a world's name and of the UIDs that are its own.
pub(super) fn places(bytes: &[u8], world: &str, own: impl Fn(&str) -> bool) -> Vec<Place> {
    let candidates = candidates(bytes).filter_map(|(start, length)| match length {
        WORLD_LENGTH => {
            (&bytes[start..start + length] == world.as_bytes()).then_some(Place::Namespace(start))
        }
        _ => uid_at(bytes, start).is_some_and(&own).then_some(Place::Uid(start)),
    });
    candidates.collect()
}

/// Where the name of a world or a UID may stand, and how long it is.
pub(crate) fn candidates(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    // Both hold a hyphen at a known place, and most bytes are none.
    let hyphens = bytes.iter().enumerate().filter(|&(_, &byte)| byte == b'-').map(|(at, _)| at);
    let candidates = hyphens.flat_map(|hyphen| {
        let uid = hyphen.checked_sub(8).filter(|_| bytes.get(hyphen + 5) == Some(&b'-'));
        [
            uid.map(|start| (start, UID_LENGTH)),
            hyphen.checked_sub(2).map(|start| (start, WORLD_LENGTH)),
        ]
    });
    candidates.flatten().filter(|(start, length)| start + length <= bytes.len())
}

fn uid_at(bytes: &[u8], start: usize) -> Option<&str> {
    std::str::from_utf8(bytes.get(start..start + UID_LENGTH)?).ok()
}

/// Another UID with the same first 24 characters, since objects are named after those of others.
pub(crate) fn fresh_uid(uid: &str) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let kept = UID_LENGTH - RENEWED;
    format!("{}{}", &uid[..kept], &random[random.len() - RENEWED..])
}

/// The last group of a UID.
const RENEWED: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "01234567-89ab-cdef-0123-456789abcdef";
    const OTHER: &str = "11234567-89ab-cdef-0123-456789abcdef";

    fn renames() -> Renames {
        Renames::new("lw-aaaa0000", "lw-bbbb0001", &[OWN.to_owned()], fresh_uid)
    }

    #[test]
    fn the_name_and_the_worlds_own_uids_are_replaced_and_nothing_else_is() {
        let renames = renames();
        let new = renames.uid(OWN).unwrap();
        let text = |namespace, uid: &str| {
            format!(
                "ö {namespace} {namespace}-x lw-aaaa {uid}{uid} {OTHER} {} {namespace}",
                &OWN[..35]
            )
        };
        assert_eq!(renames.text(&text("lw-aaaa0000", OWN)), text("lw-bbbb0001", new));
    }

    #[test]
    fn only_the_last_twelve_digits_of_a_uid_change() {
        let new = fresh_uid(OWN);
        assert_eq!(new.len(), OWN.len());
        assert_eq!(new[..24], OWN[..24]);
        assert_ne!(new, OWN);
        assert!(new[24..].bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
