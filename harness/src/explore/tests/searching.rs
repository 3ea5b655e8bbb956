//! What a search does with bounds, budgets, levels and subjects that misbehave.

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use futures::executor::block_on;

use super::script::{Asker, Broken, Script, fails_if};
use crate::{
    explore::{Ending, ExploreError, Sample, Search, Token},
    lag::model::{Alt, Bound, Bounds, Completeness, Ended, Kind, PointId},
};

fn bounded(stale_reads: u32) -> Bounds {
    Bounds { stale_reads: Some(stale_reads), ..Bounds::default() }
}

fn exhausted(within: &[Bound]) -> Completeness {
    Completeness::Exhausted { within: within.to_vec() }
}

/// So many reads about objects of their own, each with so many older answers.
fn grid(reads: u32, older: u32) -> impl Fn(&mut Asker) -> Result<Ending, Broken> {
    move |asker| {
        for read in 0..reads {
            asker.read(&format!("pods/p{read}"), older);
        }
        Ok(Ending::Passed)
    }
}

#[test]
fn the_number_of_runs_is_what_combinatorics_says() {
    // 12 reads with 3 older answers each: the sums of binomial(12, k) * 3^k.
    for (stale_reads, runs) in [(0, 1), (1, 37), (2, 631), (3, 6_571)] {
        let subject = Script::new(grid(12, 3));
        let search = Search::new().bounds(bounded(stale_reads));
        let explored = block_on(search.run(&subject)).unwrap();
        assert_eq!(explored.verdict.runs, runs);
        assert_eq!(subject.runs() as u64, runs);
        assert_eq!(explored.verdict.points, 12);
        let within = exhausted(&[Bound::StaleReads(stale_reads)]);
        assert_eq!(explored.verdict.completeness, within);
        assert_eq!(explored.runs_by_cost.iter().sum::<u64>(), runs);
    }
}

#[test]
fn a_bound_that_cut_nothing_is_not_named() {
    let subject = Script::new(grid(2, 1));
    let explored = block_on(Search::new().bounds(bounded(2)).run(&subject)).unwrap();
    assert_eq!((explored.verdict.runs, explored.verdict.completeness), (4, exhausted(&[])));
}

#[test]
fn lag_holds_steps_and_faults_have_bounds_of_their_own() {
    let subject = Script::new(|asker: &mut Asker| {
        asker.read("pods/p", 3);
        asker.ask("pods", Kind::Boundary, vec![Alt::freshest(), Alt::behind(1)]);
        let steps = vec![Alt::other("wait", 0), Alt::other("commit", 1)];
        asker.ask("kubelet", Kind::Environment, steps);
        asker.ask("process", Kind::Fault, vec![Alt::other("none", 0), Alt::other("restart", 1)]);
        Ok(Ending::Passed)
    });
    let none = Bounds::none();
    for (bounds, runs, bound) in [
        (none, 4 * 2 * 2 * 2, None),
        (Bounds { lag: Some(2), ..none }, 3 * 2 * 2 * 2, Some(Bound::Lag(2))),
        (Bounds { holds: Some(0), ..none }, 4 * 2 * 2, Some(Bound::Holds(0))),
        (Bounds { environment: Some(0), ..none }, 4 * 2 * 2, Some(Bound::Environment(0))),
        (Bounds { faults: Some(0), ..none }, 4 * 2 * 2, Some(Bound::Faults(0))),
    ] {
        let explored = block_on(Search::new().bounds(bounds).run(&subject)).unwrap();
        assert_eq!(explored.verdict.runs, runs, "{bounds:?}");
        let within: Vec<_> = bound.into_iter().collect();
        assert_eq!(explored.verdict.completeness, exhausted(&within));
    }
}

/// The costs of the runs, in the order in which they were begun.
fn costs(parallel: usize) -> (Vec<usize>, BTreeSet<Vec<u32>>) {
    let runs = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&runs);
    let subject = Script::new(move |asker: &mut Asker| {
        // What is stale first decides what there is to read later.
        let first = asker.read("pods/a", 2);
        let more = (0..=first).map(|_| asker.read("pods/b", 1)).collect::<Vec<_>>();
        let mut taken: Vec<u32> = std::iter::once(first).chain(more).collect();
        let stale = taken.iter().filter(|taken| **taken > 0).count();
        // Steps of another actor cost nothing here, so runs of one cost lead to others of that cost.
        while taken.len() < 7 && asker.commits("kubelet") {
            taken.push(9);
        }
        kept.lock().unwrap().push((asker.run, stale, taken));
        Ok(Ending::Passed)
    });
    let search = Search::new().bounds(Bounds::none()).parallel(parallel);
    block_on(search.run(&subject)).unwrap();
    assert!(subject.most_in_flight.load(Ordering::Relaxed) <= parallel);
    let mut runs = runs.lock().unwrap().clone();
    runs.sort();
    let costs = runs.iter().map(|(_, stale, _)| *stale).collect();
    (costs, runs.into_iter().map(|(_, _, taken)| taken).collect())
}

#[test]
fn runs_that_depart_less_come_first_however_many_are_under_way() {
    let (alone, all) = costs(1);
    assert_eq!(all.len(), 2 * 6 + 4 * 5 + 8 * 4);
    assert_eq!(alone.len(), all.len(), "each once");
    for parallel in [1, 2, 4, 9] {
        let (costs, reached) = costs(parallel);
        assert!(costs.is_sorted(), "{parallel} at once: {costs:?}");
        assert_eq!(reached, all);
        assert_eq!(costs.len(), all.len());
    }
}

#[test]
fn several_runs_are_under_way_at_once_up_to_the_limit() {
    let subject = Script::new(grid(6, 2));
    block_on(Search::new().parallel(5).run(&subject)).unwrap();
    assert_eq!(subject.most_in_flight.load(Ordering::Relaxed), 5);
}

#[test]
fn a_budget_that_was_used_up_is_named_and_one_that_just_sufficed_is_not() {
    let run = |most| {
        let subject = Script::new(grid(4, 1));
        let search = Search::new().bounds(Bounds::none()).max_runs(most).parallel(3);
        let explored = block_on(search.run(&subject)).unwrap();
        assert_eq!(subject.runs() as u64, explored.verdict.runs);
        (explored.verdict.runs, explored.verdict.completeness)
    };
    let cut = Completeness::NotExhausted { by: Ended::Runs(15) };
    assert_eq!(run(15), (15, cut));
    assert_eq!(run(16), (16, exhausted(&[])));
}

#[test]
fn no_run_begins_when_the_time_is_up() {
    let time = Arc::new(Mutex::new(Duration::from_secs(100)));
    let clock = Arc::clone(&time);
    let subject = Script::new(move |asker: &mut Asker| {
        *clock.lock().unwrap() += Duration::from_secs(1);
        grid(5, 1)(asker)
    });
    let clock = Arc::clone(&time);
    let explored = block_on(
        Search::new()
            .clock(move || *clock.lock().unwrap())
            .max_time(Duration::from_secs(7))
            .run(&subject),
    )
    .unwrap();
    assert_eq!(explored.verdict.runs, 7);
    assert_eq!(explored.verdict.elapsed, Duration::from_secs(7));
    assert_eq!(
        explored.verdict.to_string(),
        "not exhausted: stopped after 7.0 s: 7 runs, 0 failed, <= 5 choice points, 7.0 s"
    );
}

/// Fails if the second read is at least two behind and the fourth is stale.
fn two_stale(asker: &mut Asker) -> Result<Ending, Broken> {
    let told: Vec<_> = (0..5).map(|_| asker.read("pods/p", 3)).collect();
    fails_if(told[1] >= 2 && told[3] >= 1)
}

#[test]
fn the_first_failure_departs_least_and_is_made_a_second_time() {
    let subject = Script::new(two_stale);
    let explored = block_on(Search::new().run(&subject)).unwrap();
    let failure = &explored.failures[0];
    assert_eq!(failure.token().to_string(), "pods/p@r2:-2,pods/p@r4:-1");
    assert_eq!(failure.oracle(), "never");
    assert_eq!(failure.number, explored.verdict.runs);
    assert_eq!(subject.runs() as u64, explored.verdict.runs + 1);
    let by = Ended::Failure;
    assert_eq!(explored.verdict.completeness, Completeness::NotExhausted { by });

    let subject = Script::new(two_stale);
    let explored = block_on(Search::new().keep_going().run(&subject)).unwrap();
    assert_eq!(explored.verdict.failures, 6, "2 ways and 3 ways");
    assert_eq!(explored.verdict.completeness, exhausted(&[Bound::StaleReads(2)]));
    assert_eq!(explored.failures[0].token(), failure.token());
}

#[test]
fn exclusions_are_printed_with_the_verdict() {
    let subject = Script::new(grid(1, 1));
    let search =
        Search::new().leaves_out("restarts").leaves_out("other orders of concurrent replies");
    let verdict = block_on(search.clock(|| Duration::ZERO).run(&subject)).unwrap().verdict;
    assert_eq!(
        verdict.to_string(),
        "exhausted, no bound was met: 2 runs, 0 failed, <= 1 choice points, 0.0 s; left out: restarts, other \
         orders of concurrent replies"
    );
    let sample = Sample::uniform(5, 1).leaves_out("restarts").clock(|| Duration::ZERO);
    let verdict = block_on(sample.run(&subject)).unwrap().verdict;
    assert_eq!(
        verdict.to_string(),
        "not exhausted: runs were drawn with seed 5: 1 runs, 0 failed, <= 1 choice points, 0.0 s; left out: \
         restarts"
    );
}

#[test]
fn a_subject_that_meets_other_points_is_not_deterministic() {
    let subject = Script::new(|asker: &mut Asker| {
        let more = u32::from(asker.run > 1);
        asker.read("pods/a", 1);
        asker.read("pods/b", 1 + more);
        Ok(Ending::Passed)
    });
    let error = block_on(Search::new().run(&subject)).unwrap_err();
    let ExploreError::Diverged(divergence) = &error else { panic!("{error}") };
    assert_eq!(divergence.step(), 2);
    assert!(error.to_string().contains("pods/b@r1 {0 -1} when it was recorded"), "{error}");
}

#[test]
fn a_failing_run_that_does_something_else_the_second_time_is_not_deterministic() {
    let subject = Script::new(|asker: &mut Asker| {
        let stale = asker.read("pods/a", 1);
        asker.trace = vec!["reads".to_owned(), format!("writes {}", asker.run)];
        fails_if(stale > 0)
    });
    let error = block_on(Search::new().run(&subject)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the subject is not deterministic: with the choices pods/a@r1:-1, line 2 of the trace was \
         \"writes 2\" the first time and \"writes 3\" the second time"
    );
    let subject = Script::new(|asker: &mut Asker| {
        let stale = asker.read("pods/a", 1);
        fails_if(stale > 0 && asker.run == 2)
    });
    let error = block_on(Search::new().run(&subject)).unwrap_err();
    assert!(matches!(error, ExploreError::TraceDiffers { .. }), "{error}");
}

#[test]
fn a_run_that_cannot_be_made_ends_the_search_with_its_choices_and_its_cause() {
    let subject = Script::new(|asker: &mut Asker| match asker.read("pods/a", 1) {
        0 => Ok(Ending::Passed),
        _ => Err(Broken),
    });
    let error = block_on(Search::new().run(&subject)).unwrap_err();
    assert_eq!(error.to_string(), "failed to run the subject with the choices pods/a@r1:-1");
    assert_eq!(error.source().unwrap().to_string(), "the plane is gone");
}

#[test]
fn an_alternative_that_cannot_happen_is_dropped_and_counted_and_nothing_else_is() {
    let subject = Script::new(|asker: &mut Asker| {
        let first = asker.read("pods/a", 1);
        let second = asker.read("pods/b", 2);
        asker.read("pods/c", 1);
        // One behind at the second read cannot happen; nor can the freshest if the first was stale.
        Ok(if second == 1 || (first == 1 && second == 0) {
            let point = PointId::new("pods/b", Kind::Read, 1);
            Ending::Impossible { point, why: "the reflector is busy".to_owned() }
        } else {
            Ending::Passed
        })
    });
    let explored = block_on(Search::new().bounds(Bounds::none()).run(&subject)).unwrap();
    // (0,0,*) (0,2,*) (1,2,*)
    assert_eq!(explored.verdict.runs, 6);
    // (0,1) (1,0) (1,1)
    assert_eq!(explored.verdict.impossible, 3);
}

#[test]
fn a_sample_is_drawn_by_its_seed_and_finds_what_is_deep() {
    // Needs four stale reads of twenty: a search with the default bounds cannot find it.
    let deep = |asker: &mut Asker| {
        let told: Vec<_> = (0..20).map(|_| asker.read("pods/p", 1)).collect();
        fails_if([3, 7, 11, 15].iter().all(|at| told[*at] > 0))
    };
    let find = |sample: Sample| {
        let subject = Script::new(deep);
        let explored = block_on(sample.run(&subject)).unwrap();
        let tokens: Vec<Token> = explored.failures.iter().map(|f| f.token()).collect();
        (tokens, explored.verdict)
    };
    let (first, verdict) = find(Sample::uniform(5, 500));
    assert_eq!(first.len(), 1);
    assert_eq!(verdict.completeness, Completeness::NotExhausted { by: Ended::Failure });
    assert_eq!(find(Sample::uniform(5, 500)).0, first, "the same seed");
    assert_ne!(find(Sample::uniform(6, 500)).0, first, "another seed");
    let (shallow, verdict) = find(Sample::pct(5, 300, 3).keep_going());
    assert!(shallow.is_empty(), "three deviations do not suffice");
    let by = Ended::Sampled { seed: 5 };
    assert_eq!(verdict.completeness, Completeness::NotExhausted { by });
    let (pct, _) = find(Sample::pct(5, 20_000, 4).parallel(4));
    assert_eq!(pct[0].choices().len(), 4);
}

#[test]
fn kept_tokens_are_tried_first_and_those_that_no_longer_fit_are_told() {
    let tokens = || {
        ["pods/gone@r1:-1", "pods/p@r1:-1", "pods/p@r2:-2,pods/p@r4:-1"].map(|t| t.parse().unwrap())
    };
    let subject = Script::new(two_stale);
    let explored = block_on(Search::new().first(tokens()).run(&subject)).unwrap();
    assert_eq!((explored.verdict.runs, explored.failures.len()), (0, 1));
    assert_eq!((explored.failures[0].number, subject.runs()), (0, 4));
    assert_eq!(explored.out_of_date[0].token.to_string(), "pods/gone@r1:-1");
    let by = Ended::Failure;
    assert_eq!(explored.verdict.completeness, Completeness::NotExhausted { by });

    // Of a search in parts the first part replays; with nothing to find there the search goes on.
    let second = Search::new().first(tokens()).shard("2/2".parse().unwrap());
    let explored = block_on(second.run(&Script::new(two_stale))).unwrap();
    assert!(explored.out_of_date.is_empty() && explored.failures[0].number > 0);
    let whole = Search::new().first(["pods/p@r1:-1".parse().unwrap()]).bounds(bounded(1));
    let explored = block_on(whole.run(&Script::new(two_stale))).unwrap();
    assert_eq!(explored.verdict.completeness, exhausted(&[Bound::StaleReads(1)]));
}

#[test]
fn who_watches_is_told_of_every_run() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let others = Arc::new(Mutex::new(0));
    let (seeing, counting) = (Arc::clone(&seen), Arc::clone(&others));
    let search = Search::new()
        .clock(|| Duration::from_secs(2))
        .observe(move |progress| seeing.lock().unwrap().push(*progress))
        .observe(move |_| *counting.lock().unwrap() += 1);
    // The last of them, with both reads stale, fails.
    let subject = Script::new(|asker: &mut Asker| {
        let stale = asker.read("pods/p", 1) + asker.read("pods/q", 1);
        fails_if(stale == 2)
    });
    let explored = block_on(search.run(&subject)).unwrap();
    let seen = seen.lock().unwrap();
    let told: Vec<_> = seen
        .iter()
        .map(|progress| (progress.runs, progress.left, progress.level, progress.failures))
        .collect();
    assert_eq!(told, [(1, 2, 0, 0), (2, 2, 1, 0), (3, 1, 1, 0), (4, 0, 2, 1)]);
    assert_eq!(*others.lock().unwrap(), 4);
    assert_eq!(explored.verdict.failures, 1);
    // The clock stands still, and so does the time since the start.
    assert_eq!((seen[3].elapsed, seen[3].runs_per_second()), (Duration::ZERO, None));
}

#[test]
fn with_several_under_way_none_is_forgotten() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seeing = Arc::clone(&seen);
    let search =
        Search::new().parallel(4).observe(move |progress| seeing.lock().unwrap().push(*progress));
    let explored = block_on(search.run(&Script::new(grid(6, 2)))).unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len() as u64, explored.verdict.runs);
    assert!(seen.iter().any(|progress| progress.under_way == 3), "{seen:?}");
    let last = seen.last().unwrap();
    assert_eq!((last.left, last.under_way, last.runs), (0, 0, explored.verdict.runs));
}

#[test]
fn as_many_records_are_kept_as_asked_for_and_all_are_counted() {
    let search = Search::new().keep_going().keep_passed(2).keep_failures(1);
    let subject = || Script::new(|asker: &mut Asker| fails_if(asker.read("pods/p", 6) % 2 == 1));
    let explored = block_on(search.run(&subject())).unwrap();
    assert_eq!((explored.verdict.runs, explored.verdict.failures), (7, 3));
    let kept: Vec<_> = explored.passed.iter().map(|run| (run.number, run.token())).collect();
    let token = |text: &str| text.parse::<Token>().unwrap();
    assert_eq!(kept, [(1, Token::default()), (3, token("pods/p@r1:-2"))]);
    let failed: Vec<_> = explored.failures.iter().map(|run| run.number).collect();
    assert_eq!(failed, [2]);
    let baseline = explored.baseline.unwrap();
    assert_eq!((baseline.len(), baseline[0].point.menu().len()), (1, 7));
    let explored = block_on(Search::new().keep_going().run(&subject())).unwrap();
    assert_eq!((explored.passed.len(), explored.failures.len()), (0, 3));
}
