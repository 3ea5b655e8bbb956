//! The scheduler that puts every decision to a chooser, as a named point with a menu.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    boundary::{Boundary, Scheduler},
    error::StreamError,
    model::{
        Alt, CachedRead, Chooser, Chosen, Identity, Kind, Point, PointId, Query, Representation,
        StreamDescription, moves_at,
    },
    released::Released,
};

/// Puts each decision to a [`Chooser`], and keeps what was chosen.
///
/// A boundary with three held streams is three points. A menu begins with the freshest: everything is
/// released, the newest answer is given, the list shows what the server has. Staying behind costs 1 where the
/// hold opens, and nothing while it goes on.
///
/// ```no_run
/// use laggard::lag::{Choices, Lag, model::Freshest};
///
/// # fn example(lag: &Lag) {
/// lag.hold();
/// let choices = Choices::new(Freshest);
/// let record = choices.record();
/// lag.set_scheduler(choices);
/// // ... run the code under test ...
/// lag.clear_scheduler();
/// for chosen in record.chosen() {
///     println!("{chosen}");
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Choices<C> {
    chooser: C,
    record: ChoiceRecord,
    met: BTreeMap<(String, Kind), u32>,
    /// How far each stream was behind after the last boundary, by its subject.
    behind: BTreeMap<String, usize>,
    subjects: BTreeMap<(Identity, usize), String>,
}

impl<C: Chooser> Choices<C> {
    /// Asks `chooser`, from the first point on.
    #[must_use]
    pub fn new(chooser: C) -> Self {
        Self {
            chooser,
            record: ChoiceRecord::default(),
            met: BTreeMap::new(),
            behind: BTreeMap::new(),
            subjects: BTreeMap::new(),
        }
    }

    /// A handle on what is chosen, for when the scheduler has been given away.
    #[must_use]
    pub fn record(&self) -> ChoiceRecord {
        self.record.clone()
    }

    /// Puts a decision of another kind, about `subject`, to the chooser: the index in the menu, whose first
    /// alternative must be free.
    pub(crate) fn decide(&mut self, subject: &str, kind: Kind, menu: Vec<Alt>) -> usize {
        let id = self.next(subject, kind);
        self.choose(id, menu)
    }

    /// Whether the server tells the client of a stream that it knows its resource version no more.
    pub(crate) fn relist(&mut self, stream: &StreamDescription) -> bool {
        let subject = self.subject(&stream.identity, stream.instance);
        self.decide(&subject, Kind::Fault, vec![Alt::freshest(), Alt::other("relist", 1)]) > 0
    }

    /// The streams that were left behind at the last boundary at which they could move.
    pub(crate) fn behind(&self) -> Vec<&str> {
        let behind = self.behind.iter().filter(|(_, behind)| **behind > 0);
        behind.map(|(subject, _)| subject.as_str()).collect()
    }

    fn choose(&mut self, id: PointId, menu: Vec<Alt>) -> usize {
        // Menus are made below: not empty, the first free, the labels distinct.
        let Ok(point) = Point::new(id, menu) else { return 0 };
        let taken = self.chooser.choose(&point);
        let taken = if taken < point.menu().len() { taken } else { 0 };
        self.record.lock().chosen.push(Chosen { point, taken });
        taken
    }

    fn next(&mut self, subject: &str, kind: Kind) -> PointId {
        let number = self.met.entry((subject.to_owned(), kind)).or_default();
        *number += 1;
        PointId::new(subject, kind, *number)
    }

    /// The stream's resource, and a number where a run has several of it.
    fn subject(&mut self, identity: &Identity, instance: usize) -> String {
        let known = (identity.clone(), instance);
        if let Some(subject) = self.subjects.get(&known) {
            return subject.clone();
        }
        let form = match identity.representation {
            Representation::Metadata => "/metadata",
            _ => "",
        };
        let name = format!("{}{form}", identity.qualified_resource());
        let same = self
            .subjects
            .values()
            .filter(|subject| subject.split('#').next() == Some(name.as_str()));
        let subject = match same.count() {
            0 => name,
            others => format!("{name}#{}", others + 1),
        };
        self.subjects.insert(known, subject.clone());
        subject
    }
}

impl<C: Chooser> Scheduler for Choices<C> {
    fn release(
        &mut self,
        boundary: &Boundary,
        stream: &StreamDescription,
        waiting: &[Released],
    ) -> usize {
        let subject = self.subject(&stream.identity, stream.instance);
        let held_before = self.behind.get(&subject).is_some_and(|behind| *behind > 0);
        let menu = moves_at(0, waiting.len(), held_before).into_iter().map(|offer| offer.alt);
        let id = at_boundary(boundary, &subject);
        let lag = self.choose(id, menu.collect());
        self.behind.insert(subject, lag);
        waiting.len() - lag
    }

    fn not_taken(&mut self, boundary: &Boundary, stream: &StreamDescription, error: StreamError) {
        let subject = self.subject(&stream.identity, stream.instance);
        let id = at_boundary(boundary, &subject);
        self.record.lock().impossible.push((id, error.to_string()));
    }

    fn all_released(&mut self) {
        self.behind.clear();
    }

    fn read(&mut self, stream: &StreamDescription, answers: &[CachedRead]) -> usize {
        let stream = self.subject(&stream.identity, stream.instance);
        let subject = match answers.first().map(|answer| &answer.query) {
            Some(Query::Get(key)) => format!("{stream}/{}", key.name),
            _ => stream,
        };
        let id = self.next(&subject, Kind::Read);
        self.choose(id, by_lag(answers.len()))
    }

    fn initial(&mut self, stream: &Identity, versions: &[String]) -> usize {
        let subject = self.subject(stream, 1);
        let id = self.next(&subject, Kind::Init);
        self.choose(id, by_lag(versions.len()))
    }

    fn last_point(&self) -> Option<PointId> {
        self.record.lock().chosen.last().map(|chosen| chosen.point.id().clone())
    }
}

/// A stream at the reply to a request, or where triggers are delivered: at the start of a pass, or between passes.
fn at_boundary(boundary: &Boundary, subject: &str) -> PointId {
    let triggers = boundary.pass.is_some() || boundary.is_delivery();
    let kind = if triggers { Kind::Trigger } else { Kind::Boundary };
    PointId::new(subject, kind, u32::try_from(boundary.number).unwrap_or(u32::MAX))
}

fn by_lag(length: usize) -> Vec<Alt> {
    let alternative = |lag: usize| match u32::try_from(lag).unwrap_or(u32::MAX) {
        0 => Alt::freshest(),
        lag => Alt::behind(lag),
    };
    (0..length).map(alternative).collect()
}

/// What was chosen, in order; a clone is another handle on the same record.
#[derive(Clone, Debug, Default)]
pub struct ChoiceRecord(Arc<Mutex<Recorded>>);

#[derive(Debug, Default)]
struct Recorded {
    chosen: Vec<Chosen>,
    impossible: Vec<(PointId, String)>,
}

impl ChoiceRecord {
    /// The points so far, with what was taken at each.
    #[must_use]
    pub fn chosen(&self) -> Vec<Chosen> {
        self.lock().chosen.clone()
    }

    /// How many points there have been.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().chosen.len()
    }

    /// Whether there has been none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The boundaries at which what was chosen could not be done, each with the reason: such a run is none
    /// that the code under test can have.
    #[must_use]
    pub fn impossible(&self) -> Vec<(PointId, String)> {
        self.lock().impossible.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        // Nothing that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
