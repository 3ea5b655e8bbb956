//! How many interleavings of single deliveries one run stands for.

use super::{
    super::{Action, Role, Run},
    Axiom, Illegal,
    visible::{Visible, answers},
};

/// Counts the ways in which the events of all streams could have been delivered, one by one, between the
/// operations of the passes, such that every read had been told what it was told. Saturates.
///
/// A search that makes one run for each distinct sequence of answers saves exactly the others: the sum over
/// its runs is what trying every interleaving would have cost. Of a read filtered by a closure it is not
/// known what it would have been told elsewhere; it counts with every position that has those objects.
///
/// # Errors
/// [`Illegal`] with [`Axiom::History`] if an object that a selector asks about was not kept.
pub fn interleavings(run: &Run) -> Result<u64, Illegal> {
    let mut product = 1_u64;
    for (index, record) in run.streams.iter().enumerate() {
        if record.role == Role::Replica {
            continue;
        }
        let history = |text| Illegal::new(Axiom::History, None, text);
        let visible = Visible::new(&run.history, &record.identity).map_err(history)?;
        product = product.saturating_mul(of_stream(run, index, &visible)?);
    }
    Ok(product)
}

fn of_stream(run: &Run, stream: usize, visible: &Visible<'_>) -> Result<u64, Illegal> {
    let mut product = 1_u64;
    // The number of events covered by the initial list; `None` before the first.
    let mut base: Option<usize> = None;
    let mut operations: Vec<Operation> = Vec::new();
    for (index, step) in run.steps.iter().enumerate() {
        let available = |base: usize, steps| visible.available_before(steps).saturating_sub(base);
        match (&step.action, base) {
            (Action::ListEnd(end), _) if end.stream == stream => {
                product = product.saturating_mul(ways(&std::mem::take(&mut operations)));
                base = visible.up_to(&end.resource_version);
            }
            (Action::Request(request), Some(base)) if step.pass.is_some() => {
                operations
                    .push(Operation { available: available(base, request.sent), reads: None });
            }
            (Action::Read(read), Some(base)) if step.pass.is_some() => {
                let available = available(base, index + 1);
                let mut reads = None;
                if read.stream == stream {
                    let told = |position| {
                        answers(&visible.state(base + position), &read.query, &read.answer)
                    };
                    let told: Result<Vec<bool>, String> = (0..=available).map(told).collect();
                    reads = Some(told.map_err(|text| Illegal::new(Axiom::History, index, text))?);
                }
                operations.push(Operation { available, reads });
            }
            _ => {}
        }
    }
    if let Some(base) = base {
        let available = visible.available_before(run.steps.len() + 1).saturating_sub(base);
        operations.push(Operation { available, reads: None });
    }
    Ok(product.saturating_mul(ways(&operations)))
}

/// What one operation means for a stream.
struct Operation {
    /// How many events had been committed before it.
    available: usize,
    /// Of a read of this stream: whether each position gives the answer it got.
    reads: Option<Vec<bool>>,
}

/// The number of ways to stand somewhere at each operation, never further back than at the one before.
fn ways(operations: &[Operation]) -> u64 {
    let mut ways: Vec<u64> = vec![1];
    for operation in operations {
        let last = operation.available.max(ways.len() - 1);
        let mut sum = 0_u64;
        ways = (0..=last)
            .map(|position| {
                sum = sum.saturating_add(ways.get(position).copied().unwrap_or(0));
                let told = |reads: &Vec<bool>| reads.get(position) == Some(&true);
                if operation.reads.as_ref().is_none_or(told) { sum } else { 0 }
            })
            .collect();
    }
    ways.into_iter().fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(available: usize) -> Operation {
        Operation { available, reads: None }
    }

    #[test]
    fn ways_are_counted_as_by_hand() {
        let told_old = Operation { available: 1, reads: Some(vec![true, false]) };
        // One event, one read between start and end. Told the old answer: the event is delivered after the
        // read or never. Not a read: before it, after it, never.
        assert_eq!(ways(&[told_old, any(1)]), 2);
        assert_eq!(ways(&[any(1), any(1)]), 3);
        // Two events: (0,0) (0,1) (0,2) (1,1) (1,2) (2,2).
        assert_eq!(ways(&[any(2), any(2)]), 6);
        assert_eq!(ways(&[any(0), any(2)]), 3);
        let many: Vec<_> = (0..100).map(|_| any(255)).collect();
        assert_eq!(ways(&many), u64::MAX);
    }
}
