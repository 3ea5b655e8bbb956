//! Field selectors in the form that requests carry them.

use std::str::FromStr;

use serde_json::Value;

/// A field selector such as `metadata.name=a,status.phase!=Running`.
///
/// A field is looked up in the object by its path, which is what the server does for `metadata.name`,
/// `metadata.namespace`, for the selectable fields of custom resources and for those of built-in kinds that
/// are plain fields (`spec.nodeName`, `status.phase`, `involvedObject.uid`, `type`, ...).
///
/// ```
/// use laggard::lag::model::FieldSelector;
/// use serde_json::json;
///
/// let selector: FieldSelector = "spec.nodeName=n1,status.phase!=Failed".parse()?;
/// assert!(selector.matches(&json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Running"}})));
/// assert!(!selector.matches(&json!({"status": {"phase": "Running"}})));
/// assert!(!selector.is_of_metadata());
/// # Ok::<(), laggard::lag::model::ParseFieldSelectorError>(())
/// ```
///
/// Source: Kubernetes, "Field Selectors"; apimachinery `pkg/fields/selector.go`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FieldSelector(Vec<Requirement>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Requirement {
    path: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// Whether `object` is selected. A field that it does not have counts as empty, or as `false` where the
    /// server has it so (`spec.hostNetwork`, `spec.unschedulable`).
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|requirement| {
            (field(object, &requirement.path) == requirement.value) == requirement.equal
        })
    }

    /// Whether the metadata of an object is enough to decide.
    #[must_use]
    pub fn is_of_metadata(&self) -> bool {
        self.0.iter().all(|requirement| requirement.path.starts_with("metadata."))
    }
}

fn field(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |value, segment| value.get(segment));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Number(value)) => value.to_string(),
        // Source: Kubernetes `pkg/registry/core`, `ToSelectableFields` of pods and `NodeToSelectableFields`.
        _ if matches!(path, "spec.hostNetwork" | "spec.unschedulable") => "false".to_owned(),
        _ => String::new(),
    }
}

/// A text that is no field selector.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("failed to read field selector {selector:?}: {requirement:?} is no requirement")]
pub struct ParseFieldSelectorError {
    selector: String,
    requirement: String,
}

impl FromStr for FieldSelector {
    type Err = ParseFieldSelectorError;

    fn from_str(selector: &str) -> Result<Self, ParseFieldSelectorError> {
        let parse = |text: String| {
            Requirement::parse(&text).ok_or_else(|| ParseFieldSelectorError {
                selector: selector.to_owned(),
                requirement: text,
            })
        };
        split_unescaped(selector).into_iter().map(parse).collect::<Result<_, _>>().map(Self)
    }
}

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        let (path, equal, value) = match (text.find("!="), text.find('=')) {
            (Some(at), Some(first)) if at < first => (&text[..at], false, &text[at + 2..]),
            (_, Some(at)) => {
                let value = &text[at + 1..];
                (&text[..at], true, value.strip_prefix('=').unwrap_or(value))
            }
            _ => return None,
        };
        let path = path.trim();
        (!path.is_empty()).then(|| Self {
            path: path.to_owned(),
            equal,
            value: unescaped(value.trim()),
        })
    }
}

/// Splits at commas that no backslash precedes.
fn split_unescaped(selector: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for character in selector.chars() {
        if character == ',' && !escaped {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(character);
        }
        escaped = character == '\\' && !escaped;
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn unescaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        out.push(if character == '\\' { characters.next().unwrap_or('\\') } else { character });
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_form_of_requirement_selects_as_the_server_does() {
        let object = json!({
            "metadata": {"name": "a", "namespace": "n"}, "type": "Opaque",
            "spec": {"replicas": 3, "paused": true, "text": "x,y=z"},
        });
        for (selector, expected) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a", true),
            ("metadata.name!=a", false),
            ("metadata.name!=b,metadata.namespace=n", true),
            ("metadata.name=b", false),
            ("type=Opaque", true),
            ("spec.replicas=3,spec.paused=true", true),
            ("spec.hostNetwork=false", true),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            (r"spec.text=x\,y\=z", true),
            (r"spec.text=x", false),
        ] {
            let parsed: FieldSelector = selector.parse().unwrap();
            assert_eq!(parsed.matches(&object), expected, "{selector:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_not_a_guess() {
        for selector in ["metadata.name", "=a", "spec.x,metadata.name=a"] {
            assert!(selector.parse::<FieldSelector>().is_err(), "{selector:?}");
        }
        assert!("metadata.name=a".parse::<FieldSelector>().unwrap().is_of_metadata());
        assert!(!"metadata.name=a,type=b".parse::<FieldSelector>().unwrap().is_of_metadata());
    }
}
