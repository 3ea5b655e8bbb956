//! The naive interpreter: any number of events of any stream delivered between any two operations.
//!
//! It shares the programs with the rest and nothing else: no log, no fold, no menu of the library.

use std::collections::{BTreeMap, BTreeSet};

use super::program::{Answer, Change3, Observed, Op, Program, STREAMS};

/// What an event does to its object: a value and a revision, or nothing left.
type NaiveEvent = (&'static str, Option<(u8, u64)>);

pub(super) struct Naive<'a> {
    program: &'a Program,
    foreign: Vec<Change3>,
    /// Only runs in which all reads of one stream between two replies see one position.
    one_position_a_stretch: bool,
    pub(super) runs: u64,
    pub(super) sequences: BTreeSet<Vec<Observed>>,
}

#[derive(Clone)]
struct State {
    logs: Vec<Vec<NaiveEvent>>,
    revision: u64,
    positions: Vec<usize>,
    /// Where each stream stood when it was read since the last reply.
    stretch: Vec<Option<usize>>,
    foreign: usize,
    seen: Vec<Observed>,
}

impl<'a> Naive<'a> {
    pub(super) fn all(program: &'a Program) -> Self {
        Self::enumerate(program, false)
    }

    pub(super) fn at_boundaries(program: &'a Program) -> Self {
        Self::enumerate(program, true)
    }

    fn enumerate(program: &'a Program, one_position_a_stretch: bool) -> Self {
        let mut naive = Self {
            program,
            foreign: program.foreign_steps(),
            one_position_a_stretch,
            runs: 0,
            sequences: BTreeSet::new(),
        };
        let mut state = State {
            logs: vec![Vec::new(); STREAMS.len()],
            revision: 0,
            positions: vec![0; STREAMS.len()],
            stretch: vec![None; STREAMS.len()],
            foreign: 0,
            seen: Vec::new(),
        };
        for change in program.set_up() {
            state.commit(&change);
        }
        naive.from(&state);
        naive
    }

    fn from(&mut self, state: &State) {
        // The other actor may have committed any number of its steps by now, and any of what there is then
        // may have been delivered.
        let mut state = state.clone();
        loop {
            self.deliver(&mut state.clone(), 0);
            let Some(change) = self.foreign.get(state.foreign) else { break };
            let change = change.clone();
            state.commit(&change);
            state.foreign += 1;
        }
    }

    fn deliver(&mut self, state: &mut State, stream: usize) {
        if stream == STREAMS.len() {
            self.operate(state);
            return;
        }
        let from = state.positions[stream];
        for position in from..=state.logs[stream].len() {
            state.positions[stream] = position;
            self.deliver(state, stream + 1);
        }
        state.positions[stream] = from;
    }

    fn operate(&mut self, state: &State) {
        let Some(op) = self.program.next(&state.seen) else {
            self.runs += 1;
            self.sequences.insert(state.seen.clone());
            return;
        };
        let mut next = state.clone();
        let answer = match &op {
            Op::Read { stream, objects } => {
                let position = state.positions[*stream];
                let before = next.stretch[*stream].replace(position);
                if self.one_position_a_stretch && before.is_some_and(|before| before != position) {
                    return;
                }
                self.answer(state, *stream, position, objects)
            }
            Op::Live { stream, object } => {
                next.stretch.fill(None);
                self.answer(state, *stream, state.logs[*stream].len(), &[object])
            }
            Op::Write(change) => {
                next.stretch.fill(None);
                next.commit(change);
                Answer::new()
            }
        };
        next.seen.push(Observed { op, answer });
        self.from(&next);
    }

    fn answer(
        &self,
        state: &State,
        stream: usize,
        position: usize,
        objects: &[&'static str],
    ) -> Answer {
        let mut values = BTreeMap::new();
        for (object, value) in &state.logs[stream][..position] {
            values.insert(*object, *value);
        }
        let told = |object: &&'static str| {
            let (value, revision) = (*values.get(object)?)?;
            Some((*object, (value, if self.program.whole { revision } else { 0 })))
        };
        objects.iter().filter_map(told).collect()
    }
}

impl State {
    fn commit(&mut self, change: &Change3) {
        let log = &mut self.logs[change.stream];
        let last = log.iter().rev().find(|(object, _)| *object == change.object);
        let present = last.is_some_and(|(_, value)| value.is_some());
        if change.value.is_some() || present {
            self.revision += 1;
            log.push((change.object, change.value.map(|value| (value, self.revision))));
        }
    }
}
