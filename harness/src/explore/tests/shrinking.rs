//! Shrinking and replay.

use futures::executor::block_on;

use super::script::{Asker, Broken, Script, fails_if};
use crate::{
    explore::{
        Choices, Ending, Failure, ReplayError, Search, Shrink, Shrunk, Subject, Token,
        random::Random, replay,
    },
    lag::model::{Bounds, Needs},
};

/// The failing run with these choices.
fn failing<S: Subject<Record = ()>>(subject: &S, token: &str) -> Failure<()> {
    block_on(replay(subject, &token.parse().unwrap())).unwrap().expect("it fails")
}

fn shrink(script: impl Fn(&mut Asker) -> Result<Ending, Broken> + Sync, token: &str) -> Shrunk<()> {
    let subject = Script::new(script);
    let failure = failing(&subject, token);
    let shrunk = block_on(Shrink::new().run(&subject, failure)).unwrap();
    assert_eq!(subject.runs() as u64, shrunk.runs + 1);
    shrunk
}

/// Ten reads with three older answers each, an actor before each of them.
fn reads_and_steps(asker: &mut Asker) -> (Vec<u32>, Vec<bool>) {
    (0..10)
        .map(|_| (asker.commits("kubelet"), asker.read("pods/p", 3)))
        .map(|(c, r)| (r, c))
        .unzip()
}

const MANY: &str = "kubelet@e1..e8:commit,pods/p@r1..r9:-3";

#[test]
fn what_is_left_is_exactly_what_is_needed() {
    let shrunk = shrink(
        |asker| {
            let (reads, steps) = reads_and_steps(asker);
            fails_if(reads[1] >= 2 && reads[6] >= 1 && steps[4])
        },
        MANY,
    );
    assert_eq!(shrunk.failure.token().to_string(), "pods/p@r2:-2,kubelet@e5:commit,pods/p@r7:-1");
    assert_eq!(shrunk.needs, Needs::Staleness);
    assert!(shrunk.minimal);
    assert!(shrunk.runs < 100, "{}", shrunk.runs);
}

#[test]
fn a_failure_that_needs_nothing_stale_is_told_apart() {
    let everything = shrink(|asker| fails_if(!reads_and_steps(asker).0.is_empty()), MANY);
    assert_eq!(everything.needs, Needs::Nothing);
    assert!(everything.failure.token().is_fresh());
    assert_eq!(everything.runs, 1);

    let steps_alone = shrink(
        |asker| {
            let (_, steps) = reads_and_steps(asker);
            fails_if(steps[2] && steps[3])
        },
        MANY,
    );
    assert_eq!(steps_alone.needs, Needs::Environment);
    assert_eq!(steps_alone.failure.token().to_string(), "kubelet@e3..e4:commit");
}

#[test]
fn choices_whose_points_vanish_with_others_fall_away() {
    // Only a stale first read leads to the second part.
    let shrunk = shrink(
        |asker| {
            let mut last = 0;
            if asker.read("pods/a", 2) > 0 {
                last = (0..5).map(|_| asker.read("pods/b", 2)).fold(0, |_, read| read);
            }
            fails_if(last > 0 || asker.read("pods/c", 1) > 0)
        },
        "pods/a@r1:-2,pods/b@r1..r5:-2",
    );
    assert_eq!(shrunk.failure.token().to_string(), "pods/a@r1:-1,pods/b@r5:-1");
}

#[test]
fn another_failure_on_the_way_is_told_and_not_taken() {
    let shrunk = shrink(
        |asker| {
            let (reads, _) = reads_and_steps(asker);
            Ok(match (reads[0] > 0, reads[1] > 0) {
                (true, true) => Ending::failed("first", ""),
                (true, false) => Ending::failed("second", ""),
                _ => Ending::Passed,
            })
        },
        "pods/p@r1..r2:-1",
    );
    assert_eq!(shrunk.failure.oracle(), "first");
    assert_eq!(shrunk.failure.token().to_string(), "pods/p@r1..r2:-1");
    let (oracle, token) = &shrunk.others[0];
    assert_eq!((oracle.as_str(), token.to_string().as_str()), ("second", "pods/p@r1:-1"));
}

#[test]
fn a_limit_on_runs_gives_what_was_reached_and_says_so() {
    let subject = Script::new(|asker: &mut Asker| {
        let (reads, _) = reads_and_steps(asker);
        fails_if(reads.iter().step_by(2).all(|read| *read > 0))
    });
    let failure = failing(&subject, "pods/p@r1..r10:-3");
    let shrunk = block_on(Shrink::new().max_runs(4).run(&subject, failure)).unwrap();
    assert_eq!((shrunk.runs, shrunk.minimal), (4, false));
    assert_eq!(shrunk.failure.oracle(), "never");
}

/// Whatever the failure is, no single choice of the result can be made fresh, and no lag can be less.
#[test]
fn results_are_minimal_for_any_failure() {
    for seed in 0..200 {
        let script = |asker: &mut Asker| {
            let (reads, steps) = reads_and_steps(asker);
            let mut random = Random::new(seed);
            // Two ways to fail, each with up to three reads and a step.
            fails_if((0..2).any(|_| {
                let reads = (0..random.below(4)).all(|_| {
                    let (at, least) = (random.below(10), 1 + random.below(3));
                    reads[at] as usize >= least
                });
                let at = random.below(10);
                let step = random.below(2) == 0 || steps[at];
                reads && step
            }))
        };
        let subject = Script::new(script);
        let Ok(Some(failure)) = block_on(replay(
            &subject,
            &"kubelet@e1..e10:commit,pods/p@r1..r10:-3".parse().unwrap(),
        )) else {
            panic!("seed {seed}: everything stale fails")
        };
        let shrunk = block_on(Shrink::new().run(&subject, failure)).unwrap();
        assert!(shrunk.minimal);
        let choices = shrunk.failure.token().choices().to_vec();
        for left_out in 0..choices.len() {
            let mut fewer = choices.clone();
            let (id, label) = fewer.remove(left_out);
            assert!(passes(&subject, fewer.clone()), "seed {seed}: {id} is not needed");
            if let Some(lag @ 2..) = label.as_str().strip_prefix('-').and_then(|l| l.parse().ok()) {
                let less = crate::lag::model::Label::new(&format!("-{}", lag - 1));
                fewer.push((id.clone(), less));
                assert!(passes(&subject, fewer), "seed {seed}: {id} needs less lag than {lag}");
            }
        }
    }
}

fn passes<S: Subject<Record = ()>>(
    subject: &S,
    choices: Vec<(crate::lag::model::PointId, crate::lag::model::Label)>,
) -> bool {
    let outcome = block_on(subject.run(Choices::named(&Token::new(choices)))).unwrap();
    outcome.ending == Ending::Passed
}

#[test]
fn a_token_fails_again_until_the_code_is_repaired_and_then_passes() {
    let broken = Script::new(|asker: &mut Asker| fails_if(asker.read("pods/p", 1) > 0));
    let token = "pods/p@r1:-1".parse().unwrap();
    assert!(block_on(replay(&broken, &token)).unwrap().is_some());
    let repaired = Script::new(|asker: &mut Asker| {
        asker.read("pods/p", 1);
        Ok(Ending::Passed)
    });
    assert!(block_on(replay(&repaired, &token)).unwrap().is_none());
}

#[test]
fn a_token_that_no_longer_fits_is_out_of_date_and_never_passed() {
    // The read is gone; or it is there and cannot be so old any more.
    let gone = Script::new(|asker: &mut Asker| {
        asker.read("pods/other", 1);
        Ok(Ending::Passed)
    });
    let error = block_on(replay(&gone, &"pods/p@r1:-1".parse().unwrap())).unwrap_err();
    assert!(matches!(error, ReplayError::OutOfDate(_)));
    assert_eq!(
        error.to_string(),
        "the token pods/p@r1:-1 is out of date, explore again to find what became of it\n  \
         pods/p@r1:-1 is not met\n  with what is left of it no oracle is violated"
    );
    let younger = Script::new(|asker: &mut Asker| fails_if(asker.read("pods/p", 1) == 0));
    let error = block_on(replay(&younger, &"pods/p@r1:-2".parse().unwrap())).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("pods/p@r1:-2 is not on the menu, pods/p@r1 {0 -1}"), "{text}");
    assert!(text.contains("\"never\" is violated all the same"), "{text}");
}

#[test]
fn what_a_search_finds_shrinks_and_replays() {
    let script = |asker: &mut Asker| {
        let (reads, steps) = reads_and_steps(asker);
        fails_if(steps[1] && !steps[2] && reads[5] >= 2)
    };
    let subject = Script::new(script);
    let bounds = Bounds { environment: None, stale_reads: Some(1), ..Bounds::none() };
    let explored = block_on(Search::new().bounds(bounds).max_runs(50_000).run(&subject)).unwrap();
    let failure = explored.failures.into_iter().next().unwrap();
    let shrunk = block_on(Shrink::new().run(&subject, failure)).unwrap();
    let token = shrunk.failure.token();
    assert_eq!(token.to_string(), "kubelet@e2:commit,pods/p@r6:-2");
    assert!(block_on(replay(&subject, &token)).unwrap().is_some());
}
