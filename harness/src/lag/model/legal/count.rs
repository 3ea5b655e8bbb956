//! How many interleavings of single deliveries one run stands for.

use super::{
    super::{Action, Role, Run, deliveries},
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

struct Operation {
    available: usize,
    /// Of a read of this stream: whether each position gives its answer.
    reads: Option<Vec<bool>>,
}

fn ways(operations: &[Operation]) -> u64 {
    let answers: Vec<_> = operations
        .iter()
        .map(|operation| {
            operation
                .reads
                .as_ref()
                .map(|told| move |position: usize| told.get(position).copied().unwrap_or(false))
        })
        .collect();
    let counted: Vec<_> = operations
        .iter()
        .zip(&answers)
        .map(|(operation, answers)| {
            let answers = answers.as_ref().map(|answers| answers as &dyn Fn(usize) -> bool);
            (operation.available, answers)
        })
        .collect();
    deliveries(&counted)
}
