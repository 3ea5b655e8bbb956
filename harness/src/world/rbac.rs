//! Which access reviews tell that the API server's authorizer has seen all of a world's RBAC.
//!
//! The authorizer answers from two caches of its own, of roles and of bindings, each of which
//! follows its own stream. No list shows how far they are; only their answers do. So the answers
//! are computed for each pair of positions, and as few questions are chosen as tell the last pair
//! from all others that would answer anything otherwise.

use std::collections::{BTreeMap, BTreeSet};

use super::value::{Message, object};

/// One question to the authorizer: may this subject do that in the namespace.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Question {
    pub(super) subject: Subject,
    pub(super) verb: String,
    pub(super) group: String,
    pub(super) resource: String,
    pub(super) name: Option<String>,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Subject {
    User(String),
    Group(String),
}

/// What a role allows.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) verbs: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) resources: Vec<String>,
    pub(super) names: Vec<String>,
}

/// Who has which role.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    subjects: Vec<Subject>,
    pub(super) role: RoleRef,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum RoleRef {
    Role(String),
    ClusterRole(String),
}

/// The changes of one resource: names, and what they are from then on; `None` once deleted.
pub(super) type Changes<T> = Vec<(String, Option<T>)>;

impl Rule {
    /// The rules of a stored Role. Field numbers: k8s.io/api: rbac/v1/generated.proto.
    pub(super) fn of_role(value: &[u8]) -> Vec<Self> {
        let rules = object(value).into_iter().flat_map(|role| role.all(2));
        let rules = rules.map(Message::new).map(|rule| {
            let texts = |number| rule.texts(number).map(str::to_owned).collect();
            Self { verbs: texts(1), groups: texts(2), resources: texts(3), names: texts(4) }
        });
        rules.collect()
    }

    /// RBAC's own reading: k8s.io/kubernetes: pkg/apis/rbac/v1/evaluation_helpers.go.
    fn allows(&self, question: &Question) -> bool {
        let any = |all: &[String], one: &String| all.iter().any(|it| it == "*" || it == one);
        let subresource = question.resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
        any(&self.verbs, &question.verb)
            && any(&self.groups, &question.group)
            && (any(&self.resources, &question.resource)
                || subresource.is_some_and(|sub| self.resources.contains(&sub)))
            && (self.names.is_empty()
                || question.name.as_ref().is_some_and(|name| self.names.contains(name)))
    }

    fn questions(&self, subject: &Subject) -> Vec<Question> {
        let names: Vec<_> = match self.names.is_empty() {
            true => vec![None],
            false => self.names.iter().cloned().map(Some).collect(),
        };
        let mut questions = Vec::new();
        for verb in &self.verbs {
            for group in &self.groups {
                for resource in &self.resources {
                    questions.extend(names.iter().map(|name| Question {
                        subject: subject.clone(),
                        verb: verb.clone(),
                        group: group.clone(),
                        resource: resource.clone(),
                        name: name.clone(),
                    }));
                }
            }
        }
        questions
    }
}

impl Binding {
    /// A stored RoleBinding.
    pub(super) fn of_stored(value: &[u8]) -> Option<Self> {
        let binding = object(value)?;
        let role = binding.message(3)?;
        let name = role.text(3)?.to_owned();
        let role = match role.text(2)? {
            "ClusterRole" => RoleRef::ClusterRole(name),
            _ => RoleRef::Role(name),
        };
        let subjects = binding.all(2).map(Message::new).filter_map(|subject| {
            let name = subject.text(3)?;
            Some(match subject.text(1)? {
                "Group" => Subject::Group(name.to_owned()),
                // Its user name, which is what the authorizer compares.
                "ServiceAccount" => {
                    let namespace = subject.text(4).unwrap_or_default();
                    Subject::User(format!("system:serviceaccount:{namespace}:{name}"))
                }
                _ => Subject::User(name.to_owned()),
            })
        });
        Some(Self { subjects: subjects.collect(), role })
    }
}

/// As few questions as tell the end of both histories from everything before, each with the answer
/// that it has at the end.
pub(super) fn telling(
    roles: &Changes<Vec<Rule>>,
    bindings: &Changes<Binding>,
    cluster_roles: &BTreeMap<String, Vec<Rule>>,
) -> Vec<(Question, bool)> {
    let role_states = states(roles);
    let binding_states = states(bindings);
    let rules = |roles: &BTreeMap<String, Vec<Rule>>, binding: &Binding| match &binding.role {
        RoleRef::Role(name) => roles.get(name).cloned().unwrap_or_default(),
        RoleRef::ClusterRole(name) => cluster_roles.get(name).cloned().unwrap_or_default(),
    };
    let mut questions = BTreeSet::new();
    let all_roles = roles.iter().filter_map(|(name, rules)| Some((name, rules.as_ref()?)));
    for (_, binding) in bindings {
        let Some(binding) = binding else { continue };
        let versions = match &binding.role {
            RoleRef::Role(role) => {
                all_roles.clone().filter(|(name, _)| *name == role).map(|it| it.1).collect()
            }
            RoleRef::ClusterRole(role) => Vec::from_iter(cluster_roles.get(role)),
        };
        for rule in versions.into_iter().flatten() {
            questions.extend(binding.subjects.iter().flat_map(|subject| rule.questions(subject)));
        }
    }
    let questions = Vec::from_iter(questions);
    let answers = |roles: &_, bindings: &BTreeMap<String, Binding>| -> Vec<bool> {
        let grants = bindings.values().map(|binding| (&binding.subjects, rules(roles, binding)));
        let grants = Vec::from_iter(grants);
        let allowed = |question: &Question| {
            grants.iter().any(|(subjects, rules)| {
                subjects.contains(&question.subject) && rules.iter().any(|it| it.allows(question))
            })
        };
        questions.iter().map(allowed).collect()
    };
    let (Some(last_roles), Some(last_bindings)) = (role_states.last(), binding_states.last())
    else {
        return Vec::new();
    };
    let end = answers(last_roles, last_bindings);
    let mut open: BTreeSet<Vec<bool>> = BTreeSet::new();
    for roles in &role_states {
        open.extend(binding_states.iter().map(|bindings| answers(roles, bindings)));
    }
    open.remove(&end);

    let mut chosen = Vec::new();
    while !open.is_empty() {
        let tells = |&index: &usize| open.iter().filter(|it| it[index] != end[index]).count();
        // Each of those that are open differs from the end somewhere.
        let Some(best) = (0..questions.len()).max_by_key(tells) else { break };
        open.retain(|it| it[best] == end[best]);
        chosen.push((questions[best].clone(), end[best]));
    }
    chosen
}

/// What there was after each number of changes, none included.
fn states<T: Clone>(changes: &Changes<T>) -> Vec<BTreeMap<String, T>> {
    let mut states = vec![BTreeMap::new()];
    let mut state = BTreeMap::new();
    for (name, value) in changes {
        match value {
            Some(value) => drop(state.insert(name.clone(), value.clone())),
            None => drop(state.remove(name)),
        }
        states.push(state.clone());
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], resources: &[&str]) -> Rule {
        let texts = |texts: &[&str]| texts.iter().map(|&it| it.to_owned()).collect();
        let (verbs, resources) = (texts(verbs), texts(resources));
        Rule { verbs, groups: vec![String::new()], resources, names: Vec::new() }
    }

    fn binding(user: &str, role: &str) -> Option<Binding> {
        let subjects = vec![Subject::User(user.to_owned())];
        Some(Binding { subjects, role: RoleRef::Role(role.to_owned()) })
    }

    fn asked(roles: &Changes<Vec<Rule>>, bindings: &Changes<Binding>) -> Vec<(String, bool)> {
        let chosen = telling(roles, bindings, &BTreeMap::new());
        let text = |question: Question| format!("{} {}", question.verb, question.resource);
        chosen.into_iter().map(|(question, answer)| (text(question), answer)).collect()
    }

    #[test]
    fn one_question_tells_that_one_role_is_bound() {
        let roles = vec![("r".to_owned(), Some(vec![rule(&["get", "list"], &["pods"])]))];
        let bindings = vec![("b".to_owned(), binding("u", "r"))];
        assert_eq!(asked(&roles, &bindings).len(), 1);
    }

    #[test]
    fn what_a_role_lost_is_asked_for_too() {
        let roles = vec![
            ("r".to_owned(), Some(vec![rule(&["get", "delete"], &["pods"])])),
            ("r".to_owned(), Some(vec![rule(&["get"], &["pods"])])),
        ];
        let bindings = vec![("b".to_owned(), binding("u", "r"))];
        let asked = asked(&roles, &bindings);
        assert!(asked.contains(&("delete pods".to_owned(), false)), "{asked:?}");
        assert!(asked.contains(&("get pods".to_owned(), true)), "{asked:?}");
    }

    #[test]
    fn what_a_wildcard_still_allows_is_not_taken_for_lost() {
        let roles = vec![
            ("r".to_owned(), Some(vec![rule(&["get"], &["pods", "pods/log"])])),
            ("r".to_owned(), Some(vec![rule(&["*"], &["*"])])),
        ];
        let bindings = vec![("b".to_owned(), binding("u", "r"))];
        let asked = asked(&roles, &bindings);
        assert_eq!(asked, [("* *".to_owned(), true)]);
    }

    #[test]
    fn nothing_is_asked_where_no_answer_depends_on_it() {
        let roles = vec![("unbound".to_owned(), Some(vec![rule(&["get"], &["pods"])]))];
        assert!(asked(&roles, &vec![("b".to_owned(), binding("u", "missing"))]).is_empty());
        assert!(asked(&Vec::new(), &Vec::new()).is_empty());
    }
}
