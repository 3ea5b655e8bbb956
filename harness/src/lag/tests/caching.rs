//! The cache in the place of a store, and the bracket around a pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::{
    api::{Patch, PatchParams},
    core::{Expression, Selector},
    runtime::reflector::ObjectRef,
};

use super::*;
use crate::lag::{
    Boundary, Cache, Choices, Released, Requests, Scheduler, StreamErrorKind,
    model::{CachedRead, Chooser, Point, Query, StreamDescription},
};

fn name(name: &str) -> ObjectRef<ConfigMap> {
    ObjectRef::new(name).within(NAMESPACE)
}

fn value(object: Option<Arc<ConfigMap>>) -> Option<String> {
    object?.data.as_ref()?.get("value").cloned()
}

async fn cache(fixture: &Fixture) -> Cache<ConfigMap> {
    fixture.lag.stream::<ConfigMap>().cache().await.unwrap()
}

async fn patch(maps: &Api<ConfigMap>, name: &str, value: &str) {
    let patch = Patch::Merge(data(value));
    within(maps.patch(name, &PatchParams::default(), &patch)).await.unwrap();
}

#[track_caller]
fn looked_up(cache: &Cache<ConfigMap>, key: &str) -> Option<Arc<ConfigMap>> {
    cache.get(&name(key))
}

/// Takes what its list says, then the freshest.
struct Forced(Vec<usize>);

impl Chooser for Forced {
    fn choose(&mut self, _: &Point) -> usize {
        if self.0.is_empty() { 0 } else { self.0.remove(0) }
    }
}

#[tokio::test]
async fn a_cache_that_nobody_schedules_answers_what_the_store_answers() {
    let fixture = Fixture::start().await;
    let cache = cache(&fixture).await;
    let stream = fixture.lag.stream::<ConfigMap>();
    stream.hold();
    for (name, value) in [("a", "1"), ("b", "1"), ("a", "2")] {
        fixture.server.put(
            "configmaps",
            NAMESPACE,
            name,
            json!({"data": {"value": value}, "metadata": {"labels": {"tier": value}}}),
        );
    }
    fixture.server.delete("configmaps", NAMESPACE, "b");
    stream.until_behind(4).await.unwrap();
    let selector: Selector = Expression::Equal("tier".into(), "1".into()).into();
    let mut sizes = Vec::new();
    for step in 0..=4 {
        let two = |object: &ConfigMap| object.data.as_ref().unwrap()["value"] == "2";
        let store = &fixture.store;
        for key in ["a", "b", "c"] {
            assert_eq!(cache.get(&name(key)), store.get(&name(key)), "{key} at {step}");
            assert_eq!(cache.contains(&name(key)), store.get(&name(key)).is_some());
        }
        let sorted = |mut objects: Vec<Arc<ConfigMap>>| {
            objects.sort_by_key(|object| object.metadata.name.clone());
            objects
        };
        assert_eq!(cache.state(), sorted(store.state()));
        assert_eq!(cache.state_filter(two), sorted(store.state_filter(two)));
        assert_eq!(cache.find(two), store.find(two));
        let selected = cache.state_filter_selector(&selector);
        assert_eq!(selected, sorted(store.state_filter_selector(&selector)));
        assert_eq!((cache.len(), cache.is_empty()), (store.len(), store.is_empty()));
        sizes.push(cache.len());
        if step < 4 {
            stream.release_one().await.unwrap();
        }
    }
    assert_eq!(sizes, [0, 1, 2, 2, 1]);
    let [one, two] = [cache.get(&name("a")), cache.get(&name("a"))].map(Option::unwrap);
    assert!(Arc::ptr_eq(&one, &two), "one version is one object, as in a store");
}

#[tokio::test]
async fn each_read_is_recorded_with_its_place_and_how_far_it_was_behind() {
    let fixture = Fixture::start().await;
    let cache = cache(&fixture).await;
    let stream = fixture.lag.stream::<ConfigMap>();
    let version = fixture.put("a", "1");
    stream.shown(&version).await.unwrap();
    stream.hold();
    let newer = fixture.put("b", "1");
    stream.received(&newer).await.unwrap();
    let line = line!() + 1;
    let _ = cache.get(&name("a"));
    let _ = cache.state();
    let reads = fixture.lag.reads();
    let [get, state] = &reads[..] else { panic!("two reads: {reads}") };
    let site = get.site.as_ref().unwrap();
    assert!(site.file.ends_with("lag/tests/caching.rs"), "{site}");
    assert_eq!((site.line, state.site.as_ref().unwrap().line), (line, line + 1));
    assert!(matches!(&get.query, Query::Get(key) if key.name == "a"));
    assert_eq!((get.position, get.behind, get.stale), (1, 1, false), "another object's event");
    assert_eq!((state.position, state.behind, state.stale), (1, 1, true));
    assert_eq!(get.answer[0].resource_version, version);
    let text = reads.to_string();
    let lines: Vec<&str> = text.lines().collect();
    let place = format!("caching.rs:{line}  <- demo/a rv {version}  1 event behind");
    assert!(lines[0].starts_with("get demo/a  ") && lines[0].ends_with(&place), "{text}");
    assert!(lines[1].ends_with("1 event behind, stale"), "{text}");
    fixture.lag.clear_reads();
    assert_eq!(fixture.lag.reads().to_string(), "no cached reads");
    // Through a look-up of the code under test: its reader's place, if it asks for it.
    let line = line!() + 1;
    let _ = looked_up(&cache, "a");
    let reads = fixture.lag.reads();
    assert_eq!(reads[0].site.as_ref().unwrap().line, line, "{reads}");
    // And the span, where that cannot be.
    let reading = || tracing::info_span!("observe-image").in_scope(|| cache.get(&name("a")));
    tracing::subscriber::with_default(tracing_subscriber::registry(), reading);
    let reads = fixture.lag.reads();
    assert!(reads.to_string().contains(" [observe-image]  <- "), "{reads}");
}

/// Runs `pass` once for each sequence of choices, and returns what it saw each time.
async fn explore(
    pass: impl AsyncFn(&Fixture, &Cache<ConfigMap>) -> Vec<String>,
) -> BTreeMap<String, Vec<String>> {
    let mut outcomes = BTreeMap::new();
    let mut prefixes = vec![Vec::new()];
    while let Some(prefix) = prefixes.pop() {
        let fixture = Fixture::start().await;
        let cache = cache(&fixture).await;
        fixture.lag.stream::<ConfigMap>().hold();
        // Boundaries release nothing here: what moves the stream is what was read.
        let scheduler = ReadsOnly(Choices::new(Forced(prefix.clone())));
        let record = scheduler.0.record();
        fixture.lag.set_scheduler(scheduler);
        let seen = pass(&fixture, &cache).await;
        let chosen = record.chosen();
        for at in prefix.len()..chosen.len() {
            for other in 1..chosen[at].point.menu().len() {
                let before = chosen[..at].iter().map(|chosen| chosen.taken);
                prefixes.push(before.chain([other]).collect());
            }
        }
        let token: Vec<String> = chosen.iter().map(ToString::to_string).collect();
        assert!(outcomes.insert(token.join(","), seen).is_none(), "each token is one run");
        assert!(outcomes.len() < 100, "{outcomes:?}");
    }
    outcomes
}

struct ReadsOnly(Choices<Forced>);

impl Scheduler for ReadsOnly {
    fn release(&mut self, _: &Boundary, _: &StreamDescription, _: &[Released]) -> usize {
        0
    }

    fn read(&mut self, stream: &StreamDescription, answers: &[CachedRead]) -> usize {
        self.0.read(stream, answers)
    }
}

#[tokio::test]
async fn two_reads_between_two_replies_may_straddle_an_event_and_never_go_back() {
    let outcomes = explore(async |fixture, cache| {
        let maps: Api<ConfigMap> = Api::namespaced(fixture.lag.client(), NAMESPACE);
        patch(&maps, "a", "1").await;
        let mut seen = Vec::new();
        for _ in 0..2 {
            seen.push(value(cache.get(&name("a"))).unwrap_or_default());
        }
        patch(&maps, "a", "2").await;
        seen.push(value(cache.get(&name("a"))).unwrap_or_default());
        // The store is no further than the reads were before the last reply, and no less far.
        assert_eq!(fixture.shown("a").unwrap_or_default(), seen[1]);
        seen
    })
    .await;
    let sequences: BTreeSet<Vec<String>> = outcomes.values().cloned().collect();
    let legal = [
        ["", "", ""],
        ["", "", "1"],
        ["", "", "2"],
        ["", "1", "1"],
        ["", "1", "2"],
        ["1", "1", "1"],
        ["1", "1", "2"],
    ];
    assert_eq!(sequences, legal.map(|s| s.map(str::to_owned).to_vec()).into());
    assert_eq!(outcomes.len(), legal.len(), "one run for each: {outcomes:#?}");
    assert!(
        outcomes.contains_key("configmaps/a@r1:-1,configmaps/a@r2:-1,configmaps/a@r3:-2"),
        "{outcomes:#?}"
    );
}

#[tokio::test]
async fn only_distinct_answers_branch_and_the_least_advanced_one_stands_for_them() {
    let outcomes = explore(async |fixture, cache| {
        for number in 0..5 {
            // Events of another object, and then one of this.
            fixture.put(&format!("other{number}"), "1");
        }
        let version = fixture.put("a", "1");
        fixture.lag.stream::<ConfigMap>().received(&version).await.unwrap();
        vec![value(cache.get(&name("a"))).unwrap_or_default(), cache.len().to_string()]
    })
    .await;
    // Without "a" the other five may be there or not, one by one; with it they all are.
    let legal: BTreeSet<Vec<String>> = (0..=6)
        .map(|len: u32| vec![String::new(), len.to_string()])
        .chain([vec!["1".to_owned(), "6".to_owned()]])
        .collect();
    assert_eq!(outcomes.values().cloned().collect::<BTreeSet<_>>(), legal);
    assert_eq!(outcomes.len(), legal.len(), "{outcomes:#?}");
}

#[tokio::test]
async fn a_projection_says_which_answers_are_the_same() {
    let fixture = Fixture::start().await;
    let cache = cache(&fixture).await.reading(|object| object["data"].clone());
    let stream = fixture.lag.stream::<ConfigMap>();
    stream.hold();
    for noise in ["x", "y", "z"] {
        let labels = json!({"data": {"value": "1"}, "metadata": {"labels": {"noise": noise}}});
        fixture.server.put("configmaps", NAMESPACE, "a", labels);
    }
    stream.until_behind(3).await.unwrap();
    let choices = Choices::new(Forced(vec![0]));
    let record = choices.record();
    fixture.lag.set_scheduler(choices);
    let object = cache.get(&name("a")).unwrap();
    assert_eq!(object.metadata.labels.as_ref().unwrap()["noise"], "x", "the least advanced");
    assert_eq!(record.chosen()[0].point.menu().len(), 2, "there, or not there yet");
    assert!(cache.contains(&name("a")));
    assert_eq!(record.chosen().len(), 1, "and then there is nothing to choose");
}

#[tokio::test]
async fn a_read_before_the_first_list_is_complete_sees_an_empty_cache() {
    let server = Server::new();
    server.put("configmaps", NAMESPACE, "a", data("1"));
    let lag = Lag::over_service(server.clone(), NAMESPACE);
    server.stall();
    let maps: Api<ConfigMap> = Api::namespaced(lag.client(), NAMESPACE);
    // The initial events of the scripted server pass; so the body is opened and never polled.
    let params = kube::core::params::WatchParams::default().initial_events();
    let watch = maps.watch(&params, "0").await.unwrap();
    let cache = lag.stream::<ConfigMap>().cache().await.unwrap();
    assert!(cache.is_empty());
    assert_eq!(cache.get(&name("a")), None);
    assert_eq!(lag.reads()[0].incarnation, 0);
    drop(watch);
}

#[tokio::test]
async fn a_flipped_read_is_not_older_than_what_was_read_through_the_cache() {
    let fixture = Fixture::start().await;
    let cache = cache(&fixture).await;
    let stream = fixture.lag.stream::<ConfigMap>();
    stream.hold();
    let maps: Api<ConfigMap> = Api::namespaced(fixture.lag.client(), NAMESPACE);
    patch(&maps, "a", "1").await;
    fixture.lag.set_scheduler(ReadsOnly(Choices::new(Forced(vec![0]))));
    assert_eq!(value(cache.get(&name("a"))).as_deref(), Some("1"));
    assert_eq!(fixture.shown("a"), None, "the store comes after, at the next boundary");
    let _flip = fixture.lag.flip(Requests::get::<ConfigMap>());
    maps.get("a").await.unwrap();
    assert_eq!(fixture.shown("a").as_deref(), Some("1"));
}

#[tokio::test]
async fn the_end_of_a_pass_brings_the_store_up_to_what_was_read() {
    let fixture = Fixture::start().await;
    let cache = cache(&fixture).await;
    fixture.lag.stream::<ConfigMap>().hold();
    let version = fixture.put("a", "1");
    fixture.lag.stream::<ConfigMap>().received(&version).await.unwrap();
    fixture.lag.set_scheduler(ReadsOnly(Choices::new(Forced(vec![0]))));
    let passes = fixture.lag.passes();
    let seen = within(passes.run("a", async { value(cache.get(&name("a"))) })).await;
    assert_eq!(seen.as_deref(), Some("1"));
    assert_eq!(fixture.shown("a").as_deref(), Some("1"));
    assert_eq!(passes.ended("a"), 1);
}

#[tokio::test]
async fn a_gated_pass_starts_when_it_is_told_and_its_end_is_known() {
    let fixture = Fixture::start().await;
    let lag = fixture.lag.clone().with_deadline(Duration::from_millis(100));
    let passes = lag.passes();
    passes.gate();
    let log = Arc::new(Mutex::new(Vec::new()));
    let run = |key: &'static str| {
        let (passes, log) = (passes.clone(), Arc::clone(&log));
        tokio::spawn(async move {
            passes.run(key, async { log.lock().unwrap().push(key) }).await;
        })
    };
    let tasks = [run("b"), run("a")];
    passes.until_waiting("a").await.unwrap();
    passes.until_waiting("b").await.unwrap();
    assert_eq!(passes.waiting(), ["a", "b"]);
    assert!(log.lock().unwrap().is_empty());
    passes.step("a").await.unwrap();
    assert_eq!(*log.lock().unwrap(), ["a"]);
    assert_eq!((passes.ended("a"), passes.ended("b")), (1, 0));
    let error = passes.step("a").await.unwrap_err().to_string();
    assert!(error.contains("failed to run a pass of \"a\": none waits"), "{error}");
    assert!(error.contains("waiting: [\"b\"]"), "{error}");
    let error = passes.until_waiting("c").await.unwrap_err().to_string();
    assert!(error.contains("within 100ms"), "{error}");
    let abandoned = run("c");
    passes.until_waiting("c").await.unwrap();
    abandoned.abort();
    until("it is over", || passes.waiting() == ["b"]).await;
    passes.open();
    for task in tasks {
        within(task).await.unwrap();
    }
    assert_eq!(*log.lock().unwrap(), ["a", "b"]);
    let ambiguous = lag.stream::<k8s_openapi::api::core::v1::Pod>().cache().await.unwrap_err();
    assert_eq!(ambiguous.kind(), StreamErrorKind::NoStream);
}
