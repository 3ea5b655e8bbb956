//! The oracles about whole passes: what a pass was shown, what it did, and what was true before and after it.

use std::fmt;

use kube::Resource;
use serde::de::DeserializeOwned;

use super::user::{Claim, unreadable, words};
use crate::{
    check::{Truth, truth::resource_of},
    lag::model::{
        Action, Author, CachedRead, Commit, PassStart, RequestStep, Run, Source, Step, Verb,
    },
};

/// One pass of the process that has come to its end, as an oracle sees it.
///
/// A pass that a restart cut short is not among them.
#[derive(Clone, Copy, Debug)]
pub struct SeenPass<'a> {
    run: &'a Run,
    start: &'a PassStart,
    begun: usize,
    ended: usize,
    before: &'a Truth,
    after: &'a Truth,
}

impl<'a> SeenPass<'a> {
    /// Which pass of its run, from 1.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.start.pass
    }

    /// For which key.
    #[must_use]
    pub fn key(&self) -> &'a str {
        &self.start.key
    }

    /// What was true when it began.
    #[must_use]
    pub fn before(&self) -> &'a Truth {
        self.before
    }

    /// What was true when it had ended.
    #[must_use]
    pub fn after(&self) -> &'a Truth {
        self.after
    }

    /// Its requests, in the order in which they were answered.
    pub fn requests(&self) -> impl Iterator<Item = &'a RequestStep> {
        self.steps().filter_map(|step| match &step.action {
            Action::Request(request) => Some(&**request),
            _ => None,
        })
    }

    /// Its reads of wrapped caches. A flipped live read is none of them.
    pub fn reads(&self) -> impl Iterator<Item = &'a CachedRead> {
        self.steps().filter_map(|step| match &step.action {
            Action::Read(read) => Some(read),
            _ => None,
        })
    }

    /// The objects of this kind that its live reads found, each as it was then, in the order of the answers.
    ///
    /// What was so in the middle of a pass may be neither before nor after it: a pass that acts on what it read is judged
    /// by this. An answer of a flipped read is none, and neither is one of the server's watch cache (`resourceVersion=0`).
    #[must_use]
    pub fn read_live<K>(&self) -> Vec<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let resource = resource_of::<K>();
        self.before.look(&resource);
        let live = self.requests().filter(|request| {
            request.source == Source::Live && matches!(request.request.verb, Verb::Get | Verb::List)
        });
        let found = live
            .flat_map(|request| &request.reply)
            .filter_map(|seen| self.run.change_to(&resource, &seen.key, &seen.resource_version));
        found.filter_map(|commit| self.before.of_change(commit)).collect()
    }

    /// Whether a wrapped cache showed it an object of this kind, or the lack of one, as it no longer was.
    #[must_use]
    pub fn was_shown_old<K: Resource<DynamicType = ()>>(&self) -> bool {
        let resource = resource_of::<K>();
        let streams = &self.run.streams;
        self.reads().filter(|read| read.stale).any(|read| {
            let stream = streams.get(read.stream);
            stream.is_some_and(|stream| stream.identity.qualified_resource() == resource)
        })
    }

    /// Whether somebody else changed something while it went on, or something was made to fail.
    #[must_use]
    pub fn was_disturbed(&self) -> bool {
        let within = |commit: &&Commit| {
            commit.step.is_some_and(|step| (self.begun + 1..=self.ended).contains(&step))
        };
        let own = |commit: &Commit| match commit.by {
            Author::Request(number) => {
                self.requests().any(|request| request.request.number == number)
            }
            _ => false,
        };
        let faults = &self.run.steps[self.begun..=self.ended];
        faults.iter().any(|step| matches!(step.action, Action::Fault(_)))
            || self.run.history.iter().filter(within).any(|commit| !own(commit))
    }

    fn steps(&self) -> impl Iterator<Item = &'a Step> {
        let (number, steps) = (self.start.pass, &self.run.steps[self.begun..=self.ended]);
        steps.iter().filter(move |step| step.pass == Some(number))
    }
}

/// Answers what is wrong with a pass.
type OfPass = Box<dyn Fn(&SeenPass<'_>) -> Option<String> + Send + Sync>;

/// An oracle about passes.
pub(super) struct AboutPass {
    name: String,
    check: OfPass,
}

impl AboutPass {
    pub(super) fn new<C: Claim>(
        name: String,
        check: impl Fn(&SeenPass<'_>) -> C + Send + Sync + 'static,
    ) -> Self {
        Self { name, check: Box::new(move |pass| check(pass).broken()) }
    }

    fn ask(&self, pass: &SeenPass<'_>) -> Option<String> {
        let said = (self.check)(pass);
        unreadable(pass.before).or_else(|| unreadable(pass.after)).or_else(|| {
            said.map(|text| words(text, "it is not so", &format!("of pass {}", pass.number())))
        })
    }
}

impl fmt::Debug for AboutPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// The passes under way on the walk through a run.
#[derive(Default)]
pub(super) struct UnderWay<'a>(Vec<(&'a PassStart, usize, Truth)>);

impl<'a> UnderWay<'a> {
    /// Takes in the next step, after which `truth` holds. What is wrong with the pass that ends with it, and by which
    /// oracle.
    pub(super) fn take(
        &mut self,
        oracles: &[AboutPass],
        run: &'a Run,
        index: usize,
        truth: &Truth,
    ) -> Option<(String, String)> {
        if oracles.is_empty() {
            return None;
        }
        match &run.steps.get(index)?.action {
            Action::PassStart(start) => {
                self.0.push((start, index, truth.clone()));
                None
            }
            Action::PassEnd { pass, .. } => {
                let at = self.0.iter().position(|(start, ..)| start.pass == *pass)?;
                let (start, begun, before) = self.0.swap_remove(at);
                let seen =
                    SeenPass { run, start, begun, ended: index, before: &before, after: truth };
                oracles.iter().find_map(|oracle| Some((oracle.name.clone(), oracle.ask(&seen)?)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::StatefulSet;
    use serde_json::{Value, json};

    use super::{
        super::{
            BuiltIn, End, Oracles, judge,
            testing::{PODS, SETS, Script},
        },
        *,
    };
    use crate::lag::model::{PatchType, Role, Verb, check};

    fn set(replicas: u32) -> Value {
        json!({"spec": {"replicas": replicas}})
    }

    /// Two passes on a cache that shows the set as it was at first: one sets it to 3, one only looks.
    fn passes() -> Script {
        let raise = Verb::Patch(PatchType::Merge);
        Script::new()
            .given(SETS, "n0", set(1))
            .stream(SETS, Role::Store)
            .pass("n0")
            .read(0, "n0", 0)
            .write(raise, SETS, "n0", json!({"spec": {"replicas": 3}}), Some(set(3)))
            .pass("n0")
            .read(0, "n0", 0)
            .get(PODS, "web-0")
    }

    fn judged<C: Claim>(
        script: Script,
        check_pass: impl Fn(&SeenPass<'_>) -> C + Send + Sync + 'static,
    ) -> Option<(usize, String)> {
        let mut oracles = Oracles::new();
        BuiltIn::ALL.into_iter().for_each(|other| {
            oracles.without(other);
        });
        let mut run = script.finish();
        let violation = judge(&mut run, oracles.each_pass("passes", check_pass), End::Settled)?;
        check(&run).unwrap();
        assert_eq!(violation.oracle, "passes");
        Some((run.violations().next().unwrap().0, violation.text))
    }

    fn replicas(truth: &Truth) -> u64 {
        truth.value(SETS, "n0").unwrap()["spec"]["replicas"].as_u64().unwrap()
    }

    #[test]
    fn a_pass_is_judged_when_it_has_ended_with_the_state_before_and_after_it() {
        let change = |pass: &SeenPass<'_>| (replicas(pass.before()), replicas(pass.after()));
        let found = judged(passes().end(), move |pass| change(pass) != (1, 3));
        assert_eq!(found, Some((6, "it is not so of pass 1".to_owned())), "behind its last step");
        let found = judged(passes().end(), move |pass| change(pass) != (3, 3));
        assert_eq!(found, Some((10, "it is not so of pass 2".to_owned())));
        assert_eq!(judged(passes(), |pass| pass.number() == 1), None, "the second has not ended");
        let words = |pass: &SeenPass<'_>| Err::<(), _>(format!("{} again", pass.key()));
        assert_eq!(judged(passes().end(), words).unwrap().1, "n0 again");
    }

    #[test]
    fn a_pass_has_its_own_requests_and_reads() {
        let one_of_each = |pass: &SeenPass<'_>| pass.requests().count() == pass.reads().count();
        assert_eq!(judged(passes().end(), one_of_each), None);
        let writes = |pass: &SeenPass<'_>| {
            pass.requests().all(|request| request.request.verb.is_write() == (pass.number() == 1))
        };
        assert_eq!(judged(passes().end(), writes), None);
    }

    #[test]
    fn an_old_answer_of_a_cache_is_told_by_its_kind() {
        let old = |pass: &SeenPass<'_>| pass.was_shown_old::<StatefulSet>();
        assert_eq!(judged(passes().end(), move |pass| old(pass) == (pass.number() == 2)), None);
        let other =
            |pass: &SeenPass<'_>| !pass.was_shown_old::<k8s_openapi::api::core::v1::ConfigMap>();
        assert_eq!(judged(passes().end(), other), None);
    }

    #[test]
    fn a_live_read_found_what_is_neither_before_nor_after_the_pass() {
        let seen = |pass: &SeenPass<'_>| {
            let found = pass.read_live::<StatefulSet>().into_iter();
            found.map(|set| set.spec.replicas.unwrap()).collect::<Vec<_>>()
        };
        let complete = |replicas: u32| {
            let pod = json!({"metadata": {}});
            json!({"spec": {
                "replicas": replicas, "selector": {}, "serviceName": "x", "template": pod,
            }})
        };
        let script = || {
            let script = Script::new().given(SETS, "n0", complete(1)).stream(SETS, Role::Store);
            let script = script.pass("n0").get(SETS, "n0").get(PODS, "n0");
            let script = script.actor("user", SETS, "n0", Some(complete(2))).get(SETS, "n0");
            script.actor("user", SETS, "n0", Some(complete(3)))
        };
        assert_eq!(judged(script().end(), move |pass| seen(pass) == [1, 2]), None);
        let script = script().pass("n0").get(SETS, "n0");
        let script = script.but(|read| read.source = Source::Unobserved).get(PODS, "n0").end();
        assert_eq!(judged(script, move |pass| pass.number() == 1 || seen(pass).is_empty()), None);
    }

    #[test]
    fn what_others_do_in_between_disturbs_and_its_own_writes_do_not() {
        let undisturbed = |pass: &SeenPass<'_>| !pass.was_disturbed();
        assert_eq!(judged(passes().end(), undisturbed), None);
        let within = passes().actor("user", SETS, "n0", Some(set(4))).end();
        assert!(judged(within, undisturbed).is_some());
        let behind = passes().end().actor("user", SETS, "n0", Some(set(4)));
        assert_eq!(judged(behind, undisturbed), None);
    }
}
