//! What came of a run and of a search: the certificate of one, the verdict and the finding of the other.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Author, Change, ObjectKey, Run};

/// Why each view of a run is one that a real cluster could have shown.
///
/// Made by [`check`](super::check), which has compared each entry with the history of the server.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Certificate {
    /// One for each read that was answered from a view, in the order of the run.
    pub views: Vec<CertifiedView>,
    /// How many commits the history has.
    pub commits: usize,
    /// How many events were given to clients, each the next one of its stream.
    pub released: usize,
}

/// A read that was answered from a view, and the place of that view in the history.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CertifiedView {
    /// The index of the step.
    pub step: usize,
    /// The stream, such as `statefulsets.apps`, or `pods#2` for the second watch of its kind.
    pub stream: String,
    /// Its incarnation; 0 before the first initial list.
    pub incarnation: u32,
    /// How many events of the incarnation the view shows.
    pub position: usize,
    /// How many had been committed.
    pub available: usize,
    /// The revision of the last event that the view shows, or of the list it began with.
    pub shown: Option<String>,
    /// The first event that it does not show.
    pub held: Option<HeldEvent>,
}

impl fmt::Display for CertifiedView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} stream at position {} of {}", self.stream, self.position, self.available)?;
        if let Some(held) = &self.held {
            write!(f, "; held event {held}")?;
        }
        Ok(())
    }
}

/// An event that a view does not show yet.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct HeldEvent {
    /// Its revision.
    pub resource_version: String,
    /// What happened, seen through the selectors of the stream.
    pub change: Change,
    /// To which object.
    pub key: ObjectKey,
    /// Who did it.
    pub by: Author,
}

impl fmt::Display for HeldEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rv {} {} by {}", self.resource_version, self.change, self.by)
    }
}

/// How far a search may depart from the run in which everything is fresh. `None` is no bound.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Bounds {
    /// Stale answers in one run (default 2).
    pub stale_reads: Option<u32>,
    /// Holds in one run, counted where they open (default 2).
    pub holds: Option<u32>,
    /// Events that one answer or stream may be behind (default none).
    pub lag: Option<u32>,
    /// What the menus say that other actors' steps cost (default none).
    pub environment: Option<u32>,
    /// Restarts, lost requests and lost replies in one run (default 1).
    pub faults: Option<u32>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { stale_reads: Some(2), holds: Some(2), lag: None, environment: None, faults: Some(1) }
    }
}

impl Bounds {
    /// No bound at all.
    #[must_use]
    pub fn none() -> Self {
        Self { stale_reads: None, holds: None, lag: None, environment: None, faults: None }
    }
}

/// One of the [`Bounds`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Bound {
    /// [`Bounds::stale_reads`].
    StaleReads(u32),
    /// [`Bounds::holds`].
    Holds(u32),
    /// [`Bounds::lag`].
    Lag(u32),
    /// [`Bounds::environment`].
    Environment(u32),
    /// [`Bounds::faults`].
    Faults(u32),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (most, one, many) = match self {
            Self::StaleReads(most) => (most, "stale read", "stale reads"),
            Self::Holds(most) => (most, "hold", "holds"),
            Self::Lag(most) => (most, "event of lag", "events of lag"),
            Self::Environment(most) => (most, "step of other actors", "steps of other actors"),
            Self::Faults(most) => (most, "fault", "faults"),
        };
        write!(f, "<= {most} {}", if *most == 1 { one } else { many })
    }
}

/// How a search ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether everything within the bounds was run.
    pub completeness: Completeness,
    /// How many runs were made and judged.
    pub runs: u64,
    /// How many of them violated an oracle.
    pub failures: u64,
    /// How many alternatives turned out to be impossible in this program, and were dropped.
    pub impossible: u64,
    /// How many alternatives were left out since others lead to the same.
    #[serde(default)]
    pub redundant: u64,
    /// How many runs came to a state from which everything is explored already, and were not branched any further.
    #[serde(default)]
    pub merged: u64,
    /// How many of these went on all the same, and went the way of the run that had been there before.
    #[serde(default)]
    pub looked_again: u64,
    /// The largest number of choice points in one run.
    pub points: usize,
    /// How many interleavings of single deliveries the runs stand for, where the subject counts them
    /// (saturating).
    pub naive: u64,
    /// How long it took, by the clock of the search.
    pub elapsed: Duration,
    /// The part that was explored, if the work was split.
    pub shard: Option<Shard>,
    /// What is left out whatever the bounds are, such as other orders of concurrent replies.
    pub exclusions: Vec<String>,
    /// How the worlds of the runs were made, such as `forked in etcd`, or `made through the API, since
    /// services cannot be forked`. `None` where the subject has no worlds.
    #[serde(default)]
    pub worlds: Option<String>,
    /// How many requests the runs have made in forked worlds, as far as their answers are remembered.
    #[serde(default)]
    pub requests: u64,
    /// How many of them were answered from memory, since the server had answered the same in the same state of another
    /// world.
    #[serde(default)]
    pub recalled: u64,
}

/// What a search leaves out where streams move at replies only, since reads of their stores are not seen: of two reads of
/// such a store with no request in between, the second cannot show more than the first.
pub const READS_BETWEEN_REPLIES: &str = "two reads of one stream between two replies";

impl Verdict {
    /// Whether what was exhausted is what can be told apart at the boundaries of requests: some store was read without a
    /// [`Cache`](crate::lag::Cache).
    #[must_use]
    pub fn is_at_boundaries(&self) -> bool {
        self.exclusions.iter().any(|exclusion| exclusion == READS_BETWEEN_REPLIES)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.completeness.write(f, self.is_at_boundaries())?;
        write!(f, ": {} runs", self.runs)?;
        if let Some(shard) = &self.shard {
            write!(f, " (shard {shard})")?;
        }
        if self.naive > self.runs {
            write!(f, " for {} interleavings", self.naive)?;
        }
        write!(f, ", {} failed", self.failures)?;
        if self.impossible > 0 {
            write!(f, ", {} impossible", self.impossible)?;
        }
        if self.redundant > 0 {
            write!(f, ", {} placements that are as good as later ones", self.redundant)?;
        }
        if self.merged > 0 {
            write!(f, ", {} that came to a state met before", self.merged)?;
            write!(f, " ({} of them went on, alike)", self.looked_again)?;
        }
        write!(f, ", <= {} choice points, {:.1} s", self.points, self.elapsed.as_secs_f64())?;
        if !self.exclusions.is_empty() {
            write!(f, "; left out: {}", self.exclusions.join(", "))?;
        }
        if let Some(worlds) = &self.worlds {
            write!(f, "; worlds: {worlds}")?;
        }
        if self.recalled > 0 {
            let Self { recalled, requests, .. } = self;
            write!(f, "; {recalled} of {requests} requests answered as the server had before")?;
        }
        Ok(())
    }
}

/// Whether a search ran everything it was asked to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Completeness {
    /// Everything within the bounds. Listed are the bounds that cut something off: none of them, and
    /// there was nothing more to run.
    Exhausted {
        /// The bounds that mattered.
        within: Vec<Bound>,
    },
    /// Something was left.
    NotExhausted {
        /// Why it ended.
        by: Ended,
    },
}

impl Completeness {
    fn write(&self, f: &mut fmt::Formatter<'_>, at_boundaries: bool) -> fmt::Result {
        let place = if at_boundaries { " at request boundaries" } else { "" };
        match self {
            Self::Exhausted { within } if within.is_empty() => {
                write!(f, "exhausted{place}, no bound was met")
            }
            Self::Exhausted { within } => {
                let within: Vec<_> = within.iter().map(ToString::to_string).collect();
                let comma = if at_boundaries { "," } else { "" };
                write!(f, "exhausted{place}{comma} within {}", within.join(", "))
            }
            Self::NotExhausted { by } => write!(f, "not exhausted: {by}"),
        }
    }
}

impl fmt::Display for Completeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

/// Why a search ended before everything was run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ended {
    /// The number of runs was used up.
    Runs(u64),
    /// The time was used up.
    Time(Duration),
    /// A run failed, and the search was asked to stop then.
    Failure,
    /// Runs were drawn, not enumerated.
    Sampled {
        /// The seed they were drawn with.
        seed: u64,
    },
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runs(most) => write!(f, "stopped after {most} runs"),
            Self::Time(most) => write!(f, "stopped after {:.1} s", most.as_secs_f64()),
            Self::Failure => f.write_str("stopped at the first failure"),
            Self::Sampled { seed } => write!(f, "runs were drawn with seed {seed}"),
        }
    }
}

/// One part of a search that was split.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct Shard {
    number: u32,
    of: u32,
}

impl Shard {
    /// Part `number` (from 1) of `of`.
    ///
    /// # Errors
    /// [`ShardError`] if `number` is 0 or more than `of`.
    pub fn new(number: u32, of: u32) -> Result<Self, ShardError> {
        if number == 0 || number > of {
            return Err(ShardError { text: format!("{number}/{of}") });
        }
        Ok(Self { number, of })
    }

    /// Which part, from 1.
    #[must_use]
    pub fn number(self) -> u32 {
        self.number
    }

    /// How many parts there are.
    #[must_use]
    pub fn of(self) -> u32 {
        self.of
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl std::str::FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        text.split_once('/')
            .and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)))
            .and_then(|(number, of)| Self::new(number, of).ok())
            .ok_or_else(|| ShardError { text: text.to_owned() })
    }
}

impl TryFrom<(u32, u32)> for Shard {
    type Error = ShardError;

    fn try_from((number, of): (u32, u32)) -> Result<Self, ShardError> {
        Self::new(number, of)
    }
}

impl From<Shard> for (u32, u32) {
    fn from(shard: Shard) -> Self {
        (shard.number, shard.of)
    }
}

/// A text or pair that names no part.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("failed to read the shard {text:?}: expected \"1/4\" for the first of four")]
pub struct ShardError {
    text: String,
}

/// A failure, reduced, with all that a report says about it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Finding {
    /// The minimal failing run.
    pub run: Run,
    /// Why its views are legal.
    pub certificate: Certificate,
    /// What it needs.
    pub needs: Needs,
    /// Which run of the search failed first, from 1.
    pub found_in_run: u64,
    /// What replays it.
    pub token: String,
    /// What would have prevented it, as far as that was tried.
    pub repairs: Vec<Repair>,
    /// The time from the reply of the write to the bad read: how late its event must be in production.
    pub window: Option<Duration>,
    /// How the search ended that found it.
    pub verdict: Verdict,
    /// What came of running it again.
    #[serde(default)]
    pub confirmed: Confirmation,
}

/// What came of making the minimal run again, from nothing.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Confirmation {
    /// It was not made again.
    #[default]
    NotTried,
    /// Worlds made through the API fail in the same way, with equal normalised traces.
    ThroughApi {
        /// In how many runs.
        runs: u32,
    },
    /// Forked worlds fail; a world made through the API does not.
    ForkOnly,
    /// Two runs with the same choices differ: the code under test, or the harness, is not deterministic.
    Diverged {
        /// The index of the first step that differs.
        step: usize,
        /// That step in one run, normalised; empty if that run has ended before.
        first: String,
        /// And in the other.
        second: String,
    },
}

/// What a failure needs in order to happen.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Needs {
    /// Nothing: the run in which everything is fresh fails too. Not a staleness bug.
    Nothing,
    /// Steps of other actors or faults alone: fails with everything fresh.
    Environment,
    /// Something stale, and perhaps steps of other actors too.
    Staleness,
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nothing => "fails with everything fresh",
            Self::Environment => "needs no stale view, only the steps of other actors",
            Self::Staleness => "needs a stale view",
        })
    }
}

/// A change to the code under test that was simulated at one read of the minimal run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Repair {
    /// The index of the step of the read.
    pub step: usize,
    /// Such as `is a live read` or `waits for rv 1042`.
    pub text: String,
    /// Whether the run then passes.
    pub passes: bool,
    /// How many requests it adds to the pass.
    pub extra_requests: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_exhausted_never_stands_alone() {
        let within = vec![Bound::StaleReads(2), Bound::Holds(1)];
        let text = Completeness::Exhausted { within }.to_string();
        assert_eq!(text, "exhausted within <= 2 stale reads, <= 1 hold");
        let text = Completeness::Exhausted { within: vec![] }.to_string();
        assert_eq!(text, "exhausted, no bound was met");
        let text = Completeness::NotExhausted { by: Ended::Runs(5) }.to_string();
        assert_eq!(text, "not exhausted: stopped after 5 runs");
    }

    #[test]
    fn a_verdict_says_how_its_worlds_were_made() {
        let verdict = Verdict {
            completeness: Completeness::Exhausted { within: vec![] },
            runs: 2,
            failures: 0,
            impossible: 0,
            redundant: 0,
            merged: 0,
            looked_again: 0,
            points: 1,
            naive: 0,
            elapsed: Duration::ZERO,
            shard: None,
            exclusions: Vec::new(),
            worlds: Some("forked in etcd".to_owned()),
            requests: 0,
            recalled: 0,
        };
        let text = verdict.to_string();
        assert!(text.ends_with("0.0 s; worlds: forked in etcd"), "{text}");
        let exclusions = vec![READS_BETWEEN_REPLIES.to_owned()];
        let text = Verdict { exclusions, ..verdict.clone() }.to_string();
        assert!(text.starts_with("exhausted at request boundaries, no bound was met: 2"), "{text}");
        assert!(text.contains("left out: two reads of one stream between two replies"), "{text}");
        let mut json = serde_json::to_value(&verdict).unwrap();
        json.as_object_mut().unwrap().remove("worlds");
        let older: Verdict = serde_json::from_value(json).unwrap();
        assert_eq!(older.worlds, None, "a record from before the field existed can be read");
    }

    #[test]
    fn a_shard_is_one_of_several() {
        assert_eq!("2/4".parse::<Shard>().unwrap(), Shard::new(2, 4).unwrap());
        for text in ["0/4", "5/4", "1/0", "1", "a/b", ""] {
            assert!(text.parse::<Shard>().is_err(), "{text:?}");
        }
        assert!(serde_json::from_str::<Shard>("[3,2]").is_err());
    }
}
