//! What one world calls things, and what the same things are called in memory.
//!
//! Two worlds that were forked from one moment and in which the same has happened since differ in the name of the
//! namespace, in UIDs and resource versions, and in what clients make up: the UUIDs and moments in their requests.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::{
    lag::model::{is_moment, is_uuid, rename_fields},
    world::{Resource, World, candidates},
};

/// The names of one world, and those in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    texts: Both<String>,
    /// Of what was forked: changes of several resources can have one revision here.
    forked: Both<(Resource, i64)>,
    /// Of all changes since.
    later: Both<i64>,
}

/// One to one.
#[derive(Clone, Debug)]
struct Both<T> {
    to_memory: HashMap<T, T>,
    to_world: HashMap<T, T>,
}

/// Which names are to be replaced by which.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum To {
    Memory,
    World,
}

/// Something that has no name on the other side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Unknown;

impl<T> Default for Both<T> {
    fn default() -> Self {
        Self { to_memory: HashMap::new(), to_world: HashMap::new() }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Both<T> {
    fn to(&self, to: To) -> &HashMap<T, T> {
        match to {
            To::Memory => &self.to_memory,
            To::World => &self.to_world,
        }
    }

    fn add(&mut self, in_memory: T, here: T) {
        self.to_memory.insert(here.clone(), in_memory.clone());
        self.to_world.insert(in_memory, here);
    }
}

impl Names {
    /// Those of a fork; in memory, things are called what they are called in its source.
    pub(super) fn of(fork: &World) -> Self {
        let mut names = Self::default();
        names.add_text(fork.source().namespace(), fork.namespace());
        for (source, here) in fork.renames().uids() {
            names.add_text(source, here);
        }
        for (source, here) in fork.source().changes().zip(fork.changes()) {
            let key = |revision| (source.resource.clone(), revision);
            names.forked.add(key(source.revision), key(here.revision));
        }
        names
    }

    pub(super) fn add_text(&mut self, in_memory: &str, here: &str) {
        self.texts.add(in_memory.to_owned(), here.to_owned());
    }

    pub(super) fn add_revision(&mut self, in_memory: i64, here: i64) {
        self.later.add(in_memory, here);
    }

    pub(super) fn knows(&self, text: &str, to: To) -> bool {
        self.texts.to(to).contains_key(text)
    }

    /// Of a change since the fork.
    pub(super) fn revision_in_memory(&self, here: i64) -> Option<i64> {
        self.later.to_memory.get(&here).copied()
    }

    /// A revision of a resource, as a resource version says it.
    fn revision(&self, resource: &Resource, revision: i64, to: To) -> Option<i64> {
        let later = self.later.to(to).get(&revision).copied();
        later.or_else(|| Some(self.forked.to(to).get(&(resource.clone(), revision))?.1))
    }

    /// Replaces names in bytes that are not read, each by one of the same length.
    pub(super) fn bytes(&self, bytes: &mut [u8], to: To) {
        let known = self.texts.to(to);
        for (start, length) in candidates(bytes).collect::<Vec<_>>() {
            let new = std::str::from_utf8(&bytes[start..start + length]).ok();
            if let Some(new) = new.and_then(|old| known.get(old)) {
                bytes[start..start + length].copy_from_slice(new.as_bytes());
            }
        }
    }

    /// The same in a text.
    pub(super) fn text(&self, text: &str, to: To) -> String {
        let mut bytes = text.as_bytes().to_vec();
        self.bytes(&mut bytes, to);
        // All names are ASCII, of equal length, so what was UTF-8 still is.
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Replaces names in data that is shown in base64, and stored as it is. `None` if there are none in it.
    fn encoded(&self, text: &str, to: To) -> Option<String> {
        let mut data = STANDARD.decode(text).ok()?;
        let before = data.clone();
        self.bytes(&mut data, to);
        (data != before).then(|| STANDARD.encode(data))
    }

    /// Replaces the names in what the server has said or stored about a resource.
    ///
    /// # Errors
    /// [`Unknown`]: a resource version of something else.
    pub(super) fn value(
        &self,
        value: &mut Value,
        resource: &Resource,
        to: To,
    ) -> Result<(), Unknown> {
        self.value_in("", value, resource, to)
    }

    /// The same for the value of a field.
    fn value_in(
        &self,
        parent: &str,
        value: &mut Value,
        resource: &Resource,
        to: To,
    ) -> Result<(), Unknown> {
        match value {
            Value::Object(fields) => {
                for (field, value) in fields.iter_mut() {
                    match value {
                        Value::String(version) if field == VERSION => {
                            if let Ok(known) = version.parse() {
                                let new = self.revision(resource, known, to).ok_or(Unknown)?;
                                *version = new.to_string();
                            }
                        }
                        Value::String(_) if is_of_the_server(parent, field) => {}
                        value => self.value_in(field, value, resource, to)?,
                    }
                }
                rename_fields(fields, |field| self.text(field, to));
            }
            Value::Array(items) => {
                for item in items {
                    self.value_in(parent, item, resource, to)?;
                }
            }
            Value::String(text) => match self.texts.to(to).get(text) {
                Some(new) => new.clone_into(text),
                None => {
                    let renamed = self.text(text, to);
                    *text = match has_encoded_data(resource) && renamed == *text {
                        true => self.encoded(text, to).unwrap_or(renamed),
                        false => renamed,
                    };
                }
            },
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        Ok(())
    }
}

const VERSION: &str = "resourceVersion";

/// Whether objects have fields of bytes, which are base64 in JSON.
fn has_encoded_data(resource: &Resource) -> bool {
    resource.group.is_empty() && matches!(&*resource.plural, "secrets" | "configmaps")
}

/// Moments that the server sets, by its own clock.
fn is_of_the_server(parent: &str, field: &str) -> bool {
    matches!(
        (parent, field),
        ("metadata", "creationTimestamp" | "deletionTimestamp") | ("managedFields", "time")
    )
}

/// A request, in the words of memory. What its client has made up stands in it by its place in `new`.
#[derive(Debug, Default)]
pub(super) struct Asking {
    pub(super) text: String,
    /// The names of this world for it.
    pub(super) new: Vec<String>,
    /// It has moments, known or new.
    pub(super) has_moments: bool,
}

impl Asking {
    /// `lines` is all that makes up the request, but for its body.
    pub(super) fn of(
        names: &Names,
        lines: &[&str],
        body: Option<&Value>,
        resource: &Resource,
    ) -> Self {
        let mut asking = Self::default();
        let mut text = String::new();
        for line in lines {
            text += &asking.line(names, line);
            text.push('\n');
        }
        if let Some(body) = body {
            let mut body = body.clone();
            asking.put(names, &mut body, resource);
            text += &body.to_string();
        }
        asking.text = text;
        asking
    }

    fn put(&mut self, names: &Names, value: &mut Value, resource: &Resource) {
        match value {
            Value::Object(fields) => {
                for (field, value) in fields.iter_mut() {
                    match value {
                        Value::String(version) if field == VERSION => {
                            let known = version.parse().ok();
                            let known =
                                known.and_then(|it| names.revision(resource, it, To::Memory));
                            *version =
                                known.map_or_else(|| format!("? {version}"), |it| it.to_string());
                        }
                        value => self.put(names, value, resource),
                    }
                }
                rename_fields(fields, |field| self.line(names, field));
            }
            Value::Array(items) => {
                items.iter_mut().for_each(|item| self.put(names, item, resource))
            }
            Value::String(text) if is_moment(text) => {
                self.has_moments = true;
                *text = match names.texts.to_memory.get(text) {
                    Some(known) => known.clone(),
                    None => self.made_up(text),
                };
            }
            Value::String(text) => *text = self.line(names, text),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn line(&mut self, names: &Names, text: &str) -> String {
        let mut line = String::new();
        let mut done = 0;
        for (start, length) in candidates(text.as_bytes()) {
            let Some(old) = text.get(start..start + length).filter(|_| start >= done) else {
                continue;
            };
            let new = match names.texts.to_memory.get(old) {
                Some(known) => known.clone(),
                None if is_uuid(old.as_bytes()) => self.made_up(old),
                None => continue,
            };
            line += &text[done..start];
            line += &new;
            done = start + length;
        }
        line + &text[done..]
    }

    /// A control character is in no name.
    fn made_up(&mut self, text: &str) -> String {
        let place = self.new.iter().position(|known| known == text).unwrap_or_else(|| {
            self.new.push(text.to_owned());
            self.new.len() - 1
        });
        format!("\u{1}{place}\u{1}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SOURCE: &str = "lw-source00";
    const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    /// A world with an object of the source's, whose UID ends with this digit, and whose version is this.
    fn world(name: &str, digit: char, version: i64) -> (Names, String) {
        let mut names = Names::default();
        let uid = format!("{}{digit}", &UID[..35]);
        names.add_text(SOURCE, name);
        names.add_text(UID, &uid);
        names.forked.add((pods(), 5), (pods(), version));
        (names, uid)
    }

    fn pods() -> Resource {
        Resource::new("", "pods")
    }

    fn asked(names: &Names, namespace: &str, body: &Value) -> Asking {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        Asking::of(names, &["PUT", &path], Some(body), &pods())
    }

    #[test]
    fn the_same_request_reads_the_same_in_two_worlds() {
        let body = |uid: &str, version: i64, id: &str, now: &str| {
            json!({
                "metadata": { "resourceVersion": version.to_string(), "ownerReferences": [{ "uid": uid }] },
                "fields": { format!("k:{uid}"): "x" }, "id": id, "again": format!("plan {id}"), "now": now,
            })
        };
        let ((one, first), (other, second)) =
            (world("lw-aaaa0000", 'a', 70), world("lw-bbbb0000", 'b', 90));
        let ids = ["a1111111-89ab-cdef-0123-456789abcdef", "b1111111-89ab-cdef-0123-456789abcdef"];
        let moments = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123Z"];
        let this = asked(&one, "lw-aaaa0000", &body(&first, 70, ids[0], moments[0]));
        let that = asked(&other, "lw-bbbb0000", &body(&second, 90, ids[1], moments[1]));
        assert_eq!(this.text, that.text);
        assert_eq!(this.new, [ids[0], moments[0]]);
        assert_eq!(that.new, [ids[1], moments[1]]);
        assert!(this.has_moments);
        // Another version, another object, another namespace.
        let older = asked(&one, "lw-aaaa0000", &body(&first, 60, ids[0], moments[0]));
        let stranger = asked(&one, "lw-aaaa0000", &body(&second, 70, ids[0], moments[0]));
        let elsewhere = asked(&one, "lw-bbbb0000", &body(&first, 70, ids[0], moments[0]));
        for differs in [older, stranger, elsewhere] {
            assert_ne!(this.text, differs.text);
        }
    }

    #[test]
    fn moments_that_were_one_and_are_two_are_told_apart() {
        let (names, _) = world("lw-aaaa0000", 'a', 70);
        let text = |first: &str, second: &str| {
            asked(&names, "lw-aaaa0000", &json!({ "first": first, "second": second })).text
        };
        let [one, two, three] = [1, 2, 3].map(|second| format!("2026-01-01T00:00:0{second}Z"));
        assert_eq!(text(&one, &one), text(&two, &two));
        assert_eq!(text(&one, &two), text(&two, &three));
        assert_ne!(text(&one, &one), text(&one, &two));
    }

    #[test]
    fn what_was_said_in_one_world_can_be_said_in_another() {
        let ((mut one, first), (mut other, second)) =
            (world("lw-aaaa0000", 'a', 70), world("lw-bbbb0000", 'b', 90));
        let [this, that] = ["2026-01-01T00:00:00.1Z", "2026-02-02T00:00:00.22Z"];
        one.add_text(this, this);
        one.add_revision(71, 71);
        other.add_text(this, that);
        other.add_revision(71, 91);
        let said = |namespace: &str, uid: &str, version: &str, now: &str| {
            json!({
                "metadata": {
                    "namespace": namespace, "uid": uid, "resourceVersion": version, "creationTimestamp": this,
                    "managedFields": [{ "time": this }],
                },
                "items": [{ "metadata": { "resourceVersion": version } }],
                "status": { "since": now, "time": now, "text": format!("{uid} in {namespace}") },
            })
        };
        for (here, there) in [("70", "90"), ("71", "91")] {
            let mut value = said("lw-aaaa0000", &first, here, this);
            one.value(&mut value, &pods(), To::Memory).unwrap();
            other.value(&mut value, &pods(), To::World).unwrap();
            // Moments of the server are left as they were.
            assert_eq!(value, said("lw-bbbb0000", &second, there, that));
        }
        let mut unknown = said("lw-aaaa0000", &first, "72", this);
        assert_eq!(one.value(&mut unknown, &pods(), To::Memory), Err(Unknown));
        let secret = |namespace: &str| json!({ "data": { "k": STANDARD.encode(format!("of {namespace}")), "l": "bGF0ZXI=" } });
        let mut value = secret("lw-aaaa0000");
        one.value(&mut value, &Resource::new("", "secrets"), To::Memory).unwrap();
        other.value(&mut value, &Resource::new("", "secrets"), To::World).unwrap();
        assert_eq!(value, secret("lw-bbbb0000"));
        let mut bytes = [b"\0k8s\x0blw-aaaa0000$", first.as_bytes(), b"\xff"].concat();
        one.bytes(&mut bytes, To::Memory);
        other.bytes(&mut bytes, To::World);
        assert_eq!(bytes, [b"\0k8s\x0blw-bbbb0000$", second.as_bytes(), b"\xff"].concat());
    }
}
