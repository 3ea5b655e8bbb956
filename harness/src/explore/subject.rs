//! What is explored: anything that can be run again with other choices.

use std::{collections::BTreeSet, error::Error, future::Future};

use super::Choices;

/// Something that can be run many times, each time asking at the same points in the same way.
///
/// Search, replay and shrinking know nothing else about it. A subject must be deterministic: given the
/// same choices it must meet the same points. That is checked, and a subject that is not ends the search
/// with [`Divergence`](super::Divergence).
///
/// ```
/// use laggard::{
///     explore::{Choices, Ending, Outcome, Search, Subject},
///     lag::model::{Alt, Chooser, Kind, Point, PointId},
/// };
///
/// /// Fails if its second read is stale.
/// struct TwoReads;
///
/// impl Subject for TwoReads {
///     type Record = ();
///     type Error = std::convert::Infallible;
///
///     async fn run(&self, mut choices: Choices) -> Result<Outcome<()>, Self::Error> {
///         let mut read = |number| {
///             let id = PointId::new("pods/p", Kind::Read, number);
///             let menu = vec![Alt::freshest(), Alt::behind(1)];
///             choices.choose(&Point::new(id, menu).expect("the first alternative is free"))
///         };
///         let (_, second) = (read(1), read(2));
///         let ending = match second {
///             0 => Ending::Passed,
///             _ => Ending::failed("never stale", "the second read was"),
///         };
///         Ok(Outcome::new(ending, ()))
///     }
/// }
///
/// let explored = futures::executor::block_on(Search::new().keep_going().run(&TwoReads))?;
/// assert_eq!(explored.verdict.runs, 4);
/// assert_eq!(explored.failures[0].token().to_string(), "pods/p@r2:-1");
/// # Ok::<(), laggard::explore::ExploreError<std::convert::Infallible>>(())
/// ```
pub trait Subject: Sync {
    /// What a run leaves, such as a [`Run`](crate::lag::model::Run).
    type Record: Send;

    /// Why a run could not be made. An oracle that was violated is no error: see [`Ending::Failed`].
    type Error: Error + Send + Sync + 'static;

    /// Makes one run, asking `choices` at each point. Several may be under way at once.
    ///
    /// # Errors
    /// Whatever kept the run from being made or judged; it ends the search.
    fn run(
        &self,
        choices: Choices,
    ) -> impl Future<Output = Result<Outcome<Self::Record>, Self::Error>> + Send;
}

/// What came of one run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome<R> {
    /// How it ended.
    pub ending: Ending,
    /// What happened, a line each, with everything replaced that differs between runs of one schedule.
    /// Two runs of one schedule must have equal lines.
    pub trace: Vec<String>,
    /// How many interleavings of single deliveries this run stands for; 1 if nobody counts.
    pub interleavings: u64,
    /// Alternatives at points of this run, by the indices of point and alternative, that lead to nothing which
    /// others do not lead to as well: the subject says so, and a search leaves them out.
    pub redundant: BTreeSet<(usize, usize)>,
    /// What the subject keeps of it.
    pub record: R,
}

impl<R> Outcome<R> {
    /// An outcome without a trace, standing for itself alone.
    #[must_use]
    pub fn new(ending: Ending, record: R) -> Self {
        Self { ending, trace: Vec::new(), interleavings: 1, redundant: BTreeSet::new(), record }
    }

    /// With these lines to compare.
    #[must_use]
    pub fn with_trace(mut self, trace: Vec<String>) -> Self {
        self.trace = trace;
        self
    }

    /// Without need for these alternatives.
    #[must_use]
    pub fn with_redundant(mut self, redundant: BTreeSet<(usize, usize)>) -> Self {
        self.redundant = redundant;
        self
    }

    /// Standing for so many interleavings.
    #[must_use]
    pub fn with_interleavings(mut self, interleavings: u64) -> Self {
        self.interleavings = interleavings;
        self
    }
}

/// How a run ended.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Ending {
    /// No oracle was violated.
    Passed,
    /// An oracle was violated.
    Failed {
        /// Its name. Two runs that violate the same oracle failed in the same way.
        oracle: String,
        /// What was seen.
        text: String,
    },
    /// The alternative taken at this point cannot happen in this program, such as an event released to a
    /// reflector that is busy. The run proves nothing; the alternative is dropped, and counted.
    Impossible {
        /// The point.
        point: crate::lag::model::PointId,
        /// Why.
        why: String,
    },
}

impl Ending {
    /// The oracle with this name was violated.
    pub fn failed(oracle: impl Into<String>, text: impl Into<String>) -> Self {
        Self::Failed { oracle: oracle.into(), text: text.into() }
    }

    /// The name of the oracle that was violated.
    #[must_use]
    pub fn oracle(&self) -> Option<&str> {
        match self {
            Self::Failed { oracle, .. } => Some(oracle),
            _ => None,
        }
    }
}
