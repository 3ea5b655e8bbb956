//! For each oracle a run that it must flag, and the nearest ones that it must not.

use serde_json::{Value, json};

use super::{
    end::{Difference, end_state},
    testing::{PODS, SETS, Script},
    *,
};
use crate::lag::model::{Author, Change, PatchType, Role, Verb, check};

const MERGE: Verb = Verb::Patch(PatchType::Merge);
const APPLY: Verb = Verb::Patch(PatchType::Apply);

fn set(replicas: u32, image: &str) -> Value {
    json!({"spec": {"replicas": replicas, "image": image}})
}

/// What one built-in oracle alone says of a run. Its step must not make the run an illegal one.
fn says(oracle: BuiltIn, script: Script) -> Option<(usize, String)> {
    let mut oracles = Oracles::new();
    for other in BuiltIn::ALL {
        oracles.without(other);
    }
    oracles.with(oracle);
    let mut run = script.end().finish();
    let before = run.clone();
    let violation = judge(&mut run, &oracles, End::Settled)?;
    check(&run).unwrap();
    let (step, inserted) = run.violations().next().unwrap();
    assert_eq!((inserted, &inserted.oracle), (&violation, &oracle.to_string()));
    assert_eq!(run.steps.len(), before.steps.len() + 1);
    oracles.without(oracle);
    assert_eq!(judge(&mut before.clone(), &oracles, End::Settled), None, "it can be turned off");
    Some((step, violation.text))
}

fn pod(prefix: &str) -> Value {
    json!({
        "metadata": {"generateName": prefix, "labels": {"plan": "6f9619ff-8b86-4011-b42d-00c04fc964ff"}},
        "spec": {"node": "n1"},
    })
}

/// A set and no pods; passes of `n0` read both from the cache.
fn duplicates() -> Script {
    Script::new()
        .given(SETS, "n0", set(1, "v1"))
        .stream(SETS, Role::Store)
        .stream(PODS, Role::Store)
        .pass("n0")
        .read(0, "n0", 0)
        .read(1, "web-a", 0)
        .create(PODS, "web-a", pod("web-"))
        .pass("n0")
        .read(0, "n0", 0)
}

#[test]
fn what_was_created_is_not_created_again_on_the_same_view() {
    let mut other = pod("web-");
    other["metadata"]["labels"]["plan"] = json!("00000000-0000-4000-8000-000000000001");
    let again = duplicates().read(1, "web-a", 0).create(PODS, "web-b", other);
    let (step, text) = says(BuiltIn::FrozenCache, again).unwrap();
    assert_eq!(step, 13, "right behind the second create");
    assert_eq!(
        text,
        "pass 2 creates pods ns/web-b although pass 1 has created ns/web-a with the same body, and saw \
         the same"
    );
}

#[test]
fn a_create_after_something_new_is_no_duplicate() {
    let quiet = |what, script| assert_eq!(says(BuiltIn::FrozenCache, script), None, "{what}");
    let again = |script: Script| script.create(PODS, "web-b", pod("web-"));
    quiet("another body", duplicates().read(1, "web-a", 0).create(PODS, "web-b", pod("job-")));
    quiet("another answer", again(duplicates().read(1, "web-a", 1)));
    quiet("a view that moved", again(duplicates().release(1).read(1, "web-a", 1)));
    // Nobody records what is read of the pods.
    let unread = |role| {
        Script::new().stream(PODS, role).pass("n0").create(PODS, "web-a", pod("web-")).pass("n0")
    };
    quiet("a view that moved, unread", again(unread(Role::Main).release(0)));
    assert!(says(BuiltIn::FrozenCache, again(unread(Role::Main))).is_some());
    let replica = again(unread(Role::Replica).release(0));
    assert!(says(BuiltIn::FrozenCache, replica).is_some(), "the harness's own view is nobody's");
    quiet("a live read between", again(duplicates().read(1, "web-a", 0).get(PODS, "web-a")));
    let other_key = duplicates().pass("n1").read(0, "n0", 0).read(1, "web-a", 0);
    quiet("another key", again(other_key));
    let gone = duplicates().read(1, "web-a", 0).actor("user", PODS, "web-a", None);
    quiet("the first is gone", again(gone));
    quiet("one pass makes two", {
        let script = Script::new().stream(PODS, Role::Store).pass("n0").read(0, "web-a", 0);
        again(script.create(PODS, "web-a", pod("web-")))
    });
    let event = json!({"reason": "Created"});
    let events = Script::new()
        .pass("n0")
        .create("events", "e1", event.clone())
        .pass("n0")
        .create("events", "e2", event);
    quiet("events", events);
    let restarted = Script::new().pass("n0").create(PODS, "web-a", pod("web-")).restart();
    quiet("another process", again(restarted.pass("n0")));
}

/// Somebody scales the set while the cache of the pass is behind.
fn scaled() -> Script {
    Script::new()
        .given(SETS, "n0", set(1, "v1"))
        .stream(SETS, Role::Store)
        .pass("n0")
        .read(0, "n0", 0)
        .actor("user", SETS, "n0", Some(set(3, "v1")))
}

#[test]
fn a_change_of_somebody_else_is_not_undone_unseen() {
    let undone = scaled().write(MERGE, SETS, "n0", json!({}), Some(set(1, "v2")));
    let (step, text) = says(BuiltIn::NoBlindOverwrite, undone).unwrap();
    assert_eq!(step, 6);
    assert_eq!(
        text,
        "statefulsets.apps ns/n0: spec.replicas goes from 3 back to 1, as it was before user changed it \
         at rv 12; pass 1 had seen rv 11 at most"
    );
    // Another change, which leaves the field alone, does not hide it.
    let behind_another = scaled().actor("user", SETS, "n0", Some(set(3, "v3")));
    let undone = behind_another.write(Verb::Update, SETS, "n0", json!({}), Some(set(1, "v3")));
    assert!(says(BuiltIn::NoBlindOverwrite, undone).is_some());
    // A field that was added, and is gone again.
    let mut labelled = set(1, "v1");
    labelled["metadata"]["labels"]["team"] = json!("blue");
    let lost = Script::new()
        .given(SETS, "n0", set(1, "v1"))
        .stream(SETS, Role::Main)
        .pass("n0")
        .actor("user", SETS, "n0", Some(labelled))
        .write(Verb::Update, SETS, "n0", json!({}), Some(set(2, "v1")));
    let (_, text) = says(BuiltIn::NoBlindOverwrite, lost).unwrap();
    assert!(text.contains("metadata.labels.team goes from \"blue\" back to nothing"), "{text}");
    // A pass for another key is somebody else too.
    let other = Script::new()
        .given(SETS, "n0", set(1, "v1"))
        .stream(SETS, Role::Store)
        .pass("n1")
        .write(MERGE, SETS, "n0", json!({}), Some(set(3, "v1")))
        .pass("n0")
        .read(0, "n0", 0)
        .write(MERGE, SETS, "n0", json!({}), Some(set(1, "v1")));
    let (_, text) = says(BuiltIn::NoBlindOverwrite, other).unwrap();
    assert!(text.contains("before pass 1 of sets n1 changed it"), "{text}");
}

#[test]
fn a_write_that_knew_or_that_keeps_what_it_did_not_know_is_no_overwrite() {
    let quiet = |what, script| assert_eq!(says(BuiltIn::NoBlindOverwrite, script), None, "{what}");
    let back = |script: Script| script.write(MERGE, SETS, "n0", json!({}), Some(set(1, "v2")));
    let kept = scaled().write(MERGE, SETS, "n0", json!({}), Some(set(3, "v2")));
    quiet("the field is kept", kept);
    let third = scaled().write(MERGE, SETS, "n0", json!({}), Some(set(5, "v2")));
    quiet("the field gets a value of its own", third);
    quiet("it was seen in the cache", back(scaled().read(0, "n0", 1)));
    quiet("it was seen at the server", back(scaled().get(SETS, "n0")));
    let version = |request: &mut RequestStep| {
        request.request.resource_version_asked = Some("12".to_owned());
    };
    quiet("a precondition", back(scaled()).but(version));
    let tested = |request: &mut RequestStep| {
        request.request.body =
            Some(json!([{"op": "test", "path": "/spec/replicas", "value": 3}, {"op": "replace"}]));
    };
    quiet("a json patch that tests", back(scaled()).but(tested));
    let unread = Script::new().given(SETS, "n0", set(1, "v1")).pass("n0").actor(
        "user",
        SETS,
        "n0",
        Some(set(3, "v1")),
    );
    quiet("nothing was read", back(unread));
    let own = Script::new()
        .given(SETS, "n0", set(1, "v1"))
        .stream(SETS, Role::Store)
        .pass("n0")
        .write(MERGE, SETS, "n0", json!({}), Some(set(3, "v1")))
        .pass("n0")
        .read(0, "n0", 0);
    quiet("its own change", back(own));
    // Of a stream whose reads nobody records, all that was shown may have been read.
    let shown = Script::new()
        .given(SETS, "n0", set(1, "v1"))
        .stream(SETS, Role::Main)
        .pass("n0")
        .actor("user", SETS, "n0", Some(set(3, "v1")))
        .release(0);
    quiet("it was shown", back(shown));
}

#[test]
fn a_stream_of_triggers_alone_shows_no_object() {
    let script = Script::new()
        .given(SETS, "n0", set(1, "v1"))
        .stream(SETS, Role::Main)
        .stream(SETS, Role::Triggers)
        .pass("n0")
        .actor("user", SETS, "n0", Some(set(3, "v1")))
        .release(1)
        .write(MERGE, SETS, "n0", json!({}), Some(set(1, "v2")));
    assert!(says(BuiltIn::NoBlindOverwrite, script).is_some());
}

#[test]
fn an_apply_overwrites_where_it_takes_a_field_from_its_manager() {
    let managed = |replicas: u32, managers: &[(&str, &str)]| {
        let mut object = set(replicas, "v1");
        let entry = |(manager, operation): &(&str, &str)| {
            json!({"manager": manager, "operation": operation,
                   "fieldsV1": {"f:spec": {"f:replicas": {}}}})
        };
        object["metadata"]["managedFields"] = managers.iter().map(entry).collect();
        object
    };
    let applied = |managers: &[(&str, &str)]| {
        Script::new()
            .given(SETS, "n0", managed(1, &[("setup", "Update")]))
            .stream(SETS, Role::Store)
            .pass("n0")
            .read(0, "n0", 0)
            .actor("user", SETS, "n0", Some(managed(3, &[("user", "Update")])))
            .write(APPLY, SETS, "n0", json!({}), Some(managed(1, managers)))
    };
    let forced = says(BuiltIn::NoBlindOverwrite, applied(&[("me", "Apply")]));
    assert!(forced.unwrap().1.contains("spec.replicas goes from 3 back to 1"));
    let shared = applied(&[("me", "Apply"), ("user", "Update")]);
    assert_eq!(says(BuiltIn::NoBlindOverwrite, shared), None);
}

/// The pod that was read is deleted and made anew, unseen.
fn made_anew() -> Script {
    Script::new()
        .given(PODS, "web-0", json!({}))
        .stream(PODS, Role::Store)
        .pass("n0")
        .read(0, "web-0", 0)
        .actor("user", PODS, "web-0", None)
        .actor("sts-controller", PODS, "web-0", Some(json!({})))
}

#[test]
fn a_delete_by_name_hits_the_object_that_was_read() {
    let delete = |script: Script| script.write(Verb::Delete, PODS, "web-0", json!({}), None);
    let (step, text) = says(BuiltIn::UidCare, delete(made_anew())).unwrap();
    assert_eq!(step, 7);
    assert_eq!(
        text,
        "pass 1 deletes pods ns/web-0 by name: that is uid 0000000d-0000-4000-8000-000000000000 now, and it \
         had read uid 0000000b-0000-4000-8000-000000000000"
    );
    let unrecorded = Script::new()
        .given(PODS, "web-0", json!({}))
        .stream(PODS, Role::Main)
        .pass("n0")
        .actor("user", PODS, "web-0", None)
        .actor("sts-controller", PODS, "web-0", Some(json!({})));
    assert!(says(BuiltIn::UidCare, delete(unrecorded)).is_some());
    let evicted = delete(made_anew()).but(|request| {
        request.request.verb = Verb::Create;
        request.request.subresource = Some("eviction".to_owned());
    });
    assert!(says(BuiltIn::UidCare, evicted).unwrap().1.contains("evicts"));
}

#[test]
fn a_delete_that_says_which_object_or_has_seen_the_new_one_is_careful() {
    let quiet = |what, script| assert_eq!(says(BuiltIn::UidCare, script), None, "{what}");
    let with = |script: Script, body: Value| script.write(Verb::Delete, PODS, "web-0", body, None);
    let uid = json!({"preconditions": {"uid": "0000000d-0000-4000-8000-000000000000"}});
    quiet("a uid", with(made_anew(), uid));
    let version = json!({"preconditions": {"resourceVersion": "13"}});
    quiet("a version", with(made_anew(), version));
    quiet("read again", with(made_anew().read(0, "web-0", 2), json!({})));
    quiet("read at the server", with(made_anew().get(PODS, "web-0"), json!({})));
    let same = Script::new()
        .given(PODS, "web-0", json!({}))
        .stream(PODS, Role::Store)
        .pass("n0")
        .read(0, "web-0", 0)
        .actor("kubelet", PODS, "web-0", Some(json!({"status": {"phase": "Running"}})));
    quiet("changed, and the same object", with(same, json!({})));
    let unread = Script::new().given(PODS, "web-0", json!({})).pass("n0");
    quiet("never read", with(unread, json!({})));
    let empty = json!({"preconditions": {"uid": ""}});
    assert!(says(BuiltIn::UidCare, with(made_anew(), empty)).is_some(), "an empty one is none");
}

#[test]
fn what_is_adopted_is_the_object_that_was_read() {
    let owned = |uid: &str| json!({"metadata": {"ownerReferences": [{"name": "n0", "uid": uid}]}});
    let adopt = |script: Script, body: Value, content: Value| {
        script.write(MERGE, PODS, "web-0", body, Some(content))
    };
    let (_, text) = says(BuiltIn::UidCare, adopt(made_anew(), owned("o"), owned("o"))).unwrap();
    assert!(text.starts_with("pass 1 adopts pods ns/web-0 by name: "), "{text}");
    let quiet = |what, script| assert_eq!(says(BuiltIn::UidCare, script), None, "{what}");
    let mut body = owned("o");
    body["metadata"]["uid"] = json!("0000000d-0000-4000-8000-000000000000");
    quiet("a uid", adopt(made_anew(), body, owned("o")));
    quiet(
        "a label alone",
        adopt(made_anew(), json!({}), json!({"metadata": {"labels": {"a": "b"}}})),
    );
    let anew = Script::new()
        .given(PODS, "web-0", owned("o"))
        .stream(PODS, Role::Store)
        .pass("n0")
        .read(0, "web-0", 0)
        .actor("user", PODS, "web-0", None)
        .actor("sts-controller", PODS, "web-0", Some(owned("o")));
    quiet("the owner was there", adopt(anew, json!({}), owned("o")));
}

#[test]
fn a_pass_that_asks_without_end_and_a_run_without_rest_spin() {
    let asking = |times: usize| {
        let script = Script::new().given(SETS, "n0", set(1, "v1")).pass("n0");
        (0..times).fold(script, |script, _| script.get(SETS, "n0"))
    };
    let (step, text) = says(BuiltIn::NoSpin, asking(102)).unwrap();
    assert_eq!(step, 102, "behind the first one too many");
    assert_eq!(
        text,
        "pass 1 of sets n0 made 101 requests, more than 100; the last is get statefulsets.apps"
    );
    assert_eq!(says(BuiltIn::NoSpin, asking(100)), None);
    let two = (0..60).fold(asking(60).pass("n0"), |script, _| script.get(SETS, "n0"));
    assert_eq!(says(BuiltIn::NoSpin, two), None, "each pass counts for itself");
    let mut oracles = Oracles::new();
    oracles.requests_in_a_pass(3);
    assert!(judge(&mut asking(4).finish(), &oracles, End::Settled).is_some());
    let mut run = asking(2).end().finish();
    let violation = judge(&mut run, &oracles, End::Restless).unwrap();
    assert_eq!(
        violation.text,
        "the run did not come to rest in 4 steps with 1 passes and 2 requests"
    );
    assert_eq!(run.violations().next().unwrap().0, 4);
}

/// Two changes by a pass, one by somebody in between.
fn changes() -> Script {
    Script::new()
        .given(SETS, "n0", set(1, "v1"))
        .given(SETS, "n0", set(2, "v1"))
        .stream(SETS, Role::Store)
        .pass("n0")
        .write(MERGE, SETS, "n0", json!({"spec": {"replicas": 3}}), Some(set(3, "v1")))
        .actor("user", SETS, "n0", Some(set(4, "v1")))
        .write(MERGE, SETS, "n0", json!({"spec": {"replicas": 5}}), Some(set(5, "v1")))
        .refused(Verb::Delete, PODS, "web-0", 403)
        .end()
}

fn replicas(truth: &Truth) -> u64 {
    truth.value(SETS, "n0").unwrap()["spec"]["replicas"].as_u64().unwrap()
}

/// Judges by these oracles alone.
fn judged(
    mut run: Run,
    settled: bool,
    add: impl FnOnce(&mut Oracles) -> &mut Oracles,
) -> Option<(usize, String, String)> {
    let mut oracles = Oracles::new();
    add(oracles.without(BuiltIn::NoBlindOverwrite));
    let violation = judge(&mut run, &oracles, End::of(Some(settled)))?;
    check(&run).unwrap();
    let (step, _) = run.violations().next().unwrap();
    Some((step, violation.oracle, violation.text))
}

#[test]
fn never_and_always_are_asked_after_each_change_and_not_in_the_set_up() {
    let run = || changes().finish();
    for (most, step, rv) in [(2, 4, 13), (3, 5, 14), (4, 6, 15)] {
        let expected = |text: String| Some((step, "few".to_owned(), text));
        let when = format!("after statefulsets.apps ns/n0 was MODIFIED at rv {rv}");
        let never = judged(run(), true, |o| o.never("few", move |truth| replicas(truth) > most));
        assert_eq!(never, expected(format!("it is so {when}")));
        let always = judged(run(), true, |o| o.always("few", move |truth| replicas(truth) <= most));
        assert_eq!(always, expected(format!("it is not so {when}")));
    }
    let one = judged(run(), true, |o| o.never("one", |truth| replicas(truth) == 1));
    assert_eq!(one, None, "that was in the middle of the set-up");
    let two = judged(run(), true, |o| o.never("two", |truth| replicas(truth) == 2)).unwrap();
    assert_eq!((two.0, two.2.as_str()), (0, "it is so once the set-up is done"));
    let words = |truth: &Truth| match replicas(truth) {
        3 => Err("three"),
        _ => Ok(()),
    };
    assert_eq!(judged(run(), true, |o| o.always("words", words)).unwrap().2, "three");
    let words = |truth: &Truth| (replicas(truth) == 3).then_some("three");
    assert_eq!(judged(run(), true, |o| o.never("words", words)).unwrap().2, "three");
}

#[test]
fn a_write_is_judged_with_the_state_before_it_and_refused_ones_too() {
    let run = || changes().finish();
    let raises_by_two = |write: &RequestStep, truth: &Truth| {
        let body = write.request.body.as_ref().unwrap();
        let asked = body.pointer("/spec/replicas").and_then(Value::as_u64);
        asked.is_some_and(|asked| asked >= replicas(truth) + 2)
    };
    // From the state at the beginning, the second write would.
    assert_eq!(judged(run(), true, |o| o.never_write("raises", raises_by_two)), None);
    let raises_at_all = |write: &RequestStep, truth: &Truth| {
        let body = write.request.body.as_ref().unwrap();
        let asked = body.pointer("/spec/replicas").and_then(Value::as_u64);
        (replicas(truth) == 4 && asked.is_some_and(|asked| asked > 4)).then_some("it raises")
    };
    let found = judged(run(), true, |o| o.never_write("raises", raises_at_all));
    assert_eq!(found, Some((6, "raises".to_owned(), "it raises".to_owned())));
    let deletes = |write: &RequestStep, _: &Truth| write.request.verb == Verb::Delete;
    let found = judged(run(), true, |o| o.never_write("deletes", deletes));
    let text = "it was sent: delete pods/web-0".to_owned();
    assert_eq!(found, Some((7, "deletes".to_owned(), text)));
}

#[test]
fn the_end_is_asked_about_when_all_is_done() {
    let run = || changes().finish();
    let last = run().steps.len();
    let five = |truth: &Truth| replicas(truth) == 5;
    assert_eq!(judged(run(), true, |o| o.after_settle("five", five)), None);
    let found = judged(run(), true, |o| o.after_settle("four", |truth| replicas(truth) == 4));
    let text = "it is not so when all was done".to_owned();
    assert_eq!(found, Some((last, "four".to_owned(), text)));
    let restless = judged(run(), false, |o| o.after_settle("five", five)).unwrap();
    assert_eq!(restless.1, "no spin");
    let alone = |o: &mut Oracles| -> Option<()> {
        o.without(BuiltIn::NoSpin).after_settle("five", five);
        None
    };
    let restless = judged(run(), false, |o| {
        alone(o);
        o
    });
    assert_eq!(restless.unwrap().1, "five", "it is not passed over in silence");
}

#[test]
fn the_first_violation_is_the_one_of_the_earliest_step() {
    let run = || changes().finish();
    let at = |replicas_: u64| move |truth: &Truth| replicas(truth) == replicas_;
    let found = judged(run(), true, |o| o.never("late", at(5)).never("early", at(4)));
    assert_eq!(found.unwrap().1, "early");
    let found = judged(run(), true, |o| o.never("first", at(4)).never("second", at(4)));
    assert_eq!(found.unwrap().1, "first");
    let spin = |o: &mut Oracles, most| {
        o.requests_in_a_pass(most).never("late", at(5));
    };
    let found = judged(run(), true, |o| {
        spin(o, 0);
        o
    });
    assert_eq!(found.unwrap().1, "no spin");
    let found = judged(run(), true, |o| {
        spin(o, 1);
        o
    });
    assert_eq!(found.unwrap().1, "late", "of one step, what the test says comes first");
}

#[test]
fn an_oracle_that_cannot_read_an_object_says_so() {
    use k8s_openapi::api::apps::v1::StatefulSet;
    let strange = Script::new().given(SETS, "n0", json!({"spec": {"replicas": "many"}})).finish();
    let found = judged(strange, true, |o| {
        o.never("gone", |truth| {
            truth.get::<StatefulSet>("n0").is_none() && truth.revision().is_none()
        })
    });
    let (_, oracle, text) = found.unwrap();
    assert_eq!(oracle, "gone");
    assert!(
        text.starts_with("this oracle could not be judged: statefulsets.apps ns/n0 "),
        "{text}"
    );
}

#[test]
fn a_change_is_reported_behind_the_request_that_made_it() {
    // The actor is recorded while the request is under way, whose change came before.
    let mut run = changes().finish();
    let position = run.steps.iter().position(|step| matches!(step.action, Action::Environment(_)));
    let position = position.unwrap();
    run.steps.swap(position - 1, position);
    let Action::Request(request) = &mut run.steps[position].action else { panic!("no request") };
    assert_eq!(request.sent, position - 1);
    for commit in &mut run.history {
        if matches!(commit.by, Author::Actor(_)) {
            commit.step = Some(position - 1);
        }
    }
    check(&run).unwrap();
    let found = judged(run.clone(), true, |o| o.never("three", |truth| replicas(truth) == 3));
    assert_eq!(found.unwrap().0, position + 1);
    let found = judged(run, true, |o| o.never("four", |truth| replicas(truth) == 4));
    assert_eq!(found.unwrap().0, position);
}

#[test]
fn each_place_for_a_violation_leaves_a_legal_run_that_differs_in_nothing_else() {
    let run = made_anew()
        .write(Verb::Delete, PODS, "web-0", json!({}), None)
        .release(0)
        .get(PODS, "web-0")
        .end()
        .finish();
    let certificate = check(&run).unwrap();
    for at in 0..=run.steps.len() {
        let mut with = run.clone();
        insert(&mut with, Found::new(at, "here", String::new()));
        let other = check(&with).unwrap();
        assert_eq!(
            (other.views.len(), other.released),
            (certificate.views.len(), certificate.released)
        );
        let (step, _) = with.violations().next().unwrap();
        assert_eq!(step, at);
        with.steps.remove(at);
        for (one, other) in run.requests().zip(with.requests()) {
            let moved = usize::from(one.1.sent >= at);
            assert_eq!(one.1.sent + moved, other.1.sent);
        }
        for (one, other) in run.history.iter().zip(&with.history) {
            let moved = |step| if step >= at { step + 1 } else { step };
            assert_eq!(one.step.map(moved), other.step);
        }
    }
    assert_eq!(run.history.last().unwrap().change, Change::Deleted);
}

const OWNER: &str = "0000000b-0000-4000-8000-000000000000";

/// A set, and pods that the server names; each as the time and the server make it.
fn end_of(first: &str, second: &str, plan: &str, image: &str) -> Value {
    let pod = |node: &str| {
        json!({
            "metadata": {
                "generateName": "web-", "labels": {"plan": plan},
                "ownerReferences": [{"kind": "StatefulSet", "name": "n0", "uid": OWNER}],
            },
            "spec": {"node": node},
            "status": {"since": "2026-01-31T12:00:00Z", "observedGeneration": 4},
        })
    };
    let mut set = set(1, image);
    set["status"] =
        json!({"plan": plan, "pods": [first, second], "note": format!("{first} in ns")});
    let script = Script::new()
        .given(SETS, "n0", set)
        .pass("n0")
        .create(PODS, first, pod("n1"))
        .actor("scheduler", PODS, first, Some(pod("n1")))
        .create(PODS, second, pod("n2"))
        .actor("scheduler", PODS, second, Some(pod("n2")))
        .create("events", first, json!({"metadata": {"generateName": "e"}, "reason": first}))
        .end();
    end_state(&script.finish(), None)
}

#[test]
fn an_end_has_nothing_in_it_that_two_equal_runs_do_not_share() {
    let plans = ["6f9619ff-8b86-4011-b42d-00c04fc964ff", "00000000-0000-4000-8000-000000000009"];
    let end = end_of("web-a", "web-b", plans[0], "v1");
    let pod = |node: &str| {
        json!({
            "metadata": {
                "name": "web-<made up>", "namespace": "<namespace>", "generateName": "web-",
                "labels": {"plan": "<uuid 1>"},
                "ownerReferences": [{"kind": "StatefulSet", "name": "n0", "uid": "<uid of statefulsets.apps/n0>"}],
            },
            "spec": {"node": node}, "status": {"since": "<time>"},
        })
    };
    let names = ["web-<made up>", "web-<made up>"];
    assert_eq!(
        end,
        json!({
            "pods": {"web-<made up>": pod("n1"), "web-<made up> (2)": pod("n2")},
            "statefulsets.apps": {"n0": {
                "metadata": {"name": "n0", "namespace": "<namespace>"},
                "spec": {"replicas": 1, "image": "v1"},
                "status": {"plan": "<uuid 1>", "pods": names, "note": "web-<made up> in <namespace>"},
            }},
        })
    );
    // Other names in another order, another plan.
    assert_eq!(end, end_of("web-z", "web-c", plans[1], "v1"));
    assert_ne!(end, end_of("web-a", "web-b", plans[0], "v2"));
}

#[test]
fn an_owner_that_is_gone_is_told_from_one_that_is_there() {
    let owned = || json!({"metadata": {"ownerReferences": [{"name": "n0", "uid": OWNER}]}});
    let there = Script::new().given(SETS, "n0", set(1, "v1")).given(PODS, "web-0", owned());
    let anew = Script::new()
        .given(SETS, "n0", set(1, "v1"))
        .given(PODS, "web-0", owned())
        .actor("user", SETS, "n0", None)
        .actor("user", SETS, "n0", Some(set(1, "v1")));
    let mut ends = Ends::default();
    assert_eq!(ends.compare("", end_state(&there.finish(), None)), None);
    let Difference { path, first, this } =
        ends.compare("", end_state(&anew.finish(), None)).unwrap();
    assert_eq!(path, "pods/web-0.metadata.ownerReferences[0].uid");
    assert_eq!(first, Some(json!("<uid of statefulsets.apps/n0>")));
    assert_eq!(this, Some(json!("<uid of a former statefulsets.apps/n0>")));
}

#[test]
fn runs_of_one_group_must_end_alike() {
    let ending = |replicas: u32| {
        let script = Script::new().given(SETS, "n0", set(1, "v1")).pass("n0");
        script.write(MERGE, SETS, "n0", json!({}), Some(set(replicas, "v1"))).end().finish()
    };
    let mut ends = Ends::default();
    let mut oracles = Oracles::new();
    let mut judged = |oracles: &Oracles, group: &str, replicas| {
        let mut run = ending(replicas);
        let violation = judge_end(&mut run, oracles, &mut ends, group);
        check(&run).unwrap();
        assert_eq!(run.violations().next().map(|(step, _)| step), violation.as_ref().map(|_| 3));
        violation.map(|violation| (violation.oracle, violation.text))
    };
    assert_eq!(judged(&oracles, "a", 2), None);
    assert_eq!(judged(&oracles, "a", 2), None);
    assert_eq!(judged(&oracles, "b", 3), None, "the first of its group");
    let text = "statefulsets.apps/n0.spec.replicas ends as 3, and as 2 in the first run".to_owned();
    assert_eq!(judged(&oracles, "a", 3), Some(("same end".to_owned(), text)));
    oracles.compare_ends(|_, object| {
        object["spec"].as_object_mut().unwrap().remove("replicas");
        true
    });
    assert_eq!(judged(&oracles, "c", 2), None);
    assert_eq!(judged(&oracles, "c", 3), None, "what the projection cuts away may differ");
    oracles.compare_ends(|resource, _| resource != SETS);
    assert_eq!(judged(&oracles, "d", 2), None);
    assert_eq!(judged(&oracles, "d", 3), None, "what the projection refuses does not count");
    let mut off = Oracles::new();
    off.without(BuiltIn::SameEnd);
    assert_eq!(judged(&off, "a", 3), None);
}

#[test]
fn an_object_too_many_is_a_difference() {
    let plain = |script: Script| end_state(&script.finish(), None);
    let one = || Script::new().given(SETS, "n0", set(1, "v1"));
    let mut ends = Ends::default();
    assert_eq!(ends.compare("", plain(one())), None);
    let found = ends.compare("", plain(one().given(PODS, "web-0", json!({})))).unwrap();
    assert_eq!((found.path.as_str(), found.first), ("pods", None));
    let mut ends = Ends::default();
    let two = || one().given(PODS, "a", json!({})).given(PODS, "b", json!({}));
    assert_eq!(ends.compare("", plain(two())), None);
    let found = ends.compare("", plain(one().given(PODS, "a", json!({})))).unwrap();
    assert_eq!((found.path.as_str(), found.this), ("pods/b", None));
}
