//! Joining the results of the parts of one check.

use std::collections::{BTreeMap, BTreeSet};

use super::{KeptRun, Results};
use crate::lag::model::{Bound, Completeness, Ended, Shard, Verdict};

/// So many runs of all parts are kept for the page; those that failed always.
const KEPT: usize = 1_000;

/// Joins all parts of one check, each with the name of its file for what is said about it.
///
/// Runs, interleavings and failures are summed up, and the time is that of the part that took longest. The whole
/// is exhausted if every part is. A failure that several parts found is told once.
///
/// # Errors
/// [`MergeError`] if these are not the parts of one whole, each once.
pub fn merge(parts: impl IntoIterator<Item = (String, Results)>) -> Result<Results, MergeError> {
    let parts = whole(parts.into_iter().collect())?;
    let mut results = parts.iter().map(|(_, part)| part);
    let Some(first) = results.next() else { return Err(MergeError::Nothing) };
    let mut merged = Results::new(&first.name, verdict(&parts), first.bounds);
    merged.server.clone_from(&first.server);
    merged.baseline = parts.iter().find_map(|(_, part)| part.baseline.clone());
    merged.replay.command.clone_from(&first.replay.command);
    merged.replay.saved = parts.iter().find_map(|(_, part)| part.replay.saved.clone());
    let (mut findings, mut said) = (Vec::new(), BTreeSet::new());
    for (_, part) in parts {
        let shard = part.verdict.shard;
        add(&mut merged.runs_by_cost, &part.runs_by_cost);
        for finding in part.findings {
            let oracle = finding.run.violations().next().map(|(_, it)| it.oracle.clone());
            if said.insert((finding.token.clone(), oracle)) {
                findings.push(finding);
            }
        }
        for text in part.out_of_date {
            if !merged.out_of_date.contains(&text) {
                merged.out_of_date.push(text);
            }
        }
        merged.runs.extend(part.runs.into_iter().map(|run| KeptRun { shard, ..run }));
    }
    // Those that depart least first, as a search has them.
    findings.sort_by_key(|finding| finding.run.deviations().count());
    merged.findings = findings;
    keep_some(&mut merged.runs);
    Ok(merged)
}

/// The parts in order, if they are all parts of one whole.
fn whole(mut parts: Vec<(String, Results)>) -> Result<Vec<(String, Results)>, MergeError> {
    let Some((first_file, first)) = parts.first() else { return Err(MergeError::Nothing) };
    let mut seen: BTreeMap<u32, &str> = BTreeMap::new();
    let mut of = None;
    for (file, part) in &parts {
        let mixed = |what, one: String, other: String| {
            Err(MergeError::Mixed {
                what,
                one: format!("{one} in {first_file}"),
                other: format!("{other} in {file}"),
            })
        };
        if part.format != first.format {
            return mixed("formats", first.format.to_string(), part.format.to_string());
        }
        if part.name != first.name {
            return mixed("scenarios", format!("{:?}", first.name), format!("{:?}", part.name));
        }
        let Some(shard) = part.verdict.shard else {
            return Err(MergeError::NotAPart { file: file.clone() });
        };
        let whole = *of.get_or_insert(shard.of());
        if shard.of() != whole {
            return mixed("numbers of parts", whole.to_string(), shard.of().to_string());
        }
        if part.bounds != first.bounds {
            return mixed("bounds", format!("{:?}", first.bounds), format!("{:?}", part.bounds));
        }
        if part.server != first.server {
            let name = |part: &Results| {
                part.server.clone().unwrap_or_else(|| "an unknown version".to_owned())
            };
            return mixed("servers", name(first), name(part));
        }
        if let Some(before) = seen.insert(shard.number(), file) {
            let (one, other) = (before.to_owned(), file.clone());
            return Err(MergeError::Doubled { shard, one, other });
        }
    }
    let of = of.unwrap_or_default();
    let missing: Vec<u32> = (1..=of).filter(|number| !seen.contains_key(number)).collect();
    if !missing.is_empty() {
        return Err(MergeError::Missing { missing, of });
    }
    let mut baselines =
        parts.iter().filter_map(|(file, part)| Some((file, part.baseline.as_ref()?)));
    if let Some((one, baseline)) = baselines.next()
        && let Some((other, _)) = baselines.find(|(_, other)| *other != baseline)
    {
        return Err(MergeError::OtherWhole { one: one.clone(), other: other.clone() });
    }
    parts.sort_by_key(|(_, part)| part.verdict.shard.map_or(0, Shard::number));
    Ok(parts)
}

fn verdict(parts: &[(String, Results)]) -> Verdict {
    let verdicts = || parts.iter().map(|(_, part)| &part.verdict);
    let sum = |count: fn(&Verdict) -> u64| verdicts().map(count).fold(0_u64, u64::saturating_add);
    let worlds: BTreeSet<_> = verdicts().filter_map(|verdict| verdict.worlds.clone()).collect();
    let mut exclusions: Vec<String> = Vec::new();
    for exclusion in verdicts().flat_map(|verdict| &verdict.exclusions) {
        if !exclusions.contains(exclusion) {
            exclusions.push(exclusion.clone());
        }
    }
    Verdict {
        completeness: completeness(verdicts().map(|verdict| &verdict.completeness)),
        runs: sum(|verdict| verdict.runs),
        failures: sum(|verdict| verdict.failures),
        impossible: sum(|verdict| verdict.impossible),
        redundant: sum(|verdict| verdict.redundant),
        merged: sum(|verdict| verdict.merged),
        looked_again: sum(|verdict| verdict.looked_again),
        points: verdicts().map(|verdict| verdict.points).max().unwrap_or_default(),
        naive: sum(|verdict| verdict.naive),
        elapsed: verdicts().map(|verdict| verdict.elapsed).max().unwrap_or_default(),
        shard: None,
        exclusions,
        worlds: (!worlds.is_empty()).then(|| worlds.into_iter().collect::<Vec<_>>().join("; ")),
        requests: sum(|verdict| verdict.requests),
        recalled: sum(|verdict| verdict.recalled),
    }
}

/// Exhausted if all are. Of those that are not, one that stopped at a failure says why.
fn completeness<'a>(parts: impl Iterator<Item = &'a Completeness>) -> Completeness {
    let mut cut: BTreeSet<Bound> = BTreeSet::new();
    let mut stopped: Option<&Ended> = None;
    for part in parts {
        match part {
            Completeness::Exhausted { within } => cut.extend(within),
            Completeness::NotExhausted { by } => {
                if stopped.is_none() || *by == Ended::Failure {
                    stopped = Some(by);
                }
            }
        }
    }
    match stopped {
        Some(by) => Completeness::NotExhausted { by: by.clone() },
        None => Completeness::Exhausted { within: cut.into_iter().collect() },
    }
}

fn add(sums: &mut Vec<u64>, counts: &[u64]) {
    if sums.len() < counts.len() {
        sums.resize(counts.len(), 0);
    }
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count;
    }
}

/// The first runs of every part, and all that failed.
fn keep_some(runs: &mut Vec<KeptRun>) {
    runs.sort_by_key(|run| (run.number, run.shard.map_or(0, Shard::number)));
    let mut passed = 0;
    runs.retain(|run| {
        passed += usize::from(run.violated.is_none());
        run.violated.is_some() || passed <= KEPT
    });
}

/// Results that cannot be joined.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// There are none.
    #[error("failed to merge results: there are none")]
    Nothing,
    /// One is of a search that was not split.
    #[error("failed to merge {file}: it holds a whole check, not a part of one")]
    NotAPart {
        /// Which.
        file: String,
    },
    /// They are of different checks.
    #[error("failed to merge results with different {what}: {one}, {other}")]
    Mixed {
        /// In what they differ, in the plural.
        what: &'static str,
        /// What one of them has.
        one: String,
        /// What another has.
        other: String,
    },
    /// They have the same name, but split up something else: the code under test differs, or is not deterministic.
    #[error(
        "failed to merge {one} and {other}: their runs with everything fresh have different choice points, so they \
         are parts of two different wholes; make all parts from one build"
    )]
    OtherWhole {
        /// One of them.
        one: String,
        /// Another.
        other: String,
    },
    /// One is there twice.
    #[error("failed to merge results: {one} and {other} are both part {shard}")]
    Doubled {
        /// Which part.
        shard: Shard,
        /// One of its files.
        one: String,
        /// The other.
        other: String,
    },
    /// Some are not there.
    #[error("failed to merge results: of {of} parts {} missing: {}", verb(missing), list(missing))]
    Missing {
        /// Which, from 1.
        missing: Vec<u32>,
        /// How many there should be.
        of: u32,
    },
}

fn verb(numbers: &[u32]) -> &'static str {
    if numbers.len() == 1 { "one is" } else { "several are" }
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::sample::{finding, results};
    use super::*;
    use crate::lag::model::Bounds;

    /// Part `number` of three: it passes, and has made as many runs as its number.
    fn part(number: u32) -> (String, Results) {
        let mut part = results();
        part.findings.clear();
        part.runs.retain(|run| run.violated.is_none());
        part.verdict.shard = Some(Shard::new(number, 3).unwrap());
        part.verdict.runs = u64::from(number);
        part.verdict.naive = 10 * u64::from(number);
        part.verdict.failures = 0;
        part.verdict.points = 10 - usize::try_from(number).unwrap();
        part.verdict.elapsed = Duration::from_secs(u64::from(number));
        part.runs_by_cost = vec![u64::from(number == 1), u64::from(number)];
        (format!("{number}.json"), part)
    }

    fn three() -> Vec<(String, Results)> {
        vec![part(2), part(3), part(1)]
    }

    #[test]
    fn counts_are_summed_up_and_the_whole_is_exhausted_if_every_part_is() {
        let mut parts = three();
        parts[0].1.verdict.completeness = Completeness::Exhausted { within: vec![Bound::Holds(2)] };
        let merged = merge(parts).unwrap();
        let Verdict { completeness, runs, naive, points, elapsed, shard, .. } = &merged.verdict;
        assert_eq!((*runs, *naive, *points, *shard), (6, 60, 9, None));
        assert_eq!(*elapsed, Duration::from_secs(3));
        let within = vec![Bound::StaleReads(2), Bound::Holds(2)];
        assert_eq!(*completeness, Completeness::Exhausted { within });
        assert_eq!(merged.runs_by_cost, [1, 6]);
        assert_eq!(merged.runs.len(), 3);
        assert!(merged.to_string().starts_with("a <test>: passes, exhausted within"), "{merged}");
    }

    #[test]
    fn one_part_that_is_not_exhausted_makes_the_whole_not_exhausted() {
        let mut parts = three();
        parts[1].1.verdict.completeness = Completeness::NotExhausted { by: Ended::Runs(9) };
        let merged = merge(parts.clone()).unwrap();
        let by = Ended::Runs(9);
        assert_eq!(merged.verdict.completeness, Completeness::NotExhausted { by });
        parts[2].1.verdict.completeness = Completeness::NotExhausted { by: Ended::Failure };
        let merged = merge(parts).unwrap();
        let by = Ended::Failure;
        assert_eq!(merged.verdict.completeness, Completeness::NotExhausted { by });
    }

    #[test]
    fn a_failure_of_two_parts_is_told_once_and_counted_twice() {
        let mut parts = three();
        for (_, part) in &mut parts[..2] {
            part.verdict.failures = 1;
            let mut finding = finding();
            finding.verdict = part.verdict.clone();
            part.findings.push(finding);
        }
        let merged = merge(parts).unwrap();
        assert_eq!((merged.verdict.failures, merged.findings.len()), (2, 1));
        let text = merged.to_string();
        assert_eq!(text.matches("staleness race").count(), 1, "{text}");
        assert!(text.contains("found in run 7 of 2 (shard 2/3)"), "{text}");
    }

    #[test]
    fn what_is_missing_or_doubled_is_named() {
        let mut parts = three();
        parts.remove(0);
        let error = merge(parts.clone()).unwrap_err();
        assert_eq!(error.to_string(), "failed to merge results: of 3 parts one is missing: 2");
        parts.remove(1);
        let error = merge(parts.clone()).unwrap_err();
        assert!(error.to_string().ends_with("several are missing: 1, 2"), "{error}");
        let mut parts = three();
        parts.push(("again.json".to_owned(), part(3).1));
        let error = merge(parts).unwrap_err().to_string();
        assert_eq!(error, "failed to merge results: 3.json and again.json are both part 3/3");
        assert_eq!(merge(Vec::new()).unwrap_err(), MergeError::Nothing);
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let refused = |change: fn(&mut Results)| {
            let mut parts = three();
            change(&mut parts[1].1);
            merge(parts).unwrap_err().to_string()
        };
        for (change, expected) in [
            (
                (|part| part.name = "other".to_owned()) as fn(&mut Results),
                "different scenarios: \"a <test>\" in 2.json, \"other\" in 3.json",
            ),
            (|part| part.format = 9, "different formats: 1 in 2.json, 9 in 3.json"),
            (|part| part.bounds = Bounds::none(), "different bounds: Bounds { stale_reads: Some"),
            (
                |part| part.server = Some("v1.2.3".to_owned()),
                "different servers: v1.37.2 in 2.json",
            ),
            (|part| part.verdict.shard = None, "3.json: it holds a whole check"),
            (
                |part| part.verdict.shard = Some(Shard::new(3, 4).unwrap()),
                "different numbers of parts: 3 in 2.json, 4 in 3.json",
            ),
            (|part| part.baseline = Some("x".to_owned()), "2.json and 3.json: their runs with"),
        ] {
            let error = refused(change);
            assert!(error.contains(expected), "{expected:?} is missing in: {error}");
        }
        // A part that ended before its first run says nothing about the whole.
        let mut parts = three();
        parts[0].1.baseline = None;
        assert!(merge(parts).unwrap().baseline.is_some());
    }

    #[test]
    fn of_many_runs_those_that_failed_are_kept() {
        let mut parts = three();
        let run = parts[0].1.runs[0].clone();
        parts[0].1.runs = (1..=2_000).map(|number| KeptRun { number, ..run.clone() }).collect();
        parts[0].1.runs[1_999].violated = Some("never".to_owned());
        parts[0].1.verdict.runs = 2_000;
        let merged = merge(parts).unwrap();
        assert_eq!(merged.runs.len(), KEPT + 1);
        let shard = Shard::new(2, 3).unwrap();
        assert_eq!(merged.runs.last().unwrap().shard, Some(shard));
        assert_eq!(merged.left_out(), 2_004 - 1_001);
    }
}
