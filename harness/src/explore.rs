//! Exploring a subject: every run within bounds, the shrinking of what fails, and its replay.
//!
//! Nothing here knows Kubernetes. A [`Subject`] is run again and again with other [`Choices`]; what it
//! meets are [`Point`](crate::lag::model::Point)s, each with a menu. [`Search`] enumerates, [`Sample`]
//! draws, [`Shrink`] reduces, a [`Token`] replays and [`Regressions`] keeps tokens in a file.

mod choices;
mod clock;
mod pool;
mod progress;
mod random;
mod regressions;
mod replay;
mod sample;
mod search;
mod shrink;
mod states;
mod subject;
#[cfg(test)]
mod tests;
mod token;

pub use self::{
    choices::{Choices, Divergence, Unmatched, Why},
    clock::{Clock, Stopwatch},
    pool::{ExploreError, Failure},
    progress::Progress,
    regressions::{Regressions, RegressionsError},
    replay::{OutOfDate, ReplayError, confirm, repeat, replay},
    sample::Sample,
    search::{Explored, Passed, Search},
    shrink::{Shrink, Shrunk},
    states::{Reached, StateId},
    subject::{Ending, Outcome, Subject},
    token::{ParseTokenError, Token},
};
