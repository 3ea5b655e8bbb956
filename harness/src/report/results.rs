//! The results of a check as its file holds them: what a page is drawn from, and what parts are merged from.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::{
    text::{Replay, failure},
    timeline::timeline,
};
use crate::lag::model::{Bounds, Finding, Run, Shard, Verdict};

/// The form of [`Results`] that this version writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// What came of a check, or of one part of it.
///
/// ```
/// use laggard::report::Results;
///
/// let error = Results::parse(r#"{"format": 2}"#).unwrap_err();
/// assert!(error.to_string().contains("format 2"));
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// The name of the scenario.
    pub name: String,
    /// How the search ended, what it counted, and which part it is.
    pub verdict: Verdict,
    /// How far runs could depart from the one in which everything is fresh.
    pub bounds: Bounds,
    /// What the server says its version is, such as `v1.37.2`; `None` if it did not.
    pub server: Option<String>,
    /// A digest of the points of the run in which everything is fresh: parts of one whole have the same. `None` if
    /// that run was not made.
    pub baseline: Option<String>,
    /// How many runs were made at each cost, from 0.
    pub runs_by_cost: Vec<u64>,
    /// The failures, reduced.
    pub findings: Vec<Finding>,
    /// What is to be said of saved tokens that no longer fit, each.
    pub out_of_date: Vec<String>,
    /// How a person runs a finding again.
    pub replay: Replay,
    /// The runs that were kept, in the order of the search; [`left_out`](Self::left_out) says how many were not.
    pub runs: Vec<KeptRun>,
}

impl Results {
    /// Results of a search that found nothing yet.
    #[must_use]
    pub fn new(name: impl Into<String>, verdict: Verdict, bounds: Bounds) -> Self {
        Self {
            format: FORMAT,
            name: name.into(),
            verdict,
            bounds,
            server: None,
            baseline: None,
            runs_by_cost: Vec::new(),
            findings: Vec::new(),
            out_of_date: Vec::new(),
            replay: Replay::default(),
            runs: Vec::new(),
        }
    }

    /// Reads what a file holds.
    ///
    /// # Errors
    /// [`ParseResultsError`] if it is in another format, or no results at all.
    pub fn parse(text: &str) -> Result<Self, ParseResultsError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let unreadable =
            |source| ParseResultsError { what: "as results of a check".to_owned(), source };
        let Format { format } = serde_json::from_str(text).map_err(|e| unreadable(Some(e)))?;
        if format != FORMAT {
            let what = format!(
                "as results of format {FORMAT}: they have format {format}, use the version of laggard that wrote them"
            );
            return Err(ParseResultsError { what, source: None });
        }
        serde_json::from_str(text).map_err(|error| unreadable(Some(error)))
    }

    /// What its file holds.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Every map in it has text for keys, which is all that this can fail for.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// How its files are called, without an ending: after the scenario, and after the part if it is one.
    #[must_use]
    pub fn file_stem(&self) -> String {
        let name = file_name(&self.name);
        match self.verdict.shard {
            Some(shard) => format!("{name}.shard-{}-of-{}", shard.number(), shard.of()),
            None => name,
        }
    }

    /// How many runs were made and not kept.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        let kept = self.runs.iter().filter(|run| run.number > 0).count();
        self.verdict.runs.saturating_sub(u64::try_from(kept).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        // Writing to a String cannot fail.
        if self.verdict.failures == 0 && self.findings.is_empty() {
            let _ = write!(text, "{}: passes, {}", self.name, self.verdict);
        }
        for finding in &self.findings {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&failure(finding, &self.replay));
        }
        for out_of_date in &self.out_of_date {
            let _ = write!(text, "\n{out_of_date}");
        }
        f.write_str(&text)
    }
}

/// A name as a file may have it.
pub(crate) fn file_name(name: &str) -> String {
    let fits = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    name.chars().map(fits).collect()
}

/// A run as a page shows it.
///
/// Text alone: of a search over many runs it is what can be kept.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KeptRun {
    /// Which run of the search it was, from 1; 0 if it was a saved token.
    pub number: u64,
    /// The part of the search, if that was split.
    pub shard: Option<Shard>,
    /// What makes it again; `fresh` is the run in which everything is.
    pub token: String,
    /// The oracle that it violated.
    pub violated: Option<String>,
    /// See [`timeline`](super::timeline()).
    pub timeline: String,
}

impl KeptRun {
    /// The run with this number of a search.
    #[must_use]
    pub fn new(number: u64, token: impl Into<String>, violated: Option<&str>, run: &Run) -> Self {
        let violated = violated.map(str::to_owned);
        Self { number, shard: None, token: token.into(), violated, timeline: timeline(run) }
    }
}

/// A text that holds no results that this version can read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read {what}")]
pub struct ParseResultsError {
    what: String,
    source: Option<serde_json::Error>,
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::super::sample::results;
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let results = results();
        let text = results.to_json();
        assert!(text.starts_with(r#"{"format":1,"name":"a <test>""#), "{text}");
        assert_eq!(Results::parse(&text).unwrap(), results);
    }

    #[test]
    fn another_format_and_another_file_are_told_apart() {
        let text = results().to_json().replace(r#""format":1"#, r#""format":7"#);
        let error = Results::parse(&text).unwrap_err();
        assert!(error.to_string().contains("they have format 7, use the version"), "{error}");
        let error = Results::parse("{\"format\": 1}").unwrap_err();
        assert_eq!(error.to_string(), "failed to read as results of a check");
        assert!(error.source().unwrap().to_string().contains("missing field `name`"));
        assert!(Results::parse("no json").is_err());
    }

    #[test]
    fn a_part_has_a_file_of_its_own() {
        let mut results = results();
        assert_eq!(results.file_stem(), "a--test-");
        results.verdict.shard = Some("2/4".parse().unwrap());
        assert_eq!(results.file_stem(), "a--test-.shard-2-of-4");
    }

    #[test]
    fn saved_tokens_do_not_count_as_kept_runs() {
        let mut results = results();
        assert_eq!((results.verdict.runs, results.runs.len(), results.left_out()), (23, 2, 21));
        results.runs[0].number = 0;
        assert_eq!(results.left_out(), 22);
    }
}
