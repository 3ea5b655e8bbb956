//! Subjects that are a closure, for tests about one question.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{
    explore::{Choices, Ending, Outcome, Subject},
    lag::model::{Alt, Chooser, Kind, Point, PointId},
};

/// Runs a closure that asks; its record is what was asked and taken.
pub(super) struct Script<F> {
    script: F,
    runs: AtomicUsize,
    in_flight: AtomicUsize,
    pub(super) most_in_flight: AtomicUsize,
}

impl<F> Script<F>
where
    F: Fn(&mut Asker) -> Result<Ending, Broken> + Sync,
{
    pub(super) fn new(script: F) -> Self {
        Self {
            script,
            runs: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
        }
    }

    pub(super) fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }
}

/// A run that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the plane is gone")]
pub(super) struct Broken;

pub(super) struct Asker {
    choices: Choices,
    numbers: BTreeMap<(String, Kind), u32>,
    pub(super) trace: Vec<String>,
    /// The number of this run, from 1.
    pub(super) run: usize,
}

impl Asker {
    /// A read with so many older answers; how many of them behind it is told.
    pub(super) fn read(&mut self, about: &str, older: u32) -> u32 {
        let menu = std::iter::once(Alt::freshest()).chain((1..=older).map(Alt::behind)).collect();
        u32::try_from(self.ask(about, Kind::Read, menu)).unwrap()
    }

    /// Whether the actor commits.
    pub(super) fn commits(&mut self, actor: &str) -> bool {
        let menu = vec![Alt::other("wait", 0), Alt::other("commit", 0)];
        self.ask(actor, Kind::Environment, menu) == 1
    }

    pub(super) fn ask(&mut self, about: &str, kind: Kind, menu: Vec<Alt>) -> usize {
        let number = self.numbers.entry((about.to_owned(), kind)).or_default();
        *number += 1;
        let point = Point::new(PointId::new(about, kind, *number), menu).unwrap();
        self.choices.choose(&point)
    }
}

impl<F> Subject for Script<F>
where
    F: Fn(&mut Asker) -> Result<Ending, Broken> + Sync,
{
    type Record = ();
    type Error = Broken;

    async fn run(&self, choices: Choices) -> Result<Outcome<()>, Broken> {
        let run = 1 + self.runs.fetch_add(1, Ordering::Relaxed);
        let in_flight = 1 + self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.most_in_flight.fetch_max(in_flight, Ordering::Relaxed);
        // The later a run is begun, the sooner it ends, among seven.
        for _ in 0..7 - run % 7 {
            super::program::yield_once().await;
        }
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let mut asker = Asker { choices, numbers: BTreeMap::new(), trace: Vec::new(), run };
        let ending = (self.script)(&mut asker)?;
        Ok(Outcome::new(ending, ()).with_trace(asker.trace))
    }
}

/// The ending of a run that fails if `condition` holds.
pub(super) fn fails_if(condition: bool) -> Result<Ending, Broken> {
    Ok(if condition { Ending::failed("never", "it was") } else { Ending::Passed })
}
