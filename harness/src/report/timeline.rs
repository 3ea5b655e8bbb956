//! The run as a timeline: what the server had, how much of it each stream had shown, who did what.

use std::fmt::Write as _;

use super::lines::{Line, lines};
use crate::lag::model::{Action, Role, Run, Source, StreamRecord, compare_resource_versions};

/// Where one stream stood at one step.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Standing {
    /// How many events of its incarnation its client had been shown.
    pub(super) shown: usize,
    /// How many had been committed; the same as `shown` where a selector hides how many are its own.
    pub(super) available: usize,
}

impl Standing {
    pub(super) fn behind(self) -> usize {
        self.available.saturating_sub(self.shown)
    }
}

/// The streams that a reader is shown, by their index: those of the code under test, and a private one of the harness
/// where a flipped read was answered from it.
pub(super) fn lanes(run: &Run) -> Vec<usize> {
    let answers = |index: usize| {
        run.requests()
            .any(|(_, read)| matches!(read.source, Source::View { stream, .. } if stream == index))
    };
    let is_shown = |&index: &usize| run.streams[index].role != Role::Replica || answers(index);
    (0..run.streams.len()).filter(is_shown).collect()
}

/// The timeline as text: a line a step, with the position of each stream as `shown/committed`.
///
/// Ends without a line break. Empty for a run without steps.
#[must_use]
pub fn timeline(run: &Run) -> String {
    let standings = standings(run);
    let mut text = String::from("     ms  ");
    let lanes = lanes(run);
    let names: Vec<_> = lanes.iter().map(|&lane| run.streams[lane].to_string()).collect();
    let widths: Vec<_> = names.iter().map(|name| name.len().max(7)).collect();
    for (name, width) in names.iter().zip(&widths) {
        let _ = write!(text, "{name:<width$}  ");
    }
    text.push_str("what happened");
    for line in lines(run) {
        let at = run.steps[line.step].at.as_secs_f64() * 1000.0;
        let _ = write!(text, "\n{at:>7.1}  ");
        for (&lane, width) in lanes.iter().zip(&widths) {
            let standing = standings[line.step][lane];
            let mark = if standing.behind() > 0 { "*" } else { "" };
            let cell = format!("{}/{}{mark}", standing.shown, standing.available);
            let _ = write!(text, "{cell:<width$}  ");
        }
        text.push_str(&caption(&line));
    }
    text
}

/// One step in a few words.
pub(super) fn caption(line: &Line) -> String {
    let words = [line.what.as_str(), &line.how, &line.target, &line.outcome];
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    format!("#{} {}", line.number, words.join(" "))
}

/// Where each stream stood after each step.
pub(super) fn standings(run: &Run) -> Vec<Vec<Standing>> {
    let mut lists: Vec<Option<String>> = vec![None; run.streams.len()];
    let mut shown = vec![0; run.streams.len()];
    let mut all = Vec::with_capacity(run.steps.len());
    for (index, step) in run.steps.iter().enumerate() {
        match &step.action {
            Action::ListEnd(list) => {
                if let (Some(known), Some(shown)) =
                    (lists.get_mut(list.stream), shown.get_mut(list.stream))
                {
                    *known = Some(list.resource_version.clone());
                    *shown = 0;
                }
            }
            Action::Release(release) => {
                if let Some(shown) = shown.get_mut(release.stream) {
                    *shown += release.events.len();
                }
            }
            // A read at a chosen position is ahead of what was released before.
            Action::Read(read) => {
                if let Some(shown) = shown.get_mut(read.stream) {
                    *shown = read.position.max(*shown);
                }
            }
            _ => {}
        }
        let standing = run.streams.iter().enumerate().map(|(stream, record)| {
            let shown = shown[stream];
            let available = available(run, record, lists[stream].as_deref(), index);
            Standing { shown, available: available.map_or(shown, |count| count.max(shown)) }
        });
        all.push(standing.collect());
    }
    all
}

/// How many events of a stream had been committed after its list, when a step was recorded. `None`
/// where a selector decides which are its own: then the record alone does not tell.
fn available(run: &Run, stream: &StreamRecord, list: Option<&str>, step: usize) -> Option<usize> {
    let identity = &stream.identity;
    if identity.labels.is_some() || identity.fields.is_some() {
        return None;
    }
    let after_list = |version: &str| match list {
        Some(list) => {
            compare_resource_versions(version, list).is_some_and(std::cmp::Ordering::is_gt)
        }
        None => true,
    };
    let own = run.history.iter().filter(|commit| {
        commit.resource == identity.qualified_resource()
            && (identity.namespace.is_none() || identity.namespace == commit.key.namespace)
            && commit.is_committed_at(step)
            // Without a list in the record, the stream begins with what was there.
            && (list.is_some() || commit.step.is_some())
            && after_list(&commit.resource_version)
    });
    Some(own.count())
}

#[cfg(test)]
mod tests {
    use super::super::sample::{finding, with_replica};
    use super::*;

    #[test]
    fn a_stream_that_is_behind_is_marked_at_each_step() {
        let text = timeline(&finding().run);
        let rows: Vec<_> = text.lines().collect();
        assert!(rows[0].contains("statefulsets.apps"), "{text}");
        assert!(rows[1].contains("0/1*") && rows[1].contains("#1 PATCH apply"), "{text}");
        assert!(rows[2].contains("    3.1  0/1*"), "{text}");
        assert_eq!(rows.len(), 5, "{text}");
    }
    #[test]
    fn a_private_stream_has_no_lane_unless_a_read_was_answered_from_it() {
        let plain = finding();
        let mut run = with_replica(plain.run.clone());
        assert_eq!(timeline(&run), timeline(&plain.run));
        assert_eq!(super::super::svg(&run), super::super::svg(&plain.run));
        let Action::Request(request) = &mut run.steps[0].action else { panic!("no request") };
        request.source = Source::View { stream: 1, incarnation: 1, position: 0 };
        let text = timeline(&run);
        assert_eq!(text.matches("statefulsets.apps").count(), 2, "{text}");
    }
}
