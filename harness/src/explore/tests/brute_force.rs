//! The search against brute force: the same observations, and with the wrapper none twice.

use std::collections::BTreeSet;

use futures::executor::block_on;

use super::{
    naive::Naive,
    program::{Answer, Explored, Mode, Observed, Op, Program, real_menu},
};
use crate::{
    explore::{Search, random::Random},
    lag::model::{Action, Alt, Bounds, Completeness, Kind, Offer, Run, Shard, check},
};

fn program(seed: u64) -> Program {
    Program { seed, operations: 5, before: 2, foreign: 0, live: false, whole: false }
}

/// All runs of a program, through the real search: observations, records, and what the verdict counts.
struct Found {
    sequences: Vec<Vec<Observed>>,
    runs: Vec<Run>,
    naive: u64,
}

fn search(program: Program, mode: Mode) -> Found {
    let collector = Collector::new(Explored { program, mode });
    let explored =
        block_on(Search::new().bounds(Bounds::none()).keep_going().parallel(3).run(&collector))
            .unwrap();
    let nothing_cut = Completeness::Exhausted { within: vec![] };
    assert_eq!(explored.verdict.completeness, nothing_cut, "seed {}", program.seed);
    let (sequences, runs): (Vec<_>, Vec<_>) =
        collector.records.into_inner().unwrap().into_iter().unzip();
    assert_eq!(explored.verdict.runs, sequences.len() as u64);
    Found { sequences, runs, naive: explored.verdict.naive }
}

fn set(found: &Found) -> BTreeSet<Vec<Observed>> {
    found.sequences.iter().cloned().collect()
}

/// Keeps what every run leaves; the search itself keeps only failures.
struct Collector {
    explored: Explored,
    records: std::sync::Mutex<Vec<(Vec<Observed>, Run)>>,
}

impl Collector {
    fn new(explored: Explored) -> Self {
        Self { explored, records: std::sync::Mutex::default() }
    }
}

impl crate::explore::Subject for Collector {
    type Record = ();
    type Error = std::convert::Infallible;

    async fn run(
        &self,
        choices: crate::explore::Choices,
    ) -> Result<crate::explore::Outcome<()>, Self::Error> {
        let outcome = self.explored.run(choices).await?;
        self.records.lock().unwrap().push(outcome.record);
        Ok(crate::explore::Outcome::new(outcome.ending, ())
            .with_interleavings(outcome.interleavings))
    }
}

#[test]
fn with_the_wrapper_each_observation_sequence_has_exactly_one_run() {
    let (mut runs, mut interleavings) = (0, 0);
    for seed in 0..80 {
        // The answer is the value alone: what came back counts as one answer.
        let program = program(seed);
        let naive = Naive::all(&program);
        let found = search(program, Mode::Wrapper(real_menu));
        assert_eq!(set(&found), naive.sequences, "seed {seed}");
        assert_eq!(found.sequences.len(), naive.sequences.len(), "seed {seed}: a run is redundant");
        runs += found.sequences.len() as u64;
        interleavings += naive.runs;
    }
    assert!(interleavings > 50 * runs, "the programs are too small: {interleavings} and {runs}");
}

#[test]
fn the_interleavings_that_the_runs_stand_for_are_all_there_are() {
    for seed in 0..80 {
        // The record tells answers apart by revision, so here the program does too.
        let program = Program { whole: true, ..program(seed) };
        let naive = Naive::all(&program);
        let found = search(program, Mode::Wrapper(real_menu));
        assert_eq!(set(&found), naive.sequences, "seed {seed}");
        assert_eq!(found.naive, naive.runs, "seed {seed}");
    }
}

#[test]
fn with_live_reads_and_another_actor_the_wrapper_still_misses_nothing() {
    for seed in 0..40 {
        let program = Program { operations: 4, before: 1, foreign: 1, live: true, ..program(seed) };
        let naive = Naive::all(&program);
        let found = search(program, Mode::Wrapper(real_menu));
        assert_eq!(set(&found), naive.sequences, "seed {seed}");
    }
}

#[test]
fn at_boundaries_exactly_those_runs_are_missed_that_read_a_stream_twice_between_two_replies() {
    let (mut missed, mut without, mut reached) = (0, 0, 0);
    for seed in 0..120 {
        let foreign = usize::from(seed % 4 == 0);
        let operations = 5 - foreign;
        let program = Program { operations, before: 2, foreign, live: true, ..program(seed) };
        let all = Naive::all(&program).sequences;
        let expected = Naive::at_boundaries(&program).sequences;
        let found = set(&search(program, Mode::Boundaries));
        assert_eq!(found, expected, "seed {seed}");
        for sequence in all.difference(&found) {
            assert!(reads_twice(sequence), "seed {seed}: {sequence:?}");
            missed += 1;
        }
        if !all.iter().any(|sequence| reads_twice(sequence)) {
            assert_eq!(found, all, "seed {seed}");
            without += 1;
        }
        reached += found.len();
    }
    assert!(missed > 0 && without > 0 && reached > 250, "{missed} {without} {reached}");
}

/// Whether one stream is read twice with no request in between.
fn reads_twice(sequence: &[Observed]) -> bool {
    let mut read = BTreeSet::new();
    sequence.iter().any(|observed| match &observed.op {
        Op::Read { stream, .. } => !read.insert(*stream),
        Op::Live { .. } | Op::Write(_) => {
            read.clear();
            false
        }
    })
}

#[test]
fn the_most_advanced_representative_would_lose_runs() {
    fn most_advanced(answers: Vec<Answer>, first: usize) -> Vec<Offer> {
        let mut offers = real_menu(answers.clone(), first);
        for offer in &mut offers {
            let answer = &answers[offer.position - first];
            let last = answers.iter().rposition(|other| other == answer).unwrap();
            offer.position = first + last;
        }
        offers
    }
    assert!(loses_runs(Mode::Wrapper(most_advanced)));
}

#[test]
fn a_menu_without_the_oldest_answer_would_lose_runs() {
    fn without_oldest(answers: Vec<Answer>, first: usize) -> Vec<Offer> {
        let mut offers = real_menu(answers, first);
        if offers.len() > 1 {
            offers.pop();
        }
        offers
    }
    assert!(loses_runs(Mode::Wrapper(without_oldest)));
}

#[test]
fn a_menu_of_positions_instead_of_answers_would_run_things_twice() {
    fn all_positions(answers: Vec<Answer>, first: usize) -> Vec<Offer> {
        let offer = |(older, at): (usize, usize)| Offer {
            alt: if older == 0 { Alt::freshest() } else { Alt::behind(older.try_into().unwrap()) },
            position: first + at,
        };
        (0..answers.len()).rev().enumerate().map(offer).collect()
    }
    let redundant = (0..20).any(|seed| {
        let found = search(program(seed), Mode::Wrapper(all_positions));
        found.sequences.len() > set(&found).len()
    });
    assert!(redundant);
}

fn loses_runs(mode: Mode) -> bool {
    (0..20).any(|seed| {
        let program = program(seed);
        let found = set(&search(program, mode));
        let all = Naive::all(&program).sequences;
        assert!(found.is_subset(&all));
        found.len() < all.len()
    })
}

#[test]
fn every_run_of_both_modes_is_legal_and_permuted_views_are_not() {
    let mut random = Random::new(3);
    let mut permuted = 0;
    for seed in 0..30 {
        let program = Program { operations: 4, before: 2, foreign: 1, live: true, ..program(seed) };
        for mode in [Mode::Wrapper(real_menu), Mode::Boundaries] {
            for run in search(program, mode).runs {
                let certificate =
                    check(&run).unwrap_or_else(|illegal| panic!("seed {seed}: {illegal}"));
                let reads = run.reads().count();
                assert_eq!(certificate.views.len(), reads);
                permuted += u32::from(permuted < 500 && permute(run, &mut random));
            }
        }
    }
    assert!(permuted > 100, "{permuted}");
}

/// Exchanges two events of a release, if there is one with two; then the run must be rejected.
fn permute(mut run: Run, random: &mut Random) -> bool {
    let mut releases: Vec<_> = run
        .steps
        .iter_mut()
        .filter_map(|step| match &mut step.action {
            Action::Release(release) if release.events.len() > 1 => Some(release),
            _ => None,
        })
        .collect();
    if releases.is_empty() {
        return false;
    }
    let chosen = random.below(releases.len());
    let events = &mut releases[chosen].events;
    let at = random.below(events.len() - 1);
    events.swap(at, at + 1);
    assert!(check(&run).is_err());
    true
}

#[test]
fn parts_of_a_search_make_every_run_once_and_none_twice() {
    for seed in 0..20 {
        let explored = Explored { program: program(seed), mode: Mode::Wrapper(real_menu) };
        let whole = search(program(seed), Mode::Wrapper(real_menu));
        for of in [2, 3, 7] {
            let mut counted = 0;
            let mut sequences = Vec::new();
            for number in 1..=of {
                let collector = Collector::new(explored);
                let shard = Shard::new(number, of).unwrap();
                let search = Search::new().bounds(Bounds::none()).shard(shard);
                counted += block_on(search.run(&collector)).unwrap().verdict.runs;
                let records = collector.records.into_inner().unwrap();
                // The baseline tells each part what there is; the first part counts it.
                let skip = usize::from(number > 1);
                sequences.extend(records.into_iter().skip(skip).map(|(sequence, _)| sequence));
            }
            assert_eq!(counted, sequences.len() as u64);
            assert_eq!(sequences.len(), whole.sequences.len(), "seed {seed}, {of} parts");
            assert_eq!(sequences.into_iter().collect::<BTreeSet<_>>(), set(&whole));
        }
    }
}

#[test]
fn one_hold_spans_boundaries_and_costs_at_most_events_times_boundaries() {
    let mut spans = 0;
    for seed in 0..60 {
        let program = Program { operations: 6, before: 2, whole: true, ..program(seed) };
        let collector = Collector::new(Explored { program, mode: Mode::Boundaries });
        let bounds = Bounds { holds: Some(1), ..Bounds::none() };
        let explored = block_on(Search::new().bounds(bounds).keep_going().run(&collector)).unwrap();
        let records = collector.records.into_inner().unwrap();
        let events = records.iter().map(|(_, run)| run.history.len()).max().unwrap() as u64;
        let boundaries =
            records.iter().map(|(_, run)| 1 + run.requests().count()).max().unwrap() as u64;
        let most = 1 + events * boundaries;
        assert!(explored.verdict.runs <= most, "seed {seed}: {} of {most}", explored.verdict.runs);
        spans += records.iter().filter(|(_, run)| run.deviations().count() > 1).count();
        assert!(records.iter().all(|(_, run)| {
            run.choices.iter().all(|chosen| chosen.point.kind() == Kind::Boundary)
        }));
    }
    assert!(spans > 20, "few holds last over several boundaries: {spans}");
}
