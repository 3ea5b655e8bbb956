//! The recorded requests, and the words in which a test says which of them it means.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use kube::Resource;

use super::model::{AnsweredBy, Outcome, PatchType, Request, Verb};

/// Says which requests are meant: those that fit everything that was said.
///
/// A constructor that names a verb means the objects themselves, unless [`subresource`](Self::subresource)
/// is said; [`any`](Self::any), [`of`](Self::of) and [`resource`](Self::resource) mean subresources too.
///
/// ```
/// use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
/// use laggard::lag::Requests;
///
/// let live_reads = Requests::get::<StatefulSet>().named("n0").in_span("replace-pod");
/// let status_writes = Requests::patch::<Pod>().subresource("status");
/// assert_eq!(live_reads.to_string(), r#"get statefulsets.apps named "n0" in span "replace-pod""#);
/// assert_eq!(status_writes.to_string(), "patch pods/status");
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[must_use]
pub struct Requests {
    verb: Option<VerbFilter>,
    resource: Option<(String, String)>,
    subresource: Option<Option<String>>,
    namespace: Option<String>,
    name: Option<String>,
    span: Option<String>,
    ordinal: Option<u32>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum VerbFilter {
    Exactly(Verb),
    AnyPatch,
    AnyWrite,
}

impl Requests {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Every request about objects of `K`, with whatever verb and subresource.
    pub fn of<K: Resource<DynamicType = ()>>() -> Self {
        Self::resource(&K::group(&()), &K::plural(&()))
    }

    /// Every request about a resource that has no Rust type here; `group` is empty for the core group.
    pub fn resource(group: &str, plural: &str) -> Self {
        Self { resource: Some((group.to_owned(), plural.to_owned())), ..Self::default() }
    }

    /// Reads of one object.
    pub fn get<K: Resource<DynamicType = ()>>() -> Self {
        Self::of::<K>().verb(Verb::Get).main()
    }

    /// Reads of a collection.
    pub fn list<K: Resource<DynamicType = ()>>() -> Self {
        Self::of::<K>().verb(Verb::List).main()
    }

    /// Watches, each time they are opened.
    pub fn watch<K: Resource<DynamicType = ()>>() -> Self {
        Self::of::<K>().verb(Verb::Watch).main()
    }

    /// POST of a new object.
    pub fn create<K: Resource<DynamicType = ()>>() -> Self {
        Self::of::<K>().verb(Verb::Create).main()
    }

    /// PUT: replacing the object.
    pub fn update<K: Resource<DynamicType = ()>>() -> Self {
        Self::of::<K>().verb(Verb::Update).main()
    }

    /// PATCH of every kind, server-side apply among them.
    pub fn patch<K: Resource<DynamicType = ()>>() -> Self {
        let mut requests = Self::of::<K>().main();
        requests.verb = Some(VerbFilter::AnyPatch);
        requests
    }

    /// Server-side apply.
    pub fn apply<K: Resource<DynamicType = ()>>() -> Self {
        Self::of::<K>().verb(Verb::Patch(PatchType::Apply)).main()
    }

    /// Deletions of one object.
    pub fn delete<K: Resource<DynamicType = ()>>() -> Self {
        Self::of::<K>().verb(Verb::Delete).main()
    }

    /// Deletions of a collection.
    pub fn delete_collection<K: Resource<DynamicType = ()>>() -> Self {
        Self::of::<K>().verb(Verb::DeleteCollection).main()
    }

    /// Narrows to one verb.
    pub fn verb(mut self, verb: Verb) -> Self {
        self.verb = Some(VerbFilter::Exactly(verb));
        self
    }

    /// Narrows to the verbs that change something, on subresources too.
    pub fn writes(mut self) -> Self {
        self.verb = Some(VerbFilter::AnyWrite);
        self
    }

    /// Narrows to one subresource, such as `status`.
    pub fn subresource(mut self, name: impl Into<String>) -> Self {
        self.subresource = Some(Some(name.into()));
        self
    }

    /// Narrows to one object.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Narrows to requests whose path names this namespace.
    pub fn in_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Narrows to requests made while the `tracing` span of this name was the innermost one.
    ///
    /// Spans exist only where a subscriber is installed whose filter lets them pass; without one this
    /// matches nothing.
    pub fn in_span(mut self, name: impl Into<String>) -> Self {
        self.span = Some(name.into());
        self
    }

    /// Narrows to the `ordinal`th request, from 1, of each [pass](super::Passes) with the same verb, target, name and
    /// span.
    pub fn nth_in_pass(mut self, ordinal: u32) -> Self {
        self.ordinal = Some(ordinal);
        self
    }

    /// Whether `request` is meant.
    #[must_use]
    pub fn matches(&self, request: &Request) -> bool {
        let verb = match self.verb {
            None => true,
            Some(VerbFilter::Exactly(verb)) => verb == request.verb,
            Some(VerbFilter::AnyPatch) => matches!(request.verb, Verb::Patch(_)),
            Some(VerbFilter::AnyWrite) => request.verb.is_write(),
        };
        let fits = |wanted: &Option<String>, found: &Option<String>| {
            wanted.is_none() || wanted.as_deref() == found.as_deref()
        };
        verb && self
            .resource
            .as_ref()
            .is_none_or(|(group, plural)| *group == request.group && *plural == request.resource)
            && self.subresource.as_ref().is_none_or(|wanted| *wanted == request.subresource)
            && fits(&self.namespace, &request.namespace)
            && fits(&self.name, &request.name)
            && fits(&self.span, &request.span)
            && self.ordinal.is_none_or(|ordinal| ordinal == request.ordinal)
    }

    fn main(mut self) -> Self {
        self.subresource = Some(None);
        self
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verb {
            None => f.write_str("any request")?,
            Some(VerbFilter::Exactly(verb)) => write!(f, "{verb}")?,
            Some(VerbFilter::AnyPatch) => f.write_str("patch")?,
            Some(VerbFilter::AnyWrite) => f.write_str("any write")?,
        }
        if let Some((group, plural)) = &self.resource {
            let group = if group.is_empty() { String::new() } else { format!(".{group}") };
            write!(f, " {plural}{group}")?;
        }
        if let Some(Some(subresource)) = &self.subresource {
            write!(f, "/{subresource}")?;
        }
        for (word, value) in
            [("named", &self.name), ("in namespace", &self.namespace), ("in span", &self.span)]
        {
            if let Some(value) = value {
                write!(f, " {word} {value:?}")?;
            }
        }
        if let Some(ordinal) = self.ordinal {
            write!(f, ", #{ordinal} in its pass")?;
        }
        Ok(())
    }
}

/// A copy of the recorded requests in their order; printed as a table for messages of assertions.
///
/// ```no_run
/// # use k8s_openapi::api::core::v1::Pod;
/// # use laggard::lag::{Lag, Requests};
/// # fn example(lag: &Lag) {
/// let requests = lag.requests();
/// assert_eq!(requests.count(&Requests::delete::<Pod>()), 1, "{requests}");
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestLog(Vec<Request>);

impl RequestLog {
    /// Those about objects of `K`.
    #[must_use]
    pub fn of<K: Resource<DynamicType = ()>>(&self) -> Self {
        self.matching(&Requests::of::<K>())
    }

    /// Those that `requests` means.
    #[must_use]
    pub fn matching(&self, requests: &Requests) -> Self {
        Self(self.0.iter().filter(|request| requests.matches(request)).cloned().collect())
    }

    /// How many `requests` means.
    #[must_use]
    pub fn count(&self, requests: &Requests) -> usize {
        self.0.iter().filter(|request| requests.matches(request)).count()
    }
}

impl std::ops::Deref for RequestLog {
    type Target = [Request];

    fn deref(&self) -> &[Request] {
        &self.0
    }
}

impl IntoIterator for RequestLog {
    type Item = Request;
    type IntoIter = std::vec::IntoIter<Request>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for RequestLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no requests");
        }
        let dash = || "-".to_owned();
        let header = [
            "#",
            "verb",
            "resource",
            "object",
            "span",
            "rv asked",
            "rv answered",
            "by",
            "result",
            "ms",
        ];
        let mut rows = vec![header.map(str::to_owned)];
        rows.extend(self.0.iter().map(|request| {
            let object = match (&request.namespace, &request.name) {
                (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
                (Some(namespace), None) => format!("{namespace}/"),
                (None, Some(name)) => name.clone(),
                (None, None) => dash(),
            };
            let elapsed = request.finished.map(|finished| finished.saturating_sub(request.started));
            [
                request.number.to_string(),
                request.verb.to_string(),
                request.target(),
                object,
                request.span.clone().unwrap_or_else(dash),
                request.resource_version_asked.clone().unwrap_or_else(dash),
                request.resource_version_answered.clone().unwrap_or_else(dash),
                request.answered_by.to_string(),
                request.outcome.to_string(),
                elapsed.map_or_else(dash, |time| format!("{:.1}", time.as_secs_f64() * 1000.0)),
            ]
        }));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..header.len()).filter_map(width).collect();
        for (line, row) in rows.iter().enumerate() {
            if line > 0 {
                writeln!(f)?;
            }
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            f.write_str(cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A point in the record, from [`Lag::mark`](super::Lag::mark).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Mark(pub(super) u64);

/// Where the layer writes its requests down.
#[derive(Debug)]
pub(super) struct Recorder {
    started: Instant,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    made: u64,
    requests: Vec<Request>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), record: Mutex::default() }
    }

    /// Writes down that `request` was made, and numbers it.
    pub(super) fn begin(&self, mut request: Request) -> u64 {
        let mut record = self.lock();
        record.made += 1;
        request.number = record.made;
        request.started = self.started.elapsed();
        record.requests.push(request);
        record.made
    }

    /// The record of a request, if it has not been cleared.
    pub(super) fn get(&self, number: u64) -> Option<Request> {
        let record = self.lock();
        let index = record.requests.binary_search_by_key(&number, |r| r.number).ok()?;
        Some(record.requests[index].clone())
    }

    /// Changes the record of a request, if it has not been cleared.
    pub(super) fn update(&self, number: u64, change: impl FnOnce(&mut Request)) {
        let mut record = self.lock();
        // Numbers ascend, and only whole prefixes are cleared.
        if let Ok(index) = record.requests.binary_search_by_key(&number, |request| request.number) {
            change(&mut record.requests[index]);
        }
    }

    pub(super) fn finish(&self, number: u64, outcome: Outcome, by: AnsweredBy) {
        let now = self.started.elapsed();
        self.update(number, |request| {
            request.outcome = outcome;
            request.answered_by = by;
            request.finished = Some(now);
        });
    }

    pub(super) fn since(&self, mark: Mark) -> RequestLog {
        let record = self.lock();
        RequestLog(
            record.requests.iter().filter(|request| request.number > mark.0).cloned().collect(),
        )
    }

    pub(super) fn mark(&self) -> Mark {
        Mark(self.lock().made)
    }

    pub(super) fn clear(&self) {
        self.lock().requests.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        // A panic elsewhere must not hide the record from the message that explains it.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
