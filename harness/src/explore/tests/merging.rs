//! Runs that come to one state: what follows is explored once, and nothing is lost by it.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    sync::Mutex,
};

use futures::executor::block_on;

use super::super::{
    Choices, Ending, ExploreError, Explored, Outcome, Reached, Search, StateId, Subject,
    random::Random,
};
use crate::lag::model::{Alt, Bounds, Chooser, Kind, Point, PointId};

const STEPS: usize = 7;
const STATES: usize = 5;

/// Goes from state to state by a table, as is chosen; in some states an oracle is violated.
struct Machine {
    next: HashMap<(usize, usize, usize), usize>,
    bad: BTreeSet<(usize, usize)>,
    /// Says in which state it is.
    tells: bool,
    /// Remembers something that the state does not tell.
    remembers: bool,
    /// How many steps were made in all runs that passed.
    made: Mutex<u64>,
}

impl Machine {
    fn new(seed: u64, tells: bool, remembers: bool) -> Self {
        let mut random = Random::new(seed);
        let mut next = HashMap::new();
        for step in 0..STEPS {
            for state in 0..STATES {
                for choice in 0..3 {
                    next.insert((step, state, choice), random.below(STATES));
                }
            }
        }
        let bad = (0..3).map(|_| (1 + random.below(STEPS), random.below(STATES))).collect();
        Self { next, bad, tells, remembers, made: Mutex::new(0) }
    }
}

impl Subject for Machine {
    type Record = ();
    type Error = Infallible;

    async fn run(&self, mut choices: Choices) -> Result<Outcome<()>, Infallible> {
        let (mut state, mut memory, mut made) = (0, 0, 0);
        let mut violated = None;
        for step in 0..STEPS {
            let mut digest = [0; 16];
            digest[..2].copy_from_slice(&[step, state].map(|it| u8::try_from(it).unwrap()));
            let id = StateId::new(digest);
            if self.tells && choices.reach(id, format!("step {step}")) == Reached::Known {
                break;
            }
            let number = u32::try_from(step).unwrap() + 1;
            let id = PointId::new("pods", Kind::Read, number);
            let menu = vec![Alt::freshest(), Alt::behind(1), Alt::behind(2)];
            let taken = choices.choose(&Point::new(id, menu).unwrap());
            memory += taken;
            made += 1;
            let shift = if self.remembers { memory } else { 0 };
            state = (self.next[&(step, state, taken)] + shift) % STATES;
            if self.bad.contains(&(step + 1, state)) {
                violated.get_or_insert_with(|| format!("state {state} after step {step}"));
            }
        }
        if violated.is_none() {
            *self.made.lock().unwrap() += made;
        }
        let ending = violated.map_or(Ending::Passed, |oracle| Ending::failed(oracle, ""));
        Ok(Outcome::new(ending, ()))
    }
}

fn explored(
    machine: &Machine,
    stale_reads: Option<u32>,
    parallel: usize,
) -> Result<Explored<()>, ExploreError<Infallible>> {
    let bounds = Bounds { stale_reads, ..Bounds::default() };
    block_on(Search::new().bounds(bounds).parallel(parallel).keep_going().run(machine))
}

fn violated(explored: &Explored<()>) -> BTreeSet<String> {
    explored.failures.iter().map(|failure| failure.oracle().to_owned()).collect()
}

#[test]
fn what_is_found_is_what_a_tree_search_finds_with_fewer_runs() {
    let (mut tree_runs, mut merged_runs, mut found) = (0, 0, 0);
    for seed in 0..60 {
        for bound in [Some(1), Some(2), Some(3), None] {
            let tree = explored(&Machine::new(seed, false, false), bound, 1).unwrap();
            let machine = Machine::new(seed, true, false);
            let merged = explored(&machine, bound, 1).unwrap();
            assert_eq!(violated(&merged), violated(&tree), "seed {seed}, {bound:?}");
            assert_eq!(tree.verdict.merged, 0);
            let at_once = explored(&Machine::new(seed, true, false), bound, 3).unwrap();
            assert_eq!(
                violated(&at_once),
                violated(&tree),
                "seed {seed}, {bound:?}, three at once"
            );
            tree_runs += tree.verdict.runs;
            merged_runs += merged.verdict.runs;
            found += violated(&tree).len();
        }
    }
    assert!(found > 300, "{found}");
    assert!(merged_runs * 5 < tree_runs, "{merged_runs} runs for {tree_runs}");
}

#[test]
fn runs_that_come_to_a_known_state_end_there_and_some_go_on() {
    let machine = Machine::new(1, true, false);
    let explored = explored(&machine, None, 1).unwrap();
    let runs = explored.verdict.runs - explored.verdict.failures;
    let made = *machine.made.lock().unwrap();
    // A run makes all steps up to where it departs from another, and few behind.
    assert!(made < runs * STEPS as u64, "{made} steps in {runs} runs");
    let (merged, looked_again) = (explored.verdict.merged, explored.verdict.looked_again);
    assert!(looked_again > 0 && looked_again < merged, "{looked_again} of {merged}");
    let text = explored.verdict.to_string();
    let told = format!("{merged} that came to a state met before ({looked_again} of them went on");
    assert!(text.contains(&told), "{text}");
}

#[test]
fn memory_that_the_state_does_not_tell_is_noticed() {
    let noticed = (0..40)
        .filter(|seed| match explored(&Machine::new(*seed, true, true), None, 1) {
            Err(ExploreError::StatesDiffer { place, .. }) => place.starts_with("step "),
            _ => false,
        })
        .count();
    // In two of them the memory makes no difference that a run in sixteen meets.
    assert!(noticed >= 36, "{noticed} of 40");
}

#[test]
fn one_search_is_as_another_whatever_is_quicker() {
    for seed in 0..20 {
        let numbers = || {
            let explored = explored(&Machine::new(seed, true, false), Some(3), 4).unwrap();
            let tokens = explored.failures.iter().map(|failure| failure.token().to_string());
            (explored.verdict.runs, explored.verdict.merged, tokens.collect::<Vec<_>>())
        };
        assert_eq!(numbers(), numbers());
    }
}
