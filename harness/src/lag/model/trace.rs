//! What happened in a run, without what differs between two runs of one schedule.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Action, Run, is_for_people};

/// A line for each step, such that two runs of one schedule have equal lines.
///
/// Times are left out. Resource versions, UIDs, namespaces and names that the server made up are replaced
/// by the order in which they were first seen, and so is every UUID, wherever it stands in a text: code
/// under test makes them up too. Moments inside objects are replaced by `<time>`; the text of a violation
/// is left out, its oracle is not.
///
/// ```
/// use laggard::lag::model::{Action, Fault, Run, Step, normalised};
/// use std::time::Duration;
///
/// let mut run = Run::new("a test");
/// run.steps.push(Step::new(Duration::from_millis(7), Action::Fault(Fault::Restart)));
/// assert_eq!(normalised(&run), [r#"{"fault":"restart"}"#]);
/// ```
#[must_use]
pub fn normalised(run: &Run) -> Vec<String> {
    let mut names = Names::of(run);
    run.steps
        .iter()
        .map(|step| {
            let mut action = step.action.clone();
            if let Action::Violation(violation) = &mut action {
                violation.text.clear();
            }
            // Every map in it has text for keys, which is all that this conversion can fail for.
            let mut value = serde_json::to_value(&action).unwrap_or_default();
            names.replace(&mut value);
            match step.pass {
                Some(pass) => format!("pass {pass}: {value}"),
                None => value.to_string(),
            }
        })
        .collect()
}

/// What has been seen, and what it is called instead.
struct Names {
    versions: BTreeMap<String, usize>,
    uids: BTreeMap<String, usize>,
    /// Names and namespaces, the longest first.
    texts: Vec<(String, String)>,
}

impl Names {
    fn of(run: &Run) -> Self {
        let mut texts: Vec<(String, String)> = Vec::new();
        let mut add = |from: &str, to: String| {
            if !from.is_empty() && texts.iter().all(|(known, _)| known != from) {
                texts.push((from.to_owned(), to));
            }
        };
        let (mut namespaces, mut made) = (BTreeMap::new(), BTreeMap::new());
        for commit in &run.history {
            if let Some(namespace) = &commit.key.namespace {
                let number = ordinal(&mut namespaces, namespace);
                add(namespace, format!("<namespace {number}>"));
            }
            let prefix = commit
                .object
                .as_ref()
                .and_then(|object| object.pointer("/metadata/generateName"))
                .and_then(Value::as_str);
            if let Some(prefix) = prefix.filter(|prefix| commit.key.name.starts_with(prefix)) {
                let number = ordinal(&mut made, &commit.key.name);
                add(&commit.key.name, format!("{prefix}<{number}>"));
            }
        }
        // Clients name their Events themselves, by the time. Source: client-go and kube, `events::Recorder`.
        let mut events = BTreeMap::new();
        for request in run.requests().map(|(_, step)| &step.request) {
            let is_event = is_for_people(&request.group, &request.resource);
            if let Some(name) = request.name.as_deref().filter(|_| is_event) {
                let number = ordinal(&mut events, name);
                add(name, format!("<event {number}>"));
            }
        }
        texts.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        Self { versions: BTreeMap::new(), uids: BTreeMap::new(), texts }
    }

    fn replace(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for left_out in ["started", "finished"] {
                    fields.remove(left_out);
                }
                for (field, value) in fields.iter_mut() {
                    match (field.as_str(), value) {
                        (
                            "resource_version"
                            | "resourceVersion"
                            | "resource_version_asked"
                            | "resource_version_answered"
                            | "exact"
                            | "not_older_than",
                            Value::String(version),
                        ) if version.parse::<u64>().is_ok_and(|version| version > 0) => {
                            *version = format!("<rv {}>", ordinal(&mut self.versions, version));
                        }
                        ("uid", Value::String(uid)) => {
                            *uid = format!("<uid {}>", ordinal(&mut self.uids, uid));
                        }
                        (_, value) => self.replace(value),
                    }
                }
                rename_fields(fields, |field| self.renamed(field));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.replace(item)),
            Value::String(text) => {
                if is_moment(text) {
                    "<time>".clone_into(text);
                    return;
                }
                *text = self.renamed(text);
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn renamed(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for (from, to) in &self.texts {
            text = replace_word(&text, from, to);
        }
        let uids = &mut self.uids;
        replace_uuids(&text, |uuid| format!("<uid {}>", ordinal(uids, uuid)))
    }
}

/// Field names can hold names too: `k:{"uid":"…"}` in managed fields, annotations, maps by name.
pub(crate) fn rename_fields(
    fields: &mut Map<String, Value>,
    mut rename: impl FnMut(&str) -> String,
) {
    let renamed = fields.keys().map(|field| (field.clone(), rename(field)));
    let renamed: Vec<(String, String)> = renamed.filter(|(field, new)| field != new).collect();
    for (field, new) in renamed {
        if let Some(value) = fields.remove(&field) {
            fields.insert(new, value);
        }
    }
}

fn ordinal(seen: &mut BTreeMap<String, usize>, text: &str) -> usize {
    let next = seen.len() + 1;
    *seen.entry(text.to_owned()).or_insert(next)
}

/// Replaces `word` where it is not a part of a longer word.
pub(crate) fn replace_word(text: &str, word: &str, by: &str) -> String {
    let inside = |character: Option<char>| character.is_some_and(char::is_alphanumeric);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let last = before.chars().next_back().or_else(|| out.chars().next_back());
        out.push_str(before);
        let part = inside(last) || inside(after.chars().next());
        out.push_str(if part { word } else { by });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Replaces each UUID that is not a part of a longer word.
pub(crate) fn replace_uuids(text: &str, mut by: impl FnMut(&str) -> String) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    // Where what is not copied yet begins, and the first place at which a word can begin.
    let (mut copied, mut at) = (0, 0);
    while at + UUID.len() <= bytes.len() {
        let end = at + UUID.len();
        let inside = |index: Option<usize>| {
            index.and_then(|index| bytes.get(index)).is_some_and(u8::is_ascii_alphanumeric)
        };
        if is_uuid(&bytes[at..end]) && !inside(at.checked_sub(1)) && !inside(Some(end)) {
            // It is ASCII, so both of its ends are ends of characters.
            out.push_str(&text[copied..at]);
            out.push_str(&by(&text[at..end]));
            (copied, at) = (end, end);
        } else {
            at += 1;
        }
    }
    out.push_str(&text[copied..]);
    out
}

const UUID: &[u8] = b"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

/// Whether all of it is a UUID.
pub(crate) fn is_uuid(bytes: &[u8]) -> bool {
    bytes.len() == UUID.len()
        && bytes.iter().zip(UUID).all(|(byte, form)| match form {
            b'x' => byte.is_ascii_hexdigit(),
            _ => byte == form,
        })
}

/// Such as `2026-01-31T12:00:00Z`, with or without a fraction.
pub(crate) fn is_moment(text: &str) -> bool {
    const FORM: &[u8] = b"0000-00-00T00:00:00";
    let bytes = text.as_bytes();
    bytes.len() > FORM.len()
        && bytes.last() == Some(&b'Z')
        && bytes.iter().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            other => byte == other,
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::{
        super::{
            Author, CachedRead, Change, Commit, EnvironmentStep, ObjectKey, Outcome, Query,
            Release, Request, RequestStep, Seen, ShownEvent, Source, Step, Verb,
        },
        *,
    };

    /// A run in which a pod with a made-up name is read, then shown.
    fn run(namespace: &str, name: &str, version: &str, uid: &str, position: usize) -> Run {
        let key = ObjectKey::namespaced(namespace, name);
        let mut run = Run::new("r");
        run.history.push(Commit {
            resource_version: version.to_owned(),
            resource: "pods".to_owned(),
            key: key.clone(),
            uid: None,
            change: Change::Added,
            by: Author::SetUp,
            step: None,
            object: Some(json!({"metadata": {"generateName": "web-"}})),
        });
        let seen = Seen {
            key: key.clone(),
            resource_version: version.to_owned(),
            uid: Some(uid.to_owned()),
            generation: None,
        };
        let read = CachedRead {
            stream: 0,
            incarnation: 1,
            position,
            query: Query::Get(key.clone()),
            answer: vec![seen],
            site: None,
            behind: 0,
            stale: false,
            point: None,
        };
        let event = ShownEvent { change: Change::Added, key, resource_version: version.to_owned() };
        let release = Release { stream: 0, incarnation: 1, events: vec![event], point: None };
        let at = Duration::from_millis(version.len() as u64);
        run.steps.push(Step::in_pass(at, 1, Action::Read(read)));
        run.steps.push(Step::new(at, Action::Release(release)));
        run
    }

    #[test]
    fn two_runs_of_one_schedule_have_equal_lines_and_another_schedule_has_not() {
        let one = normalised(&run("lw-abc", "web-x7k", "17", "u-1", 0));
        assert_eq!(one, normalised(&run("lw-xyz", "web-q2p", "4711", "u-2", 0)));
        assert_ne!(one, normalised(&run("lw-abc", "web-x7k", "17", "u-1", 1)));
        assert!(one[0].contains(r#""name":"web-<1>""#), "{}", one[0]);
        assert!(one[0].contains(r#""namespace":"<namespace 1>""#), "{}", one[0]);
        assert!(one[1].contains(r#""resource_version":"<rv 1>""#), "{}", one[1]);
    }

    #[test]
    fn a_uuid_is_replaced_wherever_it_stands() {
        let (one, two) =
            ("6f9619ff-8b86-4011-b42d-00c04fc964ff", "00000000-0000-4000-8000-000000000001");
        let line = |plan: &str, other: &str| {
            let mut run = run("ns", "web-x7k", "17", plan, 0);
            let body = json!({
                "status": {"plan": plan, "note": format!("é plan-{plan}, then {other}.")},
                format!("k:{{\"uid\":\"{plan}\"}}"): {},
            });
            run.steps.push(Step::new(
                Duration::ZERO,
                Action::Environment(EnvironmentStep {
                    actor: "user".to_owned(),
                    text: body.to_string(),
                    commits: Vec::new(),
                }),
            ));
            normalised(&run)
        };
        assert_eq!(line(one, two), line(two, one));
        assert_ne!(line(one, two), line(one, one), "which of them are the same is not lost");
        let last = line(one, two).pop().unwrap();
        assert!(last.contains("é plan-<uid 1>, then <uid 2>."), "{last}");
        for no_uuid in [&one[1..], &format!("a{one}"), &format!("{one}0")] {
            assert_eq!(replace_uuids(no_uuid, |_| "X".to_owned()), no_uuid);
        }
    }

    #[test]
    fn field_names_are_replaced_as_their_values_are() {
        let uuid = "6f9619ff-8b86-4011-b42d-00c04fc964ff";
        let mut value =
            json!({"uid": uuid, "f": {format!("k:{{\"uid\":\"{uuid}\"}}"): {}, "g": 1}});
        Names::of(&Run::new("r")).replace(&mut value);
        assert_eq!(value, json!({"uid": "<uid 1>", "f": {"k:{\"uid\":\"<uid 1>\"}": {}, "g": 1}}));
    }

    #[test]
    fn an_event_is_called_by_its_number_and_not_by_the_time() {
        let line = |name: &str, group: &str| {
            let mut run = run("ns", "web-x7k", "17", "u-1", 0);
            run.steps
                .push(Step::new(Duration::ZERO, Action::Request(Box::new(event(name, group)))));
            normalised(&run).pop().unwrap()
        };
        for group in ["", "events.k8s.io"] {
            let one = line("n0.18ec675633af60f5", group);
            assert_eq!(one, line("n0.18ec6756703b7df6", group));
            assert!(one.contains(r#"{"metadata":{"name":"<event 1>"}}"#), "{one}");
        }
        let other = |name: &str| line(name, "example.com");
        assert_ne!(other("n0.18ec675633af60f5"), other("n0.18ec6756703b7df6"), "another kind");
    }

    fn event(name: &str, group: &str) -> RequestStep {
        let request = Request {
            path: "/events".to_owned(),
            group: group.to_owned(),
            namespace: Some("ns".to_owned()),
            name: Some(name.to_owned()),
            outcome: Outcome::Status(201),
            pass: Some(1),
            ordinal: 1,
            body: Some(json!({"metadata": {"name": name}})),
            ..Request::sample(1, Verb::Create, "events")
        };
        RequestStep { request, sent: 0, source: Source::Unobserved, reply: Vec::new() }
    }

    #[test]
    fn a_name_is_replaced_as_a_word_and_a_moment_whole() {
        assert_eq!(replace_word("/n/pods/n-0/nn", "n", "X"), "/X/pods/X-0/nn");
        assert!(is_moment("2026-01-31T12:00:00Z") && is_moment("2026-01-31T12:00:00.123456Z"));
        assert!(!is_moment("2026-01-31") && !is_moment("2026-01-31T12:00:00"));
    }
}
