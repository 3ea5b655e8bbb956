//! No spin: a pass makes a bounded number of requests, and a run comes to rest.

use std::collections::BTreeMap;

use super::{BuiltIn, End, Found, record::Record};
use crate::lag::model::{Action, Verb};

pub(super) fn judge(record: &Record<'_>, most: usize, end: End) -> Option<Found> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for (index, pass, request) in record.requests_of_passes() {
        if request.request.verb == Verb::Watch {
            continue;
        }
        let count = counts.entry(pass.start.pass).or_default();
        *count += 1;
        if *count > most {
            let text = format!(
                "pass {} of {} {} made {count} requests, more than {most}; the last is {} {}",
                pass.start.pass,
                pass.start.controller,
                pass.start.key,
                request.request.verb,
                request.request.target(),
            );
            return Some(Found::new(index + 1, BuiltIn::NoSpin, text));
        }
    }
    if end != End::Restless {
        return None;
    }
    let steps = &record.run.steps;
    let passes = steps.iter().filter(|step| matches!(step.action, Action::PassStart(_))).count();
    let text = format!(
        "the run did not come to rest in {} steps with {passes} passes and {} requests",
        steps.len(),
        record.run.requests().count(),
    );
    Some(Found::new(steps.len(), BuiltIn::NoSpin, text))
}
