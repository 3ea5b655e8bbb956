//! Where each stream stands, and whether what was shown and read fits there.

use std::collections::BTreeSet;

use super::{
    super::{
        AnsweredBy, CachedRead, Certificate, CertifiedView, HeldEvent, Identity, ListEnd,
        ListStart, ListVersion, ObjectKey, Outcome, Query, Release, Representation, RequestStep,
        Role, Run, Seen, ShownEvent, Source, StreamRecord, Trigger, Verb,
        compare_resource_versions,
    },
    Axiom, Illegal,
    authors::qualified,
    visible::{Visible, answers},
};

/// The streams of a run while its steps are gone through.
pub(super) struct Views<'a> {
    run: &'a Run,
    streams: Vec<Stream<'a>>,
    certificate: Certificate,
}

struct Stream<'a> {
    record: &'a StreamRecord,
    visible: Visible<'a>,
    /// The last initial list that was completed, from 1; 0 before the first.
    incarnation: u32,
    /// How many events of the history that list covers.
    base: usize,
    /// How many events of the incarnation have been given to the client.
    released: usize,
    /// The furthest position from which something was read.
    read: usize,
    /// The resource version that the client knows.
    known: Option<String>,
    /// The resource version of the initial list, and what was in it.
    listed_at: Option<String>,
    listed: BTreeSet<ObjectKey>,
    triggered: BTreeSet<ObjectKey>,
    listing: Option<Listing<'a>>,
    /// The process that had it is gone.
    over: bool,
}

struct Listing<'a> {
    start: &'a ListStart,
    step: usize,
    triggered: BTreeSet<ObjectKey>,
}

/// A read from a view, however it was made.
struct ViewRead<'a> {
    stream: usize,
    incarnation: u32,
    position: usize,
    query: &'a Query,
    answer: &'a [Seen],
}

impl<'a> Views<'a> {
    pub(super) fn new(run: &'a Run) -> Result<Self, Illegal> {
        let stream = |record: &'a StreamRecord| {
            let visible = Visible::new(&run.history, &record.identity)
                .map_err(|text| Illegal::new(Axiom::History, None, text))?;
            Ok(Stream {
                record,
                visible,
                incarnation: 0,
                base: 0,
                released: 0,
                read: 0,
                known: None,
                listed_at: None,
                listed: BTreeSet::new(),
                triggered: BTreeSet::new(),
                listing: None,
                over: false,
            })
        };
        let streams = run.streams.iter().map(stream).collect::<Result<_, _>>()?;
        let certificate = Certificate { commits: run.history.len(), ..Certificate::default() };
        Ok(Self { run, streams, certificate })
    }

    pub(super) fn into_certificate(self) -> Certificate {
        self.certificate
    }

    pub(super) fn read(&mut self, step: usize, read: &CachedRead) -> Result<(), Illegal> {
        self.view(
            step,
            &ViewRead {
                stream: read.stream,
                incarnation: read.incarnation,
                position: read.position,
                query: &read.query,
                answer: &read.answer,
            },
        )
    }

    pub(super) fn request(&mut self, step: usize, request: &RequestStep) -> Result<(), Illegal> {
        let asked = &request.request;
        let query = match (asked.verb, &asked.name) {
            (Verb::Get, Some(name)) if asked.subresource.is_none() => {
                let key = ObjectKey { namespace: asked.namespace.clone(), name: name.clone() };
                Query::Get(key)
            }
            (Verb::List, _) => Query::All,
            _ => return Ok(()),
        };
        let judged = match &asked.outcome {
            Outcome::Status(200) => true,
            Outcome::Status(404) => matches!(query, Query::Get(_)),
            _ => false,
        };
        if !judged || asked.resource.is_empty() || asked.answered_by == AnsweredBy::Answer {
            return Ok(());
        }
        let identity = Identity {
            group: asked.group.clone(),
            version: asked.version.clone(),
            resource: asked.resource.clone(),
            namespace: asked.namespace.clone(),
            labels: asked.labels.clone(),
            fields: asked.fields.clone(),
            representation: Representation::Full,
        };
        let illegal = |text: String| Err(Illegal::new(Axiom::LiveReads, step, text));
        let from = match request.source {
            Source::Test => return Ok(()),
            Source::View { stream, incarnation, position } => {
                // A list by a selector is answered from a stream without one.
                let query = match &identity.labels {
                    Some(labels) if query == Query::All => {
                        let own = self.run.streams.get(stream).map(|s| &s.identity.labels);
                        if own == Some(&identity.labels) {
                            query
                        } else {
                            Query::Labels(labels.clone())
                        }
                    }
                    _ => query,
                };
                let answer = &request.reply;
                return self.view(
                    step,
                    &ViewRead { stream, incarnation, position, query: &query, answer },
                );
            }
            Source::Live => None,
            Source::AnyVersion => Some(0),
        };
        let visible = match Visible::new(&self.run.history, &identity) {
            Ok(visible) => visible,
            Err(text) => return illegal(text),
        };
        let from = from.unwrap_or_else(|| visible.available_before(request.sent));
        let to = visible.available(step);
        for count in from..=to.max(from) {
            match answers(&visible.state(count), &query, &request.reply) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(text) => return illegal(text),
            }
        }
        illegal(format!(
            "the reply to #{} ({} {}) shows {}, which the server never had between request and reply",
            asked.number,
            asked.verb,
            qualified(&asked.group, &asked.resource),
            list(&request.reply)
        ))
    }

    fn view(&mut self, step: usize, read: &ViewRead<'_>) -> Result<(), Illegal> {
        let stream = self.stream(step, read.stream)?;
        let name = stream.record.to_string();
        let illegal = |axiom, text: String| Err(Illegal::new(axiom, step, text));
        if stream.over {
            return illegal(
                Axiom::FreshStart,
                format!("{name} is read as before the restart of its client"),
            );
        }
        if read.incarnation > stream.incarnation {
            let text = format!(
                "{name} is read in incarnation {}, whose initial list is not complete",
                read.incarnation
            );
            return illegal(Axiom::AtomicInit, text);
        }
        if read.incarnation < stream.incarnation {
            let text = format!(
                "{name} is read in incarnation {} after incarnation {} began",
                read.incarnation, stream.incarnation
            );
            return illegal(Axiom::Monotone, text);
        }
        if read.incarnation == 0 {
            if read.position > 0 || !read.answer.is_empty() {
                let text = format!("{name} shows something before its first initial list");
                return illegal(Axiom::AtomicInit, text);
            }
            self.certify(step, read);
            return Ok(());
        }
        let available = stream.visible.available(step);
        let reached = stream.base + read.position;
        if reached > available {
            let text = format!(
                "{name} is read at position {}, and {} events were committed",
                read.position,
                available.saturating_sub(stream.base)
            );
            return illegal(Axiom::Available, text);
        }
        let least = stream.released.max(stream.read);
        if read.position < least {
            let text = format!("{name} is read at position {} after {least}", read.position);
            return illegal(Axiom::Monotone, text);
        }
        let judged = answers(&stream.visible.state(reached), read.query, read.answer);
        match judged {
            Err(text) => return illegal(Axiom::History, text),
            Ok(false) => {
                let axiom =
                    if self.is_view_of_another(read) { Axiom::Independence } else { Axiom::Prefix };
                let text = format!(
                    "{name} at position {} does not answer {} to {:?}",
                    read.position,
                    list(read.answer),
                    read.query.to_string()
                );
                return illegal(axiom, text);
            }
            Ok(true) => {}
        }
        let position = read.position;
        self.streams[read.stream].read = least.max(position);
        self.certify(step, read);
        Ok(())
    }

    /// Whether another stream, where it stands, would give this answer.
    fn is_view_of_another(&self, read: &ViewRead<'_>) -> bool {
        self.streams.iter().enumerate().any(|(index, other)| {
            let reached = other.base + other.released.max(other.read);
            index != read.stream
                && !read.answer.is_empty()
                && answers(&other.visible.state(reached), read.query, read.answer) == Ok(true)
        })
    }

    fn certify(&mut self, step: usize, read: &ViewRead<'_>) {
        let stream = &self.streams[read.stream];
        let reached = stream.base + read.position;
        let available = stream.visible.available(step);
        let shown = match read.position.checked_sub(1) {
            None if read.incarnation == 0 => None,
            None => stream.listed_at.clone(),
            Some(last) => stream
                .visible
                .get(stream.base + last)
                .map(|event| event.commit.resource_version.clone()),
        };
        let held =
            stream.visible.get(reached).filter(|_| reached < available).map(|event| HeldEvent {
                resource_version: event.commit.resource_version.clone(),
                change: event.change,
                key: event.commit.key.clone(),
                by: event.commit.by.clone(),
            });
        self.certificate.views.push(CertifiedView {
            step,
            stream: stream.record.to_string(),
            incarnation: read.incarnation,
            position: read.position,
            available: available.saturating_sub(stream.base),
            shown,
            held,
        });
    }

    pub(super) fn release(&mut self, step: usize, release: &Release) -> Result<(), Illegal> {
        let stream = self.stream(step, release.stream)?;
        let name = stream.record.to_string();
        if stream.over {
            let text = format!("{name} shows events to a client that has ended");
            return Err(Illegal::new(Axiom::FreshStart, step, text));
        }
        if release.incarnation != stream.incarnation {
            let axiom = if release.incarnation > stream.incarnation {
                Axiom::AtomicInit
            } else {
                Axiom::Monotone
            };
            let text = format!(
                "{name} shows events of incarnation {} in incarnation {}",
                release.incarnation, stream.incarnation
            );
            return Err(Illegal::new(axiom, step, text));
        }
        for event in &release.events {
            self.streams[release.stream].take(step, event)?;
            self.certificate.released += 1;
        }
        Ok(())
    }

    pub(super) fn bookmark(
        &mut self,
        step: usize,
        stream: usize,
        resource_version: &str,
    ) -> Result<(), Illegal> {
        let stream = self.stream(step, stream)?;
        let name = stream.record.to_string();
        let illegal = |text: String| Err(Illegal::new(Axiom::Bookmarks, step, text));
        let Some(covered) = stream.visible.up_to(resource_version) else {
            return illegal(format!("{name} has a bookmark at {resource_version:?}"));
        };
        if covered > stream.base + stream.released {
            return illegal(format!(
                "{name} has a bookmark at rv {resource_version} in front of {} events up to there",
                covered - stream.base - stream.released
            ));
        }
        if let Some(known) = &stream.known
            && compare_resource_versions(known, resource_version).is_none_or(|order| order.is_gt())
        {
            return illegal(format!(
                "{name} has a bookmark at rv {resource_version} after {known}"
            ));
        }
        stream.known = Some(resource_version.to_owned());
        Ok(())
    }

    pub(super) fn resume(
        &mut self,
        step: usize,
        stream: usize,
        resource_version: &str,
    ) -> Result<(), Illegal> {
        let stream = self.stream(step, stream)?;
        let known = stream.known.as_deref().unwrap_or("none");
        if known == resource_version {
            return Ok(());
        }
        let ahead = compare_resource_versions(known, resource_version).is_some_and(|o| o.is_lt());
        let axiom = if ahead { Axiom::Prefix } else { Axiom::Monotone };
        let text = format!("{} goes on at rv {resource_version} after {known}", stream.record);
        Err(Illegal::new(axiom, step, text))
    }

    pub(super) fn list_start(&mut self, step: usize, start: &'a ListStart) -> Result<(), Illegal> {
        let stream = self.stream(step, start.stream)?;
        if start.incarnation <= stream.incarnation {
            let text = format!(
                "{} begins incarnation {} after {}",
                stream.record, start.incarnation, stream.incarnation
            );
            return Err(Illegal::new(Axiom::Monotone, step, text));
        }
        stream.listing = Some(Listing { start, step, triggered: BTreeSet::new() });
        Ok(())
    }

    pub(super) fn list_end(&mut self, step: usize, end: &ListEnd) -> Result<(), Illegal> {
        self.stream(step, end.stream)?.list(step, end)
    }

    pub(super) fn trigger(&mut self, step: usize, trigger: &Trigger) -> Result<(), Illegal> {
        self.stream(step, trigger.stream)?.trigger(step, trigger)
    }

    /// The client under test is gone with its caches; the streams of the harness stay.
    pub(super) fn restart(&mut self) {
        for stream in &mut self.streams {
            stream.over |= stream.record.role != Role::Replica;
            stream.listing = None;
        }
    }

    fn stream(&mut self, step: usize, index: usize) -> Result<&mut Stream<'a>, Illegal> {
        self.streams.get_mut(index).ok_or_else(|| {
            Illegal::new(Axiom::History, step, format!("there is no stream with index {index}"))
        })
    }
}

impl Stream<'_> {
    /// Takes the next event, which must be exactly the next one of the history.
    fn take(&mut self, step: usize, shown: &ShownEvent) -> Result<(), Illegal> {
        let reached = self.base + self.released;
        let next = self.visible.get(reached);
        let is_it = next.is_some_and(|next| {
            next.commit.key == shown.key
                && next.commit.resource_version == shown.resource_version
                && next.change == shown.change
        });
        let text = format!(
            "{} shows {} {} at rv {}",
            self.record, shown.change, shown.key, shown.resource_version
        );
        if is_it {
            if reached >= self.visible.available(step) {
                let text = format!("{text}, which is not committed yet");
                return Err(Illegal::new(Axiom::Available, step, text));
            }
            self.released += 1;
            self.known = Some(shown.resource_version.clone());
            return Ok(());
        }
        let expected = next.map_or_else(
            || "nothing more".to_owned(),
            |next| {
                format!(
                    "{} {} at rv {}",
                    next.change, next.commit.key, next.commit.resource_version
                )
            },
        );
        let known = self.visible.index_of(&shown.key, &shown.resource_version).is_some();
        let elsewhere = !known && self.visible.is_elsewhere(&shown.key, &shown.resource_version);
        let axiom = if elsewhere { Axiom::Independence } else { Axiom::Prefix };
        Err(Illegal::new(axiom, step, format!("{text}, and next in it is {expected}")))
    }

    fn list(&mut self, step: usize, end: &ListEnd) -> Result<(), Illegal> {
        let name = self.record.to_string();
        let illegal = |axiom, text: String| Err(Illegal::new(axiom, step, text));
        let Some(listing) =
            self.listing.take().filter(|listing| listing.start.incarnation == end.incarnation)
        else {
            let text = format!("{name} ends an initial list that did not begin");
            return illegal(Axiom::AtomicInit, text);
        };
        let Some(base) = self.visible.up_to(&end.resource_version) else {
            let text = format!("{name} is listed at {:?}", end.resource_version);
            return illegal(Axiom::History, text);
        };
        if base > self.visible.available(step) {
            let text = format!(
                "{name} is listed at rv {}, and not all up to it is committed",
                end.resource_version
            );
            return illegal(Axiom::Available, text);
        }
        let order = |asked: &str| compare_resource_versions(&end.resource_version, asked);
        let fresh = match &listing.start.asked {
            ListVersion::Consistent => base >= self.visible.available(listing.step),
            ListVersion::Any => true,
            ListVersion::NotOlderThan(asked) => order(asked).is_some_and(|order| order.is_ge()),
            ListVersion::Exact(asked) => order(asked).is_some_and(|order| order.is_eq()),
        };
        if !fresh {
            let text = format!(
                "{name} is listed at rv {}, and what was asked for is {:?}",
                end.resource_version, listing.start.asked
            );
            return illegal(Axiom::FreshStart, text);
        }
        let state = self.visible.state(base);
        if answers(&state, &Query::All, &end.objects) != Ok(true) {
            let part = answers(&state, &Query::Filtered, &end.objects) == Ok(true);
            let axiom = if part { Axiom::AtomicInit } else { Axiom::Prefix };
            let text = format!(
                "{name} is listed at rv {} with {}, and has {} objects there",
                end.resource_version,
                list(&end.objects),
                state.len()
            );
            return illegal(axiom, text);
        }
        let listed: BTreeSet<_> = end.objects.iter().map(|seen| seen.key.clone()).collect();
        if let Some(vanished) = listing.triggered.iter().find(|key| !listed.contains(*key)) {
            let text = format!("{name} triggered for {vanished}, which its initial list lacks");
            return illegal(Axiom::Compression, text);
        }
        self.incarnation = end.incarnation;
        self.base = base;
        self.released = 0;
        self.read = 0;
        self.known = Some(end.resource_version.clone());
        self.listed_at = Some(end.resource_version.clone());
        self.listed = listed;
        self.triggered = listing.triggered;
        self.over = false;
        Ok(())
    }

    fn trigger(&mut self, step: usize, trigger: &Trigger) -> Result<(), Illegal> {
        let name = self.record.to_string();
        let illegal = |axiom, text: String| Err(Illegal::new(axiom, step, text));
        if trigger.from_list {
            let (triggered, complete) = match &mut self.listing {
                Some(listing) => (&mut listing.triggered, false),
                None => (&mut self.triggered, true),
            };
            if complete && !self.listed.contains(&trigger.object) {
                let text = format!("{name} triggered for {}, which its list lacks", trigger.object);
                return illegal(Axiom::Compression, text);
            }
            if !triggered.insert(trigger.object.clone()) {
                let text = format!("{name} triggered twice for {} of one list", trigger.object);
                return illegal(Axiom::Compression, text);
            }
            return Ok(());
        }
        let shown = self
            .visible
            .index_of(&trigger.object, &trigger.resource_version)
            .is_some_and(|index| index < self.base + self.released);
        if shown {
            return Ok(());
        }
        let axiom =
            if self.record.role == Role::Main { Axiom::TriggerAndView } else { Axiom::Prefix };
        let text = format!(
            "{name} triggered for {} at rv {}, which it has not shown",
            trigger.object, trigger.resource_version
        );
        illegal(axiom, text)
    }
}

fn list(seen: &[Seen]) -> String {
    if seen.is_empty() {
        return "nothing".to_owned();
    }
    let one = |seen: &Seen| format!("{} at rv {}", seen.key, seen.resource_version);
    seen.iter().map(one).collect::<Vec<_>>().join(", ")
}
