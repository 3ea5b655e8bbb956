//! The part of a history that one stream can show.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::{
    Change, Commit, Identity, LabelSelector, ObjectKey, Query, Seen, compare_resource_versions,
};

/// The events that a stream with some identity shows, if it shows all of them.
pub(super) struct Visible<'a> {
    history: &'a [Commit],
    events: Vec<VisibleEvent<'a>>,
}

/// One of them.
pub(super) struct VisibleEvent<'a> {
    pub(super) commit: &'a Commit,
    /// Seen through the selectors: an object that crosses them is added or deleted.
    pub(super) change: Change,
}

/// What is in a view: the commit that each object is shown as.
pub(super) type State<'a> = BTreeMap<&'a ObjectKey, &'a Commit>;

impl<'a> Visible<'a> {
    /// # Errors
    /// A text that says which object would have to be known, or which selector is not understood.
    pub(super) fn new(history: &'a [Commit], identity: &Identity) -> Result<Self, String> {
        let resource = identity.qualified_resource();
        let selection = Selection::new(identity)?;
        let mut shown = BTreeSet::new();
        let mut events = Vec::new();
        for commit in history.iter().filter(|commit| commit.resource == resource) {
            if identity.namespace.is_some() && commit.key.namespace != identity.namespace {
                continue;
            }
            let selected = commit.change != Change::Deleted && selection.selects(commit)?;
            let change = match (shown.contains(&commit.key), selected) {
                (false, false) => continue,
                (true, false) => Change::Deleted,
                (false, true) => Change::Added,
                (true, true) => Change::Modified,
            };
            if selected {
                shown.insert(&commit.key);
            } else {
                shown.remove(&commit.key);
            }
            events.push(VisibleEvent { commit, change });
        }
        Ok(Self { history, events })
    }

    pub(super) fn get(&self, index: usize) -> Option<&VisibleEvent<'a>> {
        self.events.get(index)
    }

    /// The index of the event with this revision about this object.
    pub(super) fn index_of(&self, key: &ObjectKey, resource_version: &str) -> Option<usize> {
        self.events.iter().position(|event| {
            event.commit.key == *key && event.commit.resource_version == resource_version
        })
    }

    /// Whether the history has a change with this revision of this object, in any resource: the stream
    /// cannot show it, another one could.
    pub(super) fn is_elsewhere(&self, key: &ObjectKey, resource_version: &str) -> bool {
        self.history
            .iter()
            .any(|commit| commit.key == *key && commit.resource_version == resource_version)
    }

    /// How many events had been committed when the step was recorded.
    pub(super) fn available(&self, step: usize) -> usize {
        self.events.iter().take_while(|event| event.commit.is_committed_at(step)).count()
    }

    /// How many had been committed before the first `steps` steps were over.
    pub(super) fn available_before(&self, steps: usize) -> usize {
        let before =
            |event: &&VisibleEvent<'_>| event.commit.step.is_none_or(|committed| committed < steps);
        self.events.iter().take_while(before).count()
    }

    /// How many have a revision up to this one. `None` if revisions cannot be compared.
    pub(super) fn up_to(&self, resource_version: &str) -> Option<usize> {
        let mut count = 0;
        for event in &self.events {
            if compare_resource_versions(&event.commit.resource_version, resource_version)?.is_gt()
            {
                break;
            }
            count += 1;
        }
        Some(count)
    }

    /// What the first `count` events leave.
    pub(super) fn state(&self, count: usize) -> State<'a> {
        let mut state = State::new();
        for event in self.events.iter().take(count) {
            match event.change {
                Change::Added | Change::Modified => {
                    state.insert(&event.commit.key, event.commit);
                }
                Change::Deleted => {
                    state.remove(&event.commit.key);
                }
            }
        }
        state
    }
}

/// Whether a query is answered so in a state.
///
/// # Errors
/// A text that says which object would have to be known.
pub(super) fn answers(state: &State<'_>, query: &Query, answer: &[Seen]) -> Result<bool, String> {
    let shown = |seen: &Seen| {
        state.get(&seen.key).is_some_and(|commit| {
            commit.resource_version == seen.resource_version
                && (seen.uid.is_none() || commit.uid.is_none() || commit.uid == seen.uid)
        })
    };
    let distinct: BTreeSet<_> = answer.iter().map(|seen| &seen.key).collect();
    if distinct.len() < answer.len() || !answer.iter().all(shown) {
        return Ok(false);
    }
    // All that was answered is in the state. What is left is whether something is missing.
    Ok(match query {
        Query::Get(key) => match answer {
            [] => !state.contains_key(key),
            [seen] => seen.key == *key,
            _ => false,
        },
        Query::All | Query::Count => answer.len() == state.len(),
        Query::Labels(selector) => {
            let selector: LabelSelector = selector.parse().map_err(|error| format!("{error}"))?;
            let mut matching = 0;
            for commit in state.values() {
                let selected = selector.matches(object_of(commit)?);
                let answered = distinct.contains(&commit.key);
                if selected != answered {
                    return Ok(false);
                }
                matching += usize::from(selected);
            }
            matching == answer.len()
        }
        Query::Filtered => true,
    })
}

/// The selectors of a stream.
struct Selection {
    labels: Option<LabelSelector>,
    /// Path, whether it must be equal, value.
    fields: Vec<(String, bool, String)>,
}

impl Selection {
    fn new(identity: &Identity) -> Result<Self, String> {
        let labels = identity.labels.as_deref().filter(|labels| !labels.is_empty());
        let labels = labels.map(str::parse).transpose().map_err(|error| format!("{error}"))?;
        let fields = identity.fields.as_deref().unwrap_or_default();
        let fields = fields
            .split(',')
            .filter(|field| !field.is_empty())
            .map(|field| {
                let (path, equal, value) = match field.split_once("!=") {
                    Some((path, value)) => (path, false, value),
                    None => {
                        let (path, value) = field
                            .split_once("==")
                            .or_else(|| field.split_once('='))
                            .ok_or_else(|| format!("{field:?} is no field selector"))?;
                        (path, true, value)
                    }
                };
                Ok((path.trim().to_owned(), equal, value.trim().to_owned()))
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { labels, fields })
    }

    fn selects(&self, commit: &Commit) -> Result<bool, String> {
        if self.labels.is_none() && self.fields.is_empty() {
            return Ok(true);
        }
        let object = object_of(commit)?;
        let labels = self.labels.as_ref().is_none_or(|labels| labels.matches(object));
        let fields = self.fields.iter().all(|(path, equal, value)| {
            let pointer: String = path.split('.').map(|part| format!("/{part}")).collect();
            let found = match object.pointer(&pointer) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            (found == *value) == *equal
        });
        Ok(labels && fields)
    }
}

fn object_of(commit: &Commit) -> Result<&Value, String> {
    commit.object.as_ref().ok_or_else(|| {
        format!(
            "{} {} at rv {} was not kept, so it cannot be known whether a selector selects it",
            commit.resource, commit.key, commit.resource_version
        )
    })
}
