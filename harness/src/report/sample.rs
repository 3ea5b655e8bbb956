//! One finding, as the tests of the report need it: the race of the first controller under test.

use std::time::Duration;

use serde_json::json;

use super::{KeptRun, Replay, Results};
use crate::lag::model::{
    Action, Alt, Author, Bound, Bounds, CachedRead, Certificate, CertifiedView, Change, Chosen,
    Commit, Completeness, Confirmation, Finding, HeldEvent, Hold, Identity, Kind, Needs, ObjectKey,
    PatchType, Point, PointId, Query, Release, Repair, Representation, Request, RequestStep, Role,
    Run, Seen, ShownEvent, Site, Source, Step, StreamRecord, Verb, Verdict, Violation,
};

/// apply, stale read, status patch, violation.
pub(super) fn finding() -> Finding {
    let run = run();
    let set = ObjectKey::namespaced("ns", "n0");
    let held = HeldEvent {
        resource_version: "1042".to_owned(),
        change: Change::Modified,
        key: set,
        by: Author::Request(11),
    };
    let view = CertifiedView {
        step: 1,
        stream: "statefulsets.apps".to_owned(),
        incarnation: 1,
        position: 0,
        available: 1,
        shown: Some("1038".to_owned()),
        held: Some(held),
    };
    let repair = |text: &str, extra_requests| Repair {
        step: 1,
        text: text.to_owned(),
        passes: true,
        extra_requests,
    };
    Finding {
        run,
        certificate: Certificate { views: vec![view], commits: 3, released: 0 },
        needs: Needs::Staleness,
        found_in_run: 7,
        token: "statefulsets/n0@r1:-1".to_owned(),
        repairs: vec![repair("is a live read", 1), repair("waits for rv 1042", 0)],
        window: Some(Duration::from_micros(2_100)),
        verdict: verdict(),
        confirmed: Confirmation::ThroughApi { runs: 2 },
    }
}

/// The same race without a wrapper: the read is unseen, and in its place the stream is held until the end
/// of the pass.
pub(super) fn held() -> Finding {
    let mut finding = finding();
    let point = PointId::new("statefulsets.apps", Kind::Boundary, 1);
    let event = ShownEvent {
        change: Change::Modified,
        key: ObjectKey::namespaced("ns", "n0"),
        resource_version: "1042".to_owned(),
    };
    let hold =
        Hold { stream: 0, behind: 1, point: Some(point.clone()), first: Some(event.clone()) };
    let release = Release { stream: 0, incarnation: 1, events: vec![event], point: None };
    let menu = vec![Alt::freshest(), Alt::behind(1)];
    let point = Point::new(point, menu).expect("the first alternative is free");
    finding.run.choices = vec![Chosen { point, taken: 1 }];
    finding.run.steps[1] = Step::in_pass(Duration::from_micros(1_050), 1, Action::Hold(hold));
    finding.run.steps.push(Step::new(Duration::from_micros(6_000), Action::Release(release)));
    finding.certificate.views.clear();
    finding.repairs.clear();
    finding.token = "statefulsets.apps@q1:-1".to_owned();
    finding
}

/// The same run with a stream of the same kind that is private to the harness.
pub(super) fn with_replica(mut run: Run) -> Run {
    let mut replica = run.streams[0].clone();
    replica.role = Role::Replica;
    run.streams.push(replica);
    run
}

/// The same with the read made live and flipped, and answered with this version.
pub(super) fn flipped(version: &str, generation: i64) -> Finding {
    let mut finding = finding();
    let mut read = request(13, Verb::Get, "statefulsets", "apps", version);
    read.request.span = Some("observe-image".to_owned());
    read.source = Source::View { stream: 0, incarnation: 1, position: 0 };
    read.reply = vec![seen(version, Some(generation))];
    let at = Duration::from_micros(3_100);
    finding.run.steps[1] = Step::in_pass(at, 1, Action::Request(Box::new(read)));
    finding
}

/// The results of the search that found it.
pub(crate) fn results() -> Results {
    let finding = finding();
    let mut results = Results::new("a <test>", verdict(), Bounds::default());
    let violated = Some("stamped before rollout");
    results.server = Some("v1.37.2".to_owned());
    results.baseline = Some("5ca1ab1e".to_owned());
    results.runs_by_cost = vec![1, 22];
    results.runs = vec![
        KeptRun::new(1, "fresh", None, &Run::new("fresh")),
        KeptRun::new(7, &*finding.token, violated, &finding.run),
    ];
    results.replay = Replay { command: "cargo test a_test".to_owned(), saved: None, page: None };
    results.findings.push(finding);
    results
}

pub(super) fn verdict() -> Verdict {
    Verdict {
        completeness: Completeness::Exhausted { within: vec![Bound::StaleReads(2)] },
        runs: 23,
        failures: 1,
        impossible: 0,
        redundant: 0,
        merged: 0,
        looked_again: 0,
        points: 14,
        naive: 81_375,
        elapsed: Duration::from_millis(400),
        shard: None,
        exclusions: Vec::new(),
        worlds: Some("forked in etcd from one set-up".to_owned()),
        requests: 0,
        recalled: 0,
    }
}

fn run() -> Run {
    let mut run = Run::new("image_is_never_stamped_early");
    let commit = |version: &str, resource: &str, change, by, step| Commit {
        resource_version: version.to_owned(),
        resource: resource.to_owned(),
        key: ObjectKey::namespaced("ns", "n0"),
        uid: None,
        change,
        by,
        step,
        object: None,
    };
    run.history = vec![
        commit("1038", "statefulsets.apps", Change::Added, Author::SetUp, None),
        commit("1042", "statefulsets.apps", Change::Modified, Author::Request(11), Some(0)),
        commit("1043", "seinodes.sei.io", Change::Modified, Author::Request(12), Some(2)),
    ];
    run.streams = vec![StreamRecord {
        identity: Identity {
            group: "apps".to_owned(),
            version: "v1".to_owned(),
            resource: "statefulsets".to_owned(),
            namespace: Some("ns".to_owned()),
            labels: None,
            fields: None,
            representation: Representation::Full,
        },
        instance: 1,
        role: Role::Store,
    }];
    let read = CachedRead {
        stream: 0,
        incarnation: 1,
        position: 0,
        query: Query::Get(ObjectKey::namespaced("ns", "n0")),
        answer: vec![seen("1038", Some(1))],
        site: Some(Site { file: "tasks/observe.rs".to_owned(), line: 61, span: None }),
        behind: 1,
        stale: true,
        point: None,
    };
    let violation = Violation {
        oracle: "stamped before rollout".to_owned(),
        text: "currentImage is v2, but the pod runs v1".to_owned(),
    };
    let apply = request(11, Verb::Patch(PatchType::Apply), "statefulsets", "apps", "1042");
    let mut status = request(12, Verb::Patch(PatchType::Merge), "seinodes", "sei.io", "1043");
    status.request.subresource = Some("status".to_owned());
    status.request.span = Some("status".to_owned());
    status.reply = vec![seen("1043", None)];
    let at = Duration::from_micros;
    run.steps = vec![
        Step::in_pass(at(1_000), 1, Action::Request(Box::new(apply))),
        Step::in_pass(at(3_100), 1, Action::Read(read)),
        Step::in_pass(at(5_000), 1, Action::Request(Box::new(status))),
        Step::in_pass(at(5_100), 1, Action::Violation(violation)),
    ];
    run
}

fn seen(version: &str, generation: Option<i64>) -> Seen {
    Seen {
        key: ObjectKey::namespaced("ns", "n0"),
        resource_version: version.to_owned(),
        uid: None,
        generation,
    }
}

fn request(number: u64, verb: Verb, resource: &str, group: &str, version: &str) -> RequestStep {
    RequestStep {
        request: Request {
            path: format!("/apis/{group}/v1/namespaces/ns/{resource}/n0"),
            group: group.to_owned(),
            namespace: Some("ns".to_owned()),
            name: Some("n0".to_owned()),
            resource_version_answered: Some(version.to_owned()),
            span: Some("apply-statefulset".to_owned()),
            body: Some(json!({})),
            ..Request::sample(number, verb, resource)
        },
        sent: 0,
        source: Source::Live,
        reply: vec![seen(version, Some(2))],
    }
}
