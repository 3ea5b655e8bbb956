//! An object as a set of fields, so that two of its versions can be compared field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The fields of an object by their path, such as `spec.replicas` or `status.conditions[Ready].status`.
pub(super) type Fields = BTreeMap<String, Value>;

/// What the server keeps for itself: no write sets it, or each does.
const BOOKKEEPING: [&str; 8] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What names an item of a list, the best first.
///
/// Source: Kubernetes, the `x-kubernetes-list-map-keys` of the built-in kinds.
const ITEM_KEYS: [&str; 8] =
    ["uid", "type", "name", "key", "containerPort", "port", "ip", "mountPath"];

/// All fields of an object but the bookkeeping of its metadata.
pub(super) fn fields(object: &Value) -> Fields {
    let mut fields = Fields::new();
    let Value::Object(parts) = object else { return fields };
    for (part, value) in parts {
        match value {
            Value::Object(metadata) if part == "metadata" => {
                let kept = metadata.iter().filter(|(f, _)| !BOOKKEEPING.contains(&f.as_str()));
                for (field, value) in kept {
                    collect(&mut fields, format!("metadata.{field}"), value);
                }
            }
            value => collect(&mut fields, part.clone(), value),
        }
    }
    fields
}

fn collect(fields: &mut Fields, path: String, value: &Value) {
    match value {
        Value::Object(parts) => {
            for (part, value) in parts {
                collect(fields, format!("{path}.{part}"), value);
            }
        }
        Value::Array(items) => match item_names(items) {
            Some(names) => {
                for (name, item) in names.iter().zip(items) {
                    collect(fields, format!("{path}[{name}]"), item);
                }
            }
            None => {
                fields.insert(path, value.clone());
            }
        },
        // The server prunes what is null.
        Value::Null => {}
        value => {
            fields.insert(path, value.clone());
        }
    }
}

/// A name for each item, such that items keep it when others come and go. `None` if there is none: then
/// the list counts as a whole.
fn item_names(items: &[Value]) -> Option<Vec<String>> {
    let distinct = |names: Option<Vec<String>>| {
        names.filter(|names| names.iter().collect::<BTreeSet<_>>().len() == names.len())
    };
    let plain = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    // Texts alone are a set, such as finalizers.
    if items.iter().all(Value::is_string) {
        return distinct(items.iter().map(plain).collect());
    }
    ITEM_KEYS
        .iter()
        .find_map(|key| distinct(items.iter().map(|item| item.get(key).and_then(plain)).collect()))
}

/// A value in one line, as much of it as explains.
pub(super) fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// So many characters of a value are shown.
const SHOWN: usize = 60;

/// Whether a server-side apply took a field from another manager between two versions: it can have been
/// only a forced one. Source: Kubernetes, "Server-Side Apply", conflicts.
pub(super) fn took_ownership(before: &Value, after: &Value) -> bool {
    let (before, after) = (managers(before), managers(after));
    let none = BTreeSet::new();
    before.iter().any(|(manager, owned)| {
        let kept = after.get(manager).unwrap_or(&none);
        owned.difference(kept).any(|field| {
            after.iter().any(|(other, fields)| {
                other != manager
                    && other.is_apply
                    && fields.contains(field)
                    && !before.get(other).is_some_and(|fields| fields.contains(field))
            })
        })
    })
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Manager {
    name: String,
    is_apply: bool,
    subresource: String,
}

/// The fields that each manager owns, in the names that the server gives them.
fn managers(object: &Value) -> BTreeMap<Manager, BTreeSet<String>> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    let text = |entry: &Value, field: &str| {
        entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut managers = BTreeMap::new();
    for entry in entries.into_iter().flatten() {
        let manager = Manager {
            name: text(entry, "manager"),
            is_apply: text(entry, "operation") == "Apply",
            subresource: text(entry, "subresource"),
        };
        let owned: &mut BTreeSet<String> = managers.entry(manager).or_default();
        if let Some(fields) = entry.get("fieldsV1") {
            owned_fields(owned, "", fields);
        }
    }
    managers
}

fn owned_fields(owned: &mut BTreeSet<String>, path: &str, fields: &Value) {
    match fields.as_object() {
        Some(parts) if !parts.is_empty() => {
            for (part, fields) in parts {
                owned_fields(owned, &format!("{path}/{part}"), fields);
            }
        }
        _ => {
            owned.insert(path.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_are_told_apart_by_what_names_them_and_not_by_their_place() {
        let one = json!({
            "metadata": {"name": "a", "uid": "u", "finalizers": ["x", "y"]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Old", "status": "x"}]},
            "spec": {"args": ["-v", "-v"], "matrix": [[1], [2]], "gone": null},
        });
        let paths: Vec<_> = fields(&one).into_keys().collect();
        assert_eq!(
            paths,
            [
                "metadata.finalizers[x]",
                "metadata.finalizers[y]",
                "metadata.name",
                "spec.args",
                "spec.matrix",
                "status.conditions[Old].status",
                "status.conditions[Old].type",
                "status.conditions[Ready].status",
                "status.conditions[Ready].type",
            ]
        );
    }

    fn owned(entries: &[(&str, &str, Value)]) -> Value {
        let entries: Vec<_> = entries
            .iter()
            .map(|(manager, operation, fields)| {
                json!({"manager": manager, "operation": operation, "fieldsV1": fields})
            })
            .collect();
        json!({"metadata": {"managedFields": entries}})
    }

    #[test]
    fn only_a_forced_apply_takes_a_field_from_another_manager() {
        let replicas = || json!({"f:spec": {"f:replicas": {}}});
        let both = || json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        let paused = || json!({"f:spec": {"f:paused": {}}});
        let before = owned(&[("user", "Update", replicas()), ("me", "Apply", paused())]);
        let taken = owned(&[("me", "Apply", both())]);
        assert!(took_ownership(&before, &taken));
        let shared = owned(&[("user", "Update", replicas()), ("me", "Apply", both())]);
        assert!(!took_ownership(&before, &shared), "an equal value is shared");
        let dropped = owned(&[("user", "Update", replicas())]);
        assert!(!took_ownership(&before, &dropped), "a manager may drop its own field");
        let updated = owned(&[("other", "Update", replicas()), ("me", "Apply", paused())]);
        assert!(!took_ownership(&before, &updated), "an update is no apply");
    }
}
