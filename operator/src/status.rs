//! The status of a node: conditions, phases, and the one patch of a pass.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Map, Value, json};

use crate::api::{Phase, SeiNodeStatus};

/// Whether a NodeUpdate plan runs, and how the last one ended.
pub const NODE_UPDATE_IN_PROGRESS: &str = "NodeUpdateInProgress";
/// What the last health check of the sidecar found.
pub const SIDECAR_READY: &str = "SidecarReady";
/// Whether the node's container was started with the image that is rolled out.
pub const IMAGE_RUNNING: &str = "ImageRunning";

/// One thing to say about a node.
#[derive(Clone, Debug)]
pub struct Statement<'a> {
    /// The type of the condition.
    pub kind: &'a str,
    /// `True`, `False` or `Unknown`.
    pub status: &'a str,
    /// One word, for programs.
    pub reason: &'a str,
    /// For people.
    pub message: String,
}

/// Says something in a condition; a condition once said never disappears.
///
/// `lastTransitionTime` moves only when `status` changes; the rest is updated in place.
pub fn state(status: &mut SeiNodeStatus, generation: i64, now: &Time, statement: Statement<'_>) {
    let existing = status.conditions.iter_mut().find(|condition| condition.type_ == statement.kind);
    match existing {
        Some(condition) => {
            if condition.status != statement.status {
                condition.status = statement.status.to_owned();
                condition.last_transition_time = now.clone();
            }
            condition.reason = statement.reason.to_owned();
            condition.message = statement.message;
            condition.observed_generation = Some(generation);
        }
        None => status.conditions.push(Condition {
            type_: statement.kind.to_owned(),
            status: statement.status.to_owned(),
            reason: statement.reason.to_owned(),
            message: statement.message,
            observed_generation: Some(generation),
            last_transition_time: now.clone(),
        }),
    }
}

/// The condition of a type, if it was ever said.
#[must_use]
pub fn condition<'a>(status: &'a SeiNodeStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind)
}

/// Moves a node to a phase, and notes when.
pub fn enter(status: &mut SeiNodeStatus, phase: Phase, now: &Time) {
    if status.phase != Some(phase) {
        status.phase = Some(phase);
        status.phase_transition_time = Some(now.clone());
    }
}

/// The body of a merge patch that turns one status into another, under an optimistic lock; `None`
/// if they are the same.
///
/// A field that went is sent as `null`: leaving it out would leave it standing.
#[must_use]
pub fn patch(
    before: &SeiNodeStatus,
    after: &SeiNodeStatus,
    resource_version: &str,
) -> Option<Value> {
    let difference = difference(&json!(before), &json!(after))?;
    Some(json!({
        "metadata": { "resourceVersion": resource_version },
        "status": difference,
    }))
}

/// RFC 7386, the other way round: objects are gone into, everything else is replaced whole.
fn difference(before: &Value, after: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (before, after) else {
        return (before != after).then(|| after.clone());
    };
    let mut changes = Map::new();
    for (key, value) in new {
        match old.get(key) {
            Some(old) => {
                if let Some(change) = difference(old, value) {
                    changes.insert(key.clone(), change);
                }
            }
            None => {
                changes.insert(key.clone(), value.clone());
            }
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        changes.insert(key.clone(), Value::Null);
    }
    (!changes.is_empty()).then_some(Value::Object(changes))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn say(status: &mut SeiNodeStatus, value: &str, message: &str, second: i64) {
        let message = message.to_owned();
        let statement = Statement { kind: "X", status: value, reason: "R", message };
        state(status, 7, &at(second), statement);
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut status = SeiNodeStatus::default();
        say(&mut status, "True", "one", 1);
        say(&mut status, "True", "two", 2);
        let condition = condition(&status, "X").unwrap().clone();
        assert_eq!((condition.message.as_str(), condition.last_transition_time), ("two", at(1)));
        say(&mut status, "False", "two", 3);
        assert_eq!(status.conditions.len(), 1);
        assert_eq!(status.conditions[0].last_transition_time, at(3));
        assert_eq!(status.conditions[0].observed_generation, Some(7));
    }

    #[test]
    fn no_change_is_no_patch() {
        let mut status = SeiNodeStatus::default();
        say(&mut status, "True", "one", 1);
        assert_eq!(patch(&status, &status.clone(), "5"), None);
    }

    #[test]
    fn what_went_is_null_and_what_stayed_is_not_sent() {
        let before = SeiNodeStatus {
            current_image: Some("v1".into()),
            hold_off_until: Some(at(1)),
            phase: Some(Phase::Running),
            ..SeiNodeStatus::default()
        };
        let after = SeiNodeStatus {
            current_image: Some("v2".into()),
            hold_off_until: None,
            ..before.clone()
        };
        let body = patch(&before, &after, "5").unwrap();
        assert_eq!(
            body,
            json!({
                "metadata": { "resourceVersion": "5" },
                "status": { "currentImage": "v2", "holdOffUntil": null },
            })
        );
    }

    #[test]
    fn lists_are_replaced_whole() {
        let change = difference(
            &json!({ "a": [1, 2], "b": { "c": 1 } }),
            &json!({ "a": [1], "b": { "c": 1 } }),
        );
        assert_eq!(change, Some(json!({ "a": [1] })));
    }
}
