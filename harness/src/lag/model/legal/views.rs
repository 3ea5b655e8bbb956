//! Where each stream stands, and whether what was shown and read fits there.

use std::collections::BTreeSet;

use super::{
    super::{
        AnsweredBy, CachedRead, Certificate, CertifiedView, HeldEvent, Identity, ListEnd,
        ListStart, ObjectKey, Outcome, Query, Release, Representation, RequestStep, Role, Run,
        Seen, Source, StreamRecord, Trigger, Verb, compare_resource_versions,
    },
    Axiom, Illegal,
    authors::qualified,
    stream::{Listing, Stream, words},
    visible::{Visible, answers},
};

/// The streams of a run while its steps are gone through.
pub(super) struct Views<'a> {
    run: &'a Run,
    streams: Vec<Stream<'a>>,
    certificate: Certificate,
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
            Ok(Stream::new(record, visible))
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
            Source::Test | Source::Unobserved => return Ok(()),
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
            words(&request.reply)
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
                    words(read.answer),
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
