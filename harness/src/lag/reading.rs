//! One read of a view: the distinct answers that it may get, and the one that it gets.

use std::sync::Arc;

use serde_json::Value;

use super::{
    engine::{Engine, Registry, Which},
    model::{CachedRead, ObjectKey, Objects, Query, Seen, Site, answers_at},
};

/// What of an object its reader looks at.
pub(super) type Projection = Arc<dyn Fn(&Value) -> Value + Send + Sync>;

/// What is asked of a stream.
pub(super) struct Question {
    pub(super) which: Which,
    pub(super) query: Query,
    pub(super) site: Option<Site>,
    pub(super) compare: Compare,
}

/// One answer that a read may get.
pub(super) struct Answered {
    pub(super) read: CachedRead,
    pub(super) objects: Vec<(ObjectKey, Value)>,
}

/// What of an answer the code under test can see.
#[derive(Clone, Copy)]
pub(super) enum Compare {
    Objects,
    Count,
    /// Whether there is one.
    Any,
}

impl Compare {
    fn of(self, objects: &[(ObjectKey, Value)], projection: Option<&Projection>) -> Value {
        match self {
            Self::Count => Value::from(objects.len()),
            Self::Any => Value::from(objects.is_empty()),
            Self::Objects => objects
                .iter()
                .map(|(key, object)| match projection {
                    // The name is seen in any case.
                    Some(projection) => serde_json::json!([key.to_string(), projection(object)]),
                    None => object.clone(),
                })
                .collect(),
        }
    }
}

/// Answers a read: as the scheduler chooses among the distinct answers, or, without one, as the store of the
/// stream's client would. The view does not go back behind it afterwards.
pub(super) fn read(
    engine: &Engine,
    question: Question,
    select: &dyn Fn(&Objects<'_>) -> Vec<ObjectKey>,
    projection: Option<&Projection>,
) -> Answered {
    let which = question.which;
    let mut menu = engine.look(|registry| menu(registry, question, select, projection));
    let taken = if menu.len() < 2 {
        0
    } else {
        let reads: Vec<CachedRead> = menu.iter().map(|answer| answer.read.clone()).collect();
        let stream = engine.look(|registry| registry.at(which).describe());
        let asked = engine
            .schedule
            .ask(|scheduler| (scheduler.read(&stream, &reads), scheduler.last_point()));
        match asked {
            Some((taken, point)) => {
                let taken = if taken < menu.len() { taken } else { 0 };
                menu[taken].read.point = point;
                taken
            }
            // Nobody to ask: what the store shows.
            None => {
                let oldest = menu.iter().enumerate().min_by_key(|(_, a)| a.read.position);
                oldest.map_or(0, |(index, _)| index)
            }
        }
    };
    let answer = menu.swap_remove(taken);
    engine.change(|registry| {
        registry.at_mut(which).note_read(answer.read.incarnation, answer.read.position);
    });
    answer
}

/// The distinct answers, the newest first, at least one; one of them is that of the present position.
fn menu(
    registry: &Registry,
    question: Question,
    select: &dyn Fn(&Objects<'_>) -> Vec<ObjectKey>,
    projection: Option<&Projection>,
) -> Vec<Answered> {
    let Question { which, query, site, compare } = question;
    let span = tracing::Span::current().metadata().map(|span| span.name().to_owned());
    let view = registry.at(which).readable();
    let (Which::Client(index) | Which::Replica(index)) = which;
    let taken_from = |objects: &Objects<'_>| -> Vec<(ObjectKey, Value)> {
        let keys = select(objects).into_iter();
        keys.filter_map(|key| Some((key.clone(), (*objects.get(&key)?).clone()))).collect()
    };
    let states: Vec<Vec<(ObjectKey, Value)>> = view.states(taken_from);
    let compared: Vec<Value> =
        states.iter().map(|objects| compare.of(objects, projection)).collect();
    let newest = compared.last().cloned().unwrap_or_default();
    let offers = answers_at(0..=states.len() - 1, |at| &compared[at]);
    let answers = offers.into_iter().map(|offer| {
        let objects = states[offer.position].clone();
        let read = CachedRead {
            stream: index,
            incarnation: view.incarnation,
            position: view.position + offer.position,
            query: query.clone(),
            answer: objects.iter().filter_map(|(_, object)| Seen::of(object)).collect(),
            site: site.clone(),
            span: span.clone(),
            behind: states.len() - 1 - offer.position,
            stale: compared[offer.position] != newest,
            point: None,
        };
        Answered { read, objects }
    });
    answers.collect()
}
