//! Judging a run: whether every view in it is one that a real cluster could have shown.
//!
//! The checker shares nothing with the engine that made the run but the record. It folds the history of
//! the server by itself and compares.

mod authors;
mod count;
mod stream;
#[cfg(test)]
mod tests;
mod views;
mod visible;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::count::interleavings;
use super::{Action, Certificate, Fault, Run};

/// Judges a run. Its certificate says where in the history each view stands.
///
/// ```
/// use laggard::lag::model::{Run, check};
///
/// let certificate = check(&Run::new("nothing happened"))?;
/// assert!(certificate.views.is_empty());
/// # Ok::<(), laggard::lag::model::Illegal>(())
/// ```
///
/// # Errors
/// [`Illegal`] names the first axiom that is broken, the step, and what is wrong there. It is an error of
/// the harness, never of the code under test.
pub fn check(run: &Run) -> Result<Certificate, Illegal> {
    authors::check_history(run)?;
    authors::check_authors(run)?;
    let mut views = views::Views::new(run)?;
    let mut passes = Passes::default();
    for (index, step) in run.steps.iter().enumerate() {
        passes.step(index, step)?;
        match &step.action {
            Action::Request(request) => {
                authors::check_write(run, index, request)?;
                views.request(index, request)?;
            }
            Action::Read(read) => views.read(index, read)?,
            Action::Release(release) => views.release(index, release)?,
            Action::Bookmark { stream, resource_version } => {
                views.bookmark(index, *stream, resource_version)?;
            }
            Action::Resume { stream, resource_version } => {
                views.resume(index, *stream, resource_version)?;
            }
            Action::ListStart(start) => views.list_start(index, start)?,
            Action::ListEnd(end) => views.list_end(index, end)?,
            Action::Trigger(trigger) => views.trigger(index, trigger)?,
            Action::Fault(Fault::Restart) => views.restart(),
            Action::Hold(_)
            | Action::PassStart(_)
            | Action::PassEnd { .. }
            | Action::Environment(_)
            | Action::Fault(_)
            | Action::Violation(_) => {}
        }
    }
    Ok(views.into_certificate())
}

/// The rules that make a run one of a real cluster.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Axiom {
    /// The server has one history: within a resource revisions ascend, and each change fits the state.
    History,
    /// A view is the beginning of what its stream shows: no gap, no other order, no event twice.
    Prefix,
    /// A view shows nothing that has not been committed.
    Available,
    /// A view never goes back while its watch lives or is resumed.
    Monotone,
    /// A consistent initial list is no older than the moment it was asked for; another is what was asked.
    FreshStart,
    /// Nothing is read from an initial list that is not complete, and none is half.
    AtomicInit,
    /// A stream shows what it selects, at its own position, whatever other streams show.
    Independence,
    /// An initial list triggers for each object in it at most once, and for no other.
    Compression,
    /// A bookmark does not overtake an event.
    Bookmarks,
    /// A live read shows a state that the server had between its request and its reply.
    LiveReads,
    /// What a write's reply says is in the history; a refused write is not.
    Writes,
    /// In the main stream of a controller, the trigger of an event comes after its store has it.
    TriggerAndView,
    /// Two passes of one key never overlap.
    Passes,
    /// What another actor is said to have done is in the history, and the other way round.
    Environment,
}

impl fmt::Display for Axiom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::History => "history",
            Self::Prefix => "prefix",
            Self::Available => "available",
            Self::Monotone => "monotone",
            Self::FreshStart => "fresh start",
            Self::AtomicInit => "atomic init",
            Self::Independence => "independence",
            Self::Compression => "compression",
            Self::Bookmarks => "bookmarks",
            Self::LiveReads => "live reads",
            Self::Writes => "writes",
            Self::TriggerAndView => "trigger and view",
            Self::Passes => "passes",
            Self::Environment => "environment",
        })
    }
}

/// A run that no real cluster could have had.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the run breaks the axiom \"{axiom}\"{}: {text}", At(*step))]
pub struct Illegal {
    axiom: Axiom,
    step: Option<usize>,
    text: String,
}

impl Illegal {
    fn new(axiom: Axiom, step: impl Into<Option<usize>>, text: impl Into<String>) -> Self {
        Self { axiom, step: step.into(), text: text.into() }
    }

    /// The rule that is broken.
    #[must_use]
    pub fn axiom(&self) -> Axiom {
        self.axiom
    }

    /// The index of the step that breaks it; `None` if it is the history itself.
    #[must_use]
    pub fn step(&self) -> Option<usize> {
        self.step
    }
}

struct At(Option<usize>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // People count from 1.
            Some(step) => write!(f, " at step {}", step + 1),
            None => Ok(()),
        }
    }
}

/// The passes under way.
#[derive(Default)]
struct Passes<'a> {
    open: Vec<&'a super::PassStart>,
    last: u32,
}

impl<'a> Passes<'a> {
    fn step(&mut self, index: usize, step: &'a super::Step) -> Result<(), Illegal> {
        let illegal = |text: String| Err(Illegal::new(Axiom::Passes, index, text));
        match &step.action {
            Action::PassStart(start) => {
                let same = |open: &&&super::PassStart| {
                    (&open.controller, &open.key) == (&start.controller, &start.key)
                };
                if let Some(open) = self.open.iter().find(same) {
                    return illegal(format!(
                        "pass {} of {} begins while pass {} of it is under way",
                        start.pass, start.key, open.pass
                    ));
                }
                if start.pass <= self.last {
                    return illegal(format!("pass {} begins a second time", start.pass));
                }
                self.last = start.pass;
                self.open.push(start);
            }
            Action::PassEnd { pass, .. } => {
                let Some(at) = self.open.iter().position(|open| open.pass == *pass) else {
                    return illegal(format!("pass {pass} ends and was not under way"));
                };
                self.open.remove(at);
            }
            Action::Fault(Fault::Restart) => self.open.clear(),
            Action::Request(_) | Action::Read(_) => {
                if let Some(pass) = step.pass
                    && self.open.iter().all(|open| open.pass != pass)
                {
                    return illegal(format!("it belongs to pass {pass}, which is not under way"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
