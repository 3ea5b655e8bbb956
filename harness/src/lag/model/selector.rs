//! Label selectors in the form that requests carry them.

use std::{collections::BTreeMap, str::FromStr};

use serde_json::Value;

/// A label selector such as `app=web,tier in (a, b),!canary`.
///
/// ```
/// use laggard::lag::model::LabelSelector;
/// use serde_json::json;
///
/// let selector: LabelSelector = "app=web,tier notin (cache),!canary".parse()?;
/// assert!(selector.matches(&json!({"metadata": {"labels": {"app": "web", "tier": "front"}}})));
/// assert!(!selector.matches(&json!({"metadata": {"labels": {"app": "web", "tier": "cache"}}})));
/// # Ok::<(), laggard::lag::model::ParseSelectorError>(())
/// ```
///
/// Source: Kubernetes, "Labels and Selectors". The numeric comparisons `<` and `>` are refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl LabelSelector {
    /// Whether `object`, by its `metadata.labels`, is selected.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let labels: BTreeMap<&str, &str> = object
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
            .collect();
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                labels.get(key.as_str()).is_some_and(|label| values.iter().any(|v| v == label))
            }
            // An object without the label matches, as on the server.
            Requirement::NotIn(key, values) => {
                labels.get(key.as_str()).is_none_or(|label| values.iter().all(|v| v != label))
            }
            Requirement::Exists(key) => labels.contains_key(key.as_str()),
            Requirement::Absent(key) => !labels.contains_key(key.as_str()),
        })
    }
}

/// A text that is no label selector, or uses a form that is not known here.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("failed to read label selector {selector:?}: {requirement:?} is no requirement")]
pub struct ParseSelectorError {
    selector: String,
    requirement: String,
}

impl FromStr for LabelSelector {
    type Err = ParseSelectorError;

    fn from_str(selector: &str) -> Result<Self, ParseSelectorError> {
        let parse = |text: &str| {
            Requirement::parse(text).ok_or_else(|| ParseSelectorError {
                selector: selector.to_owned(),
                requirement: text.to_owned(),
            })
        };
        split_outside_parentheses(selector)
            .into_iter()
            .map(parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        if let Some(key) = text.strip_prefix('!') {
            return Some(Self::Absent(label_key(key)?));
        }
        if let Some((key, value)) = text.split_once("!=") {
            return Some(Self::NotIn(label_key(key)?, vec![label_value(value)?]));
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return Some(Self::In(label_key(key)?, vec![label_value(value)?]));
        }
        let Some((head, list)) = text.split_once('(') else {
            return Some(Self::Exists(label_key(text)?));
        };
        let values: Vec<String> = list
            .trim_end()
            .strip_suffix(')')?
            .split(',')
            .map(label_value)
            .collect::<Option<_>>()?;
        match head.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => Some(Self::In(label_key(key)?, values)),
            [key, "notin"] => Some(Self::NotIn(label_key(key)?, values)),
            _ => None,
        }
    }
}

fn split_outside_parentheses(selector: &str) -> Vec<&str> {
    let mut inside = false;
    selector
        .split(|character| {
            match character {
                '(' => inside = true,
                ')' => inside = false,
                _ => {}
            }
            character == ',' && !inside
        })
        .map(str::trim)
        .filter(|requirement| !requirement.is_empty())
        .collect()
}

fn label_key(text: &str) -> Option<String> {
    let key = label_value(text)?;
    (!key.is_empty()).then_some(key)
}

fn label_value(text: &str) -> Option<String> {
    let text = text.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    text.chars().all(plain).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(selector: &str, labels: Value) -> bool {
        selector.parse::<LabelSelector>().unwrap().matches(&json!({"metadata": {"labels": labels}}))
    }

    #[test]
    fn each_form_of_requirement_selects_as_the_server_does() {
        let labels = json!({"app": "web", "tier": "front"});
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier=front", true),
            ("app=db", false),
            ("app!=db", true),
            ("app!=web", false),
            ("other!=x", true),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("tier notin (front, back)", false),
            ("other notin (x)", true),
            ("tier", true),
            ("other", false),
            ("!other", true),
            ("!tier", false),
            ("app in (web,db),!tier", false),
        ] {
            assert_eq!(selects(selector, labels.clone()), expected, "{selector:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_not_a_guess() {
        for selector in ["app>3", "app in web", "app in (web", "=web", "a b", "app like (x)"] {
            assert!(selector.parse::<LabelSelector>().is_err(), "{selector:?}");
        }
    }
}
