//! One legal run, and for each rule the runs that break exactly it.

use std::time::Duration;

use serde_json::json;

use super::{
    super::{
        AnsweredBy, Author, CachedRead, Change, Commit, EnvironmentStep, Identity, ListEnd,
        ListStart, ListVersion, ObjectKey, Outcome, PassStart, PatchType, Query, Reference,
        Release, Representation, Request, RequestStep, Role, Seen, ShownEvent, Source, Step,
        StreamRecord, Trigger, Verb,
    },
    *,
};

const STS: &str = "statefulsets.apps";
/// The streams of the run: a controller's own, its trigger stream, a second store of the first kind, and
/// one with a selector.
const MAIN: usize = 0;
const OWNED: usize = 1;
const SECOND: usize = 2;
const SELECTED: usize = 3;

/// The indexes of the steps that the tests change.
const APPLY: usize = 10;
const STALE: usize = 11;
const KUBELET: usize = 12;
const RELEASE_POD: usize = 13;
const TRIGGER_POD: usize = 14;
const RELEASE_MAIN: usize = 15;
const TRIGGER_MAIN: usize = 16;
const READ_SECOND: usize = 17;
const BOOKMARK: usize = 18;
const RESUME: usize = 19;
const GET_POD: usize = 20;
const NO_OP: usize = 22;
const SELECTED_RELEASE: usize = 23;
const PASS_END: usize = 24;
const RELIST_START: usize = 25;
const RELIST_END: usize = 26;
const ANY_LIST: usize = 28;

fn legal() -> Run {
    let mut run = Run::new("legal");
    run.streams = vec![
        stream("apps", "statefulsets", 1, Role::Main, None),
        stream("", "pods", 1, Role::Triggers, None),
        stream("apps", "statefulsets", 2, Role::Store, None),
        stream("", "pods", 2, Role::Store, Some("ready=yes")),
    ];
    run.history = vec![
        commit(STS, "a", "1", Change::Added, Author::SetUp, None, "no"),
        commit("pods", "p", "2", Change::Added, Author::SetUp, None, "yes"),
        commit("pods", "q", "3", Change::Added, Author::SetUp, None, "no"),
        commit(STS, "a", "4", Change::Modified, Author::Request(1), Some(APPLY), "no"),
        commit("pods", "p", "5", Change::Modified, kubelet(), Some(KUBELET), "no"),
        commit("pods", "q", "6", Change::Modified, kubelet(), Some(KUBELET), "yes"),
    ];
    let actions = vec![
        start(MAIN, 1, ListVersion::Consistent),
        end(MAIN, 1, "3", &[("a", "1")]),
        start(SECOND, 1, ListVersion::Any),
        end(SECOND, 1, "1", &[("a", "1")]),
        start(OWNED, 1, ListVersion::Consistent),
        trigger(OWNED, "p", "2", true),
        end(OWNED, 1, "3", &[("p", "2"), ("q", "3")]),
        start(SELECTED, 1, ListVersion::Exact("3".to_owned())),
        end(SELECTED, 1, "3", &[("p", "2")]),
        pass_start(1, "a"),
        // APPLY
        write(1, 10, Verb::Patch(PatchType::Apply), "a", 200, &[("a", "4")]),
        read(MAIN, 1, 0, get("a"), &[("a", "1")]),
        Action::Environment(EnvironmentStep {
            actor: "kubelet".to_owned(),
            text: "moves readiness from p to q".to_owned(),
            commits: vec![reference("pods", "5"), reference("pods", "6")],
        }),
        release(OWNED, 1, &[(Change::Modified, "p", "5"), (Change::Modified, "q", "6")]),
        trigger(OWNED, "p", "5", false),
        // RELEASE_MAIN
        release(MAIN, 1, &[(Change::Modified, "a", "4")]),
        trigger(MAIN, "a", "4", false),
        read(SECOND, 1, 1, Query::All, &[("a", "4")]),
        Action::Bookmark { stream: MAIN, resource_version: "6".to_owned() },
        Action::Resume { stream: MAIN, resource_version: "6".to_owned() },
        // GET_POD
        live(2, 20, Verb::Get, Some("p"), 200, Source::Live, &[("p", "5")]),
        write(3, 21, Verb::Update, "a", 409, &[]),
        write(4, 22, Verb::Patch(PatchType::Apply), "a", 200, &[("a", "4")]),
        release(SELECTED, 1, &[(Change::Deleted, "p", "5"), (Change::Added, "q", "6")]),
        Action::PassEnd { pass: 1, outcome: "await change".to_owned() },
        // RELIST_START: time travel, as a list at version 0 may show it.
        start(MAIN, 2, ListVersion::Any),
        end(MAIN, 2, "2", &[("a", "1")]),
        read(MAIN, 2, 0, get("a"), &[("a", "1")]),
        // ANY_LIST
        live(5, 28, Verb::List, None, 200, Source::AnyVersion, &[("p", "2"), ("q", "3")]),
        Action::Fault(Fault::Restart),
        start(MAIN, 3, ListVersion::NotOlderThan("4".to_owned())),
        end(MAIN, 3, "4", &[("a", "4")]),
        pass_start(2, "a"),
        read(MAIN, 3, 0, Query::Labels("ready!=yes".to_owned()), &[("a", "4")]),
    ];
    let mut pass = None;
    for action in actions {
        let started = if let Action::PassStart(start) = &action { Some(start.pass) } else { None };
        pass = started.or(pass).filter(|_| !matches!(action, Action::Fault(_)));
        let ended = matches!(action, Action::PassEnd { .. });
        run.steps.push(Step { at: Duration::ZERO, pass, action });
        pass = pass.filter(|_| !ended);
    }
    run
}

#[test]
fn a_legal_run_has_a_certificate_that_places_each_view() {
    let certificate = check(&legal()).unwrap();
    assert_eq!((certificate.commits, certificate.released), (6, 5));
    let stale = &certificate.views[0];
    assert_eq!((stale.step, stale.position, stale.available), (STALE, 0, 1));
    assert_eq!(stale.shown.as_deref(), Some("3"));
    assert_eq!(
        stale.to_string(),
        "statefulsets.apps stream at position 0 of 1; held event rv 4 MODIFIED by #1"
    );
    assert_eq!(certificate.views.len(), 4);
    assert_eq!(certificate.views[1].held, None);
    assert_eq!(certificate.views[1].stream, "statefulsets.apps#2");
}

/// Each changes the legal run in one place.
type Break = (Axiom, &'static str, fn(&mut Run));

#[test]
fn a_run_that_breaks_one_rule_is_rejected_by_its_name() {
    let breaks: &[Break] = &[
        (Axiom::History, "a revision goes back", |run| {
            run.history[3].resource_version = "1".to_owned();
        }),
        (Axiom::History, "a change of an object that is not there", |run| {
            run.history[0].change = Change::Modified;
        }),
        (Axiom::History, "an object that is added twice", |run| {
            run.history[3].change = Change::Added;
        }),
        (Axiom::History, "a uid changes in place", |run| {
            run.history[0].uid = Some("u1".to_owned());
            run.history[3].uid = Some("u2".to_owned());
        }),
        (Axiom::History, "commits out of step", |run| run.history[5].step = Some(KUBELET - 1)),
        (Axiom::History, "a selector over an object that was not kept", |run| {
            run.history[1].object = None;
        }),
        (Axiom::Prefix, "permuted events", |run| events(run, RELEASE_POD).swap(0, 1)),
        (Axiom::Prefix, "a gap", |run| drop(events(run, RELEASE_POD).remove(0))),
        (Axiom::Prefix, "a duplicate", |run| {
            let event = events(run, RELEASE_POD)[0].clone();
            events(run, RELEASE_POD).insert(0, event);
        }),
        (Axiom::Prefix, "an event that the server never made", |run| {
            events(run, RELEASE_POD)[0].resource_version = "99".to_owned();
        }),
        (Axiom::Prefix, "a change of another kind than it was", |run| {
            events(run, SELECTED_RELEASE)[0].change = Change::Modified;
        }),
        (Axiom::Prefix, "an answer of another position", |run| {
            the_read(run, STALE).answer[0].resource_version = "4".to_owned();
        }),
        (Axiom::Prefix, "an object that is left out of an answer", |run| {
            the_read(run, READ_SECOND).answer.clear();
        }),
        (Axiom::Prefix, "a trigger stream that triggers for what it has not shown", |run| {
            run.steps.swap(RELEASE_POD, TRIGGER_POD);
        }),
        (Axiom::Prefix, "a list of a state that never was", |run| {
            the_end(run, RELIST_END).objects[0].resource_version = "4".to_owned();
        }),
        (Axiom::Prefix, "a watch that goes on further than its client knows", |run| {
            set_resume(run, "7");
        }),
        (Axiom::Available, "an event before its commit", |run| {
            let release = run.steps[RELEASE_POD].clone();
            run.steps[STALE] = release;
            run.steps[RELEASE_POD] = environment_without_commits();
        }),
        (Axiom::Available, "a read of an event before its commit", |run| {
            the_read(run, STALE).position = 2;
        }),
        (Axiom::Available, "a list of what is not committed yet", |run| {
            the_end(run, 1).resource_version = "4".to_owned();
            the_end(run, 1).objects[0].resource_version = "4".to_owned();
        }),
        (Axiom::Monotone, "a read behind what the client was given", |run| {
            run.steps[READ_SECOND].action = read(MAIN, 1, 0, get("a"), &[("a", "1")]);
        }),
        (Axiom::Monotone, "a read behind an earlier read", |run| {
            run.steps[BOOKMARK].action = read(SECOND, 1, 0, get("a"), &[("a", "1")]);
        }),
        (Axiom::Monotone, "a read of an incarnation that is over", |run| {
            the_read(run, RELIST_END + 1).incarnation = 1;
        }),
        (Axiom::Monotone, "a watch that goes on behind what its client knows", |run| {
            set_resume(run, "4");
        }),
        (Axiom::Monotone, "an incarnation that begins again", |run| {
            run.steps[RELIST_START].action = start(MAIN, 1, ListVersion::Any);
        }),
        (Axiom::FreshStart, "a consistent list of the past", |run| {
            run.steps[RELIST_START].action = start(MAIN, 2, ListVersion::Consistent);
        }),
        (Axiom::FreshStart, "a list that is not exactly what was asked for", |run| {
            run.steps[RELIST_START].action = start(MAIN, 2, ListVersion::Exact("1".to_owned()));
        }),
        (Axiom::FreshStart, "a list older than asked for", |run| {
            run.steps[RELIST_START].action =
                start(MAIN, 2, ListVersion::NotOlderThan("4".to_owned()));
        }),
        (Axiom::FreshStart, "a cache that outlives its process", |run| {
            run.steps.truncate(ANY_LIST + 2);
            run.steps.push(outside(read(MAIN, 2, 0, get("a"), &[("a", "1")])));
        }),
        (Axiom::AtomicInit, "a read of a list that is not complete", |run| {
            run.steps[READ_SECOND].action = start(SECOND, 2, ListVersion::Any);
            run.steps[BOOKMARK].action = read(SECOND, 2, 0, Query::Filtered, &[]);
        }),
        (Axiom::AtomicInit, "something in a store before its first list", |run| {
            run.steps[0].action = read(MAIN, 0, 0, get("a"), &[("a", "1")]);
        }),
        (Axiom::AtomicInit, "half a list", |run| drop(the_end(run, 6).objects.pop())),
        (Axiom::AtomicInit, "events of a list that is not complete", |run| {
            run.steps.swap(RELIST_END, RELIST_START - 1);
            run.steps[RELIST_END].action = release(MAIN, 2, &[(Change::Modified, "a", "4")]);
            run.steps.truncate(RELIST_END + 1);
            run.steps[RELIST_START - 1].action = environment_without_commits().action;
        }),
        (Axiom::Independence, "an event that only another stream selects", |run| {
            events(run, SELECTED_RELEASE)[0] = ShownEvent {
                change: Change::Added,
                key: key("q"),
                resource_version: "3".to_owned(),
            };
        }),
        (Axiom::Independence, "an answer from the position of another stream", |run| {
            // The second store stands at position 0, and is answered as if it stood with the first.
            let read = the_read(run, READ_SECOND);
            read.position = 0;
        }),
        (Axiom::Compression, "two triggers for one object of a list", |run| {
            run.steps[4].action = start(OWNED, 1, ListVersion::Any);
            run.steps[TRIGGER_POD].action = trigger(OWNED, "p", "2", true);
        }),
        (Axiom::Compression, "a trigger for an object that the list lacks", |run| {
            run.steps[5].action = trigger(OWNED, "gone", "1", true);
        }),
        (Axiom::Compression, "a late trigger for an object that the list lacks", |run| {
            run.steps[TRIGGER_POD].action = trigger(OWNED, "gone", "1", true);
        }),
        (Axiom::Bookmarks, "a bookmark that overtakes an event", |run| {
            run.steps[STALE].action =
                Action::Bookmark { stream: MAIN, resource_version: "4".to_owned() };
        }),
        (Axiom::Bookmarks, "a bookmark that goes back", |run| {
            run.steps[BOOKMARK].action =
                Action::Bookmark { stream: MAIN, resource_version: "3".to_owned() };
        }),
        (Axiom::LiveReads, "a live read of the past", |run| {
            the_request(run, GET_POD).reply[0].resource_version = "2".to_owned();
        }),
        (Axiom::LiveReads, "a live read that misses an object", |run| {
            the_request(run, GET_POD).request.outcome = Outcome::Status(404);
            the_request(run, GET_POD).reply.clear();
        }),
        (Axiom::LiveReads, "a list at any version of a state that never was", |run| {
            the_request(run, ANY_LIST).reply[1].resource_version = "6".to_owned();
        }),
        (Axiom::LiveReads, "a list that is not the past it is said to be", |run| {
            the_request(run, ANY_LIST).source = Source::Live;
        }),
        (Axiom::Writes, "a reply whose change is not in the history", |run| {
            the_request(run, NO_OP).reply[0].resource_version = "9".to_owned();
        }),
        (Axiom::Writes, "a change by a request that was refused", |run| {
            the_request(run, APPLY).request.outcome = Outcome::Status(409);
        }),
        (Axiom::Writes, "a change by a request that was never sent", |run| {
            run.history[3].by = Author::Request(77);
        }),
        (Axiom::Writes, "a change by a read", |run| {
            the_request(run, APPLY).request.verb = Verb::Get;
        }),
        (Axiom::Writes, "a reply that says the revision before its own change", |run| {
            the_request(run, APPLY).reply[0].resource_version = "1".to_owned();
        }),
        (Axiom::Writes, "a change before its request was sent", |run| {
            the_request(run, APPLY).sent = APPLY + 1;
        }),
        (Axiom::TriggerAndView, "a trigger in front of its own store", |run| {
            run.steps.swap(RELEASE_MAIN, TRIGGER_MAIN);
        }),
        (Axiom::Passes, "two passes of one key at once", |run| {
            run.steps[BOOKMARK].action = pass_start(2, "a");
        }),
        (Axiom::Passes, "a pass that ends twice", |run| {
            run.steps[PASS_END + 1] = run.steps[PASS_END].clone();
        }),
        (Axiom::Passes, "a read in a pass that has ended", |run| {
            run.steps[RELIST_END + 1].pass = Some(1);
        }),
        (Axiom::Passes, "one number for two passes", |run| {
            run.steps[PASS_END + 1].action = pass_start(1, "b");
        }),
        (Axiom::Environment, "an actor's step that the history does not know", |run| {
            let Action::Environment(step) = &mut run.steps[KUBELET].action else { panic!() };
            step.commits[1].resource_version = "77".to_owned();
            run.history[5].by = Author::Server;
        }),
        (Axiom::Environment, "an actor's change that no step says", |run| {
            let Action::Environment(step) = &mut run.steps[KUBELET].action else { panic!() };
            step.commits.pop();
        }),
        (Axiom::Environment, "the change of one actor in the step of another", |run| {
            run.history[4].by = Author::Actor("somebody".to_owned());
        }),
    ];
    let mut broken = std::collections::BTreeSet::new();
    for (axiom, what, break_it) in breaks {
        let mut run = legal();
        break_it(&mut run);
        match check(&run) {
            Ok(_) => panic!("{what} is accepted"),
            Err(illegal) => assert_eq!(illegal.axiom(), *axiom, "{what}: {illegal}"),
        }
        broken.insert(*axiom);
    }
    assert_eq!(broken.len(), 14, "each rule has been broken: {broken:?}");
}

#[test]
fn different_keys_may_overlap_and_a_restart_ends_all_passes() {
    let mut run = legal();
    run.steps[BOOKMARK].action = pass_start(7, "b");
    run.steps[RESUME].action = Action::PassEnd { pass: 7, outcome: String::new() };
    // Pass numbers ascend.
    run.steps[RELIST_START..].iter_mut().for_each(|step| {
        if let Action::PassStart(start) = &mut step.action {
            start.pass = 8;
        }
        step.pass = step.pass.map(|pass| if pass == 2 { 8 } else { pass });
    });
    check(&run).unwrap();
}

#[test]
fn a_write_that_removes_the_last_finalizer_answers_with_the_revision_before() {
    let mut run = legal();
    let gone = commit(STS, "a", "7", Change::Deleted, Author::Request(4), Some(NO_OP), "no");
    run.history.push(gone);
    run.steps.truncate(NO_OP + 1);
    check(&run).unwrap();
}

#[test]
fn a_lost_reply_leaves_open_whether_the_write_happened() {
    for happened in [true, false] {
        let mut run = legal();
        run.steps.truncate(APPLY + 1);
        run.history.truncate(if happened { 4 } else { 3 });
        the_request(&mut run, APPLY).request.outcome = Outcome::Failed("reset".to_owned());
        the_request(&mut run, APPLY).reply.clear();
        check(&run).unwrap();
    }
}

#[test]
fn a_live_read_may_show_any_state_between_its_request_and_its_reply() {
    for (revision, legal_then) in [("2", true), ("5", true), ("9", false)] {
        let mut run = legal();
        let get = the_request(&mut run, GET_POD);
        get.sent = KUBELET;
        get.reply[0].resource_version = revision.to_owned();
        assert_eq!(check(&run).is_ok(), legal_then, "{revision}");
    }
}

#[test]
fn a_flipped_read_is_judged_as_a_view() {
    for (position, revision, legal_then) in [(0, "1", true), (0, "4", false), (1, "4", true)] {
        let mut run = legal();
        let source = Source::View { stream: SECOND, incarnation: 1, position };
        let mut flipped = live(2, STALE, Verb::Get, Some("a"), 200, source, &[("a", revision)]);
        if let Action::Request(request) = &mut flipped {
            request.request.group = "apps".to_owned();
            request.request.resource = "statefulsets".to_owned();
            request.request.answered_by = AnsweredBy::Flip;
        }
        run.steps[STALE].action = flipped;
        assert_eq!(check(&run).is_ok(), legal_then, "{position} {revision}: {:?}", check(&run));
    }
}

#[test]
fn the_error_says_what_is_wrong_and_where() {
    let mut run = legal();
    events(&mut run, RELEASE_POD).swap(0, 1);
    assert_eq!(
        check(&run).unwrap_err().to_string(),
        "the run breaks the axiom \"prefix\" at step 14: pods shows MODIFIED n/q at rv 6, and next in it \
         is MODIFIED n/p at rv 5"
    );
}

fn events(run: &mut Run, step: usize) -> &mut Vec<ShownEvent> {
    match &mut run.steps[step].action {
        Action::Release(release) => &mut release.events,
        other => panic!("{other:?}"),
    }
}

fn the_read(run: &mut Run, step: usize) -> &mut CachedRead {
    match &mut run.steps[step].action {
        Action::Read(read) => read,
        other => panic!("{other:?}"),
    }
}

fn the_end(run: &mut Run, step: usize) -> &mut ListEnd {
    match &mut run.steps[step].action {
        Action::ListEnd(end) => end,
        other => panic!("{other:?}"),
    }
}

fn the_request(run: &mut Run, step: usize) -> &mut RequestStep {
    match &mut run.steps[step].action {
        Action::Request(request) => request,
        other => panic!("{other:?}"),
    }
}

fn set_resume(run: &mut Run, version: &str) {
    run.steps[RESUME].action =
        Action::Resume { stream: MAIN, resource_version: version.to_owned() };
}

fn outside(action: Action) -> Step {
    Step::new(Duration::ZERO, action)
}

fn environment_without_commits() -> Step {
    outside(Action::Environment(EnvironmentStep {
        actor: "nobody".to_owned(),
        text: "looks".to_owned(),
        commits: vec![],
    }))
}

fn kubelet() -> Author {
    Author::Actor("kubelet".to_owned())
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced("n", name)
}

fn get(name: &str) -> Query {
    Query::Get(key(name))
}

fn stream(
    group: &str,
    resource: &str,
    instance: usize,
    role: Role,
    labels: Option<&str>,
) -> StreamRecord {
    let identity = Identity {
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        namespace: Some("n".to_owned()),
        labels: labels.map(str::to_owned),
        fields: None,
        representation: Representation::Full,
    };
    StreamRecord { identity, instance, role }
}

fn commit(
    resource: &str,
    name: &str,
    revision: &str,
    change: Change,
    by: Author,
    step: Option<usize>,
    ready: &str,
) -> Commit {
    let object = json!({"metadata": {
        "namespace": "n", "name": name, "resourceVersion": revision, "labels": {"ready": ready},
    }});
    Commit {
        resource_version: revision.to_owned(),
        resource: resource.to_owned(),
        key: key(name),
        uid: None,
        change,
        by,
        step,
        object: Some(object),
    }
}

fn seen(objects: &[(&str, &str)]) -> Vec<Seen> {
    objects
        .iter()
        .map(|(name, revision)| Seen {
            key: key(name),
            resource_version: (*revision).to_owned(),
            uid: None,
            generation: None,
        })
        .collect()
}

fn start(stream: usize, incarnation: u32, asked: ListVersion) -> Action {
    Action::ListStart(ListStart { stream, incarnation, asked })
}

fn end(stream: usize, incarnation: u32, revision: &str, objects: &[(&str, &str)]) -> Action {
    Action::ListEnd(ListEnd {
        stream,
        incarnation,
        resource_version: revision.to_owned(),
        objects: seen(objects),
        point: None,
    })
}

fn trigger(stream: usize, name: &str, revision: &str, from_list: bool) -> Action {
    Action::Trigger(Trigger {
        stream,
        object: key(name),
        resource_version: revision.to_owned(),
        from_list,
        key: "a".to_owned(),
    })
}

fn pass_start(pass: u32, key: &str) -> Action {
    Action::PassStart(PassStart { pass, controller: "c".to_owned(), key: key.to_owned() })
}

fn read(
    stream: usize,
    incarnation: u32,
    position: usize,
    query: Query,
    answer: &[(&str, &str)],
) -> Action {
    Action::Read(CachedRead {
        stream,
        incarnation,
        position,
        query,
        answer: seen(answer),
        site: None,
        behind: 0,
        stale: false,
        point: None,
    })
}

fn release(stream: usize, incarnation: u32, events: &[(Change, &str, &str)]) -> Action {
    let shown = |(change, name, revision): &(Change, &str, &str)| ShownEvent {
        change: *change,
        key: key(name),
        resource_version: (*revision).to_owned(),
    };
    let events = events.iter().map(shown).collect();
    Action::Release(Release { stream, incarnation, events, point: None })
}

fn reference(resource: &str, revision: &str) -> Reference {
    Reference { resource: resource.to_owned(), resource_version: revision.to_owned() }
}

fn write(
    number: u64,
    sent: usize,
    verb: Verb,
    name: &str,
    status: u16,
    reply: &[(&str, &str)],
) -> Action {
    let mut action = live(number, sent, verb, Some(name), status, Source::Live, reply);
    if let Action::Request(request) = &mut action {
        request.request.group = "apps".to_owned();
        request.request.resource = "statefulsets".to_owned();
    }
    action
}

fn live(
    number: u64,
    sent: usize,
    verb: Verb,
    name: Option<&str>,
    status: u16,
    source: Source,
    reply: &[(&str, &str)],
) -> Action {
    let request = Request {
        name: name.map(str::to_owned),
        outcome: Outcome::Status(status),
        ..Request::sample(number, verb, "pods")
    };
    Action::Request(Box::new(RequestStep { request, sent, source, reply: seen(reply) }))
}
