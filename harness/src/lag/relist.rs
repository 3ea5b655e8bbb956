//! Lists anew, also at earlier states: what a client sees that is sent to a server that is behind.

use super::{
    engine::{Engine, Registry},
    error::{StreamError, StreamErrorKind},
    filter::Filter,
    model::{Connection, Identity, ListVersion, compare_resource_versions},
    selector::StreamSelector,
    streams::{Replay, Retained, Stream},
};

/// Relists.
impl<K> StreamSelector<K> {
    /// Ends the watch of the one stream that matches as the server ends one that has expired: with status 200 and
    /// an ERROR frame of code 410. Its client lists anew. What waits is never handed on.
    ///
    /// A client that is between two watches is told so when it comes back. kube pauses after an error for as
    /// long as its back-off says; a `Controller` pauses all its streams for 1.0 to 1.5 s.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`; `NoWatch` if the client has dropped it.
    pub fn expire(&self) -> Result<(), StreamError> {
        let attempt = "expire the watch";
        let chosen = self.engine.look(|registry| self.filter.choose(&registry.streams));
        let index = self.only(attempt, &chosen)?;
        let expired = self.engine.change_and_wake(|registry| registry.streams[index].expire());
        if expired { Ok(()) } else { Err(self.failure(attempt, StreamErrorKind::NoWatch, index)) }
    }

    /// As [`expire`](Self::expire), and waits until the client has listed anew and watches again.
    ///
    /// # Errors
    /// As that; `NotRelisted` if it did not within the deadline.
    pub async fn relist(&self) -> Result<(), StreamError> {
        self.expire_and_wait("make the client list anew").await.map(drop)
    }

    /// Makes the client of the one stream that matches list anew and see the state at an earlier resource version,
    /// as one does that is sent to an API server that is behind; then waits until it watches from there.
    ///
    /// Only a client that asks for any state, at resource version 0, can see an earlier one: with kube
    /// `streaming_lists`, and `any_semantic` where `page_size` is `None` (with a page size kube leaves the
    /// version out). One that lists consistently sees at least what there is. The state is
    /// the server's own at exactly that version, or, where the server has forgotten it, that of the log of
    /// this stream. Events after it are handed on as the stream's hold says.
    ///
    /// # Errors
    /// As [`relist`](Self::relist); `NoNumber`; `NotReceived` if the version is newer than what the stream has
    /// received; `IllegalStart` if its client's list may not show that state, also if it turned out to ask
    /// for another one this time, or could not be told from that of another instance that lists at the same
    /// time (see [`start_from`](Self::start_from)).
    pub async fn relist_from(&self, resource_version: &str) -> Result<(), StreamError> {
        let attempt = format!("make the client list the state at {resource_version}");
        self.check_number(&attempt, resource_version)?;
        let chosen = self.engine.look(|registry| self.filter.choose(&registry.streams));
        let index = self.only(&attempt, &chosen)?;
        let problem = self.engine.look(|registry| {
            let stream = &registry.streams[index];
            let received = stream.received_resource_version().unwrap_or("0");
            let is_newer = compare_resource_versions(resource_version, received)
                .is_some_and(std::cmp::Ordering::is_gt);
            if is_newer {
                return Some(StreamErrorKind::NotReceived);
            }
            let allowed = match stream.asked() {
                // Only the present state, which is what the list shows anyway.
                Some(ListVersion::Consistent) => resource_version == received,
                Some(asked) => asked.allows(resource_version),
                None => true,
            };
            (!allowed).then_some(StreamErrorKind::IllegalStart)
        });
        if let Some(kind) = problem {
            return Err(self.failure(&attempt, kind, index));
        }
        let filter = self.engine.look(|registry| {
            let Stream { identity, instance, .. } = &registry.streams[index];
            Filter::exactly(identity, *instance)
        });
        let start = (filter, resource_version.to_owned());
        self.engine.change(|registry| registry.start_from(start.clone()));
        let _withdrawn_if_unused = ForOneList { engine: &self.engine, start };
        let index = self.expire_and_wait(&attempt).await?;
        let shown = self.engine.look(|registry| {
            registry.streams[index].initial_resource_version() == resource_version
        });
        if shown {
            Ok(())
        } else {
            Err(self.failure(&attempt, StreamErrorKind::IllegalStart, index))
        }
    }

    /// The next initial list of a stream that matches shows the state at that resource version, whoever makes it
    /// start. See [`relist_from`](Self::relist_from).
    ///
    /// A list that may not show it is answered with a 500 that says so, and its next attempt as it asks.
    ///
    /// A list does not say which of several instances it is for. It is that of the instance whose watch has
    /// expired; where there is none, of the one whose client has left; where there is none either, of the
    /// next new one. Where that leaves several and [`instance`](Self::instance) names one of them, the list is
    /// refused in the same way: let one list after the other, or name none, and the first of them shows the state.
    ///
    /// # Errors
    /// `NoNumber`.
    pub fn start_from(&self, resource_version: &str) -> Result<(), StreamError> {
        self.check_number("choose what the next list shows", resource_version)?;
        let start = (self.filter.clone(), resource_version.to_owned());
        self.engine.change(|registry| registry.start_from(start));
        Ok(())
    }

    /// The resource versions at which the log of the one stream that matches holds a state, from the oldest:
    /// what [`relist_from`](Self::relist_from) can show whatever the server has forgotten.
    ///
    /// # Errors
    /// `NoStream`, `Ambiguous`.
    pub fn retained(&self) -> Result<Vec<String>, StreamError> {
        self.look("tell which states are retained", Stream::retained)
    }

    async fn expire_and_wait(&self, attempt: &str) -> Result<usize, StreamError> {
        let deadline = self.deadline();
        let index = self.find(attempt, deadline).await?;
        let before = self.engine.look(|registry| registry.streams[index].incarnation());
        self.expire()?;
        let relisted = |registry: &Registry| {
            let stream = &registry.streams[index];
            let there = stream.view().ready && stream.connection() == Connection::Open;
            (there && stream.incarnation() > before).then_some(index)
        };
        let relisted = self.engine.wait(deadline, relisted).await;
        relisted.ok_or_else(|| self.failure(attempt, StreamErrorKind::NotRelisted, index))
    }
}

/// A choice that is withdrawn if no list has taken it by the end of its relist.
struct ForOneList<'a> {
    engine: &'a Engine,
    start: (Filter, String),
}

impl Drop for ForOneList<'_> {
    fn drop(&mut self) {
        self.engine.change(|registry| registry.starts.retain(|known| *known != self.start));
    }
}

/// What an initial list is to show.
pub(super) enum ListStart {
    /// What it asks for.
    AsAsked,
    /// The state at a resource version.
    At(String),
    /// It may not show what the test has chosen; the text says why.
    Refused(String),
}

impl Engine {
    /// Decides what an initial list shows.
    pub(super) fn list_start(&self, identity: &Identity, asked: &ListVersion) -> ListStart {
        if let Some(chosen) = self.change(|registry| registry.take_start(identity)) {
            let refused = |problem: &str| {
                ListStart::Refused(format!(
                    "failed to show {identity} at resource version {}: {problem}",
                    chosen.version
                ))
            };
            return match asked {
                _ if chosen.indistinct.len() > 1 => {
                    let instances: Vec<_> =
                        chosen.indistinct.iter().map(ToString::to_string).collect();
                    refused(&format!(
                        "this list may be that of instance {}, and it was chosen for one of them; \
                         let one after the other list, or choose without an instance",
                        instances.join(" or ")
                    ))
                }
                _ if asked.allows(&chosen.version) => ListStart::At(chosen.version),
                ListVersion::Consistent => refused(
                    "the client lists consistently, so it sees at least what there is; \
                     only lists at resource version 0 can be older",
                ),
                asked => refused(&format!("the client asks for {asked:?}")),
            };
        }
        let mut versions = self.look(|registry| registry.retained(identity));
        versions.retain(|version| asked.allows(version));
        versions.reverse();
        if versions.len() < 2 {
            return ListStart::AsAsked;
        }
        match self.schedule.ask(|scheduler| scheduler.initial(identity, &versions)) {
            Some(chosen) if chosen > 0 && chosen < versions.len() => {
                ListStart::At(versions.swap_remove(chosen))
            }
            _ => ListStart::AsAsked,
        }
    }
}

/// What a test has chosen for a list.
struct ChosenStart {
    version: String,
    /// The instances that the list may be for, if it was chosen for one.
    indistinct: Vec<usize>,
}

impl Registry {
    fn start_from(&mut self, start: (Filter, String)) {
        self.starts.retain(|(known, _)| *known != start.0);
        self.starts.push(start);
    }

    fn take_start(&mut self, identity: &Identity) -> Option<ChosenStart> {
        let listing = self.listing(identity);
        let index = self.starts.iter().rposition(|(filter, _)| {
            listing.iter().any(|instance| filter.matches(identity, *instance))
        })?;
        let (filter, version) = self.starts.remove(index);
        let indistinct = if filter.instance.is_some() { listing } else { Vec::new() };
        Some(ChosenStart { version, indistinct })
    }

    fn retained(&self, identity: &Identity) -> Vec<String> {
        let streams = self.streams.iter().filter(|stream| stream.identity == *identity);
        streams.map(Stream::retained).max_by_key(Vec::len).unwrap_or_default()
    }

    /// The state of a collection at a resource version, if a log has it.
    pub(super) fn state_at(&self, identity: &Identity, version: &str) -> Option<Retained> {
        let mut streams = self.streams.iter().filter(|stream| stream.identity == *identity);
        streams.find_map(|stream| stream.state_at(version))
    }

    /// What has followed a state, if a log knows.
    pub(super) fn replay(&self, identity: &Identity, version: &str) -> Option<Replay> {
        self.state_at(identity, version).map(|retained| retained.after)
    }
}

impl ListVersion {
    /// Whether a list that asks for this may show the state at `resource_version`, however old that is.
    fn allows(&self, resource_version: &str) -> bool {
        match self {
            Self::Any => true,
            Self::NotOlderThan(least) => compare_resource_versions(resource_version, least)
                .is_some_and(std::cmp::Ordering::is_ge),
            Self::Exact(version) => version == resource_version,
            Self::Consistent => false,
        }
    }
}
