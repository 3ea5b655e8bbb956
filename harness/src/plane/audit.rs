//! The audit log of the API server: which events it is to have, and reading them.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which requests the API server notes in its audit log, and how much of each.
///
/// # Example
///
/// ```
/// use laggard::plane::{AuditLevel, AuditPolicy};
///
/// let everything = AuditPolicy::all(AuditLevel::Metadata);
/// let pods: AuditPolicy = "
/// apiVersion: audit.k8s.io/v1
/// kind: Policy
/// omitStages: [RequestReceived]
/// rules:
/// - level: Request
///   resources: [{ group: '', resources: [pods] }]
/// - level: None
/// "
/// .parse()?;
/// assert_ne!(everything, pods);
/// # Ok::<(), laggard::plane::AuditPolicyError>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuditPolicy(Policy);

/// How much of a request the audit log has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum AuditLevel {
    /// Nothing.
    None,
    /// Who asked for what, when, and how it ended.
    Metadata,
    /// And the body of the request.
    Request,
    /// And that of the reply.
    RequestResponse,
}

/// When an audit event was noted.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum AuditStage {
    /// Before the request is handled: it is in the log when the reply comes.
    RequestReceived,
    /// When the head of the reply was sent and the body was not; of watches alone.
    ResponseStarted,
    /// When the reply was sent: it may be in the log a moment after the reply has come.
    ResponseComplete,
    /// When the server panicked.
    Panic,
}

/// A text that is no audit policy.
#[derive(Debug, thiserror::Error)]
#[error(
    "this is no audit policy: {problem}; write a `Policy` of `audit.k8s.io/v1`, in YAML or JSON"
)]
pub struct AuditPolicyError {
    problem: String,
}

impl AuditPolicy {
    /// All requests, at one level.
    #[must_use]
    pub fn all(level: AuditLevel) -> Self {
        Self(Policy {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            metadata: None,
            rules: vec![Rule { level, ..Rule::none() }],
            omit_stages: Vec::new(),
            omit_managed_fields: false,
        })
    }

    /// As the API server reads it.
    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(&self.0).expect("a policy is strings, flags and lists of them")
    }
}

impl FromStr for AuditPolicy {
    type Err = AuditPolicyError;

    /// Reads YAML or JSON. Stricter than the API server, which passes over fields it does not know.
    fn from_str(text: &str) -> Result<Self, AuditPolicyError> {
        let policy: Policy = serde_saphyr::from_str(text)
            .map_err(|error| AuditPolicyError { problem: error.to_string() })?;
        policy.check().map_err(|problem| AuditPolicyError { problem })?;
        Ok(Self(policy))
    }
}

const API_VERSION: &str = "audit.k8s.io/v1";
const KIND: &str = "Policy";

/// Source: `k8s.io/apiserver`, `pkg/apis/audit/v1/types.go`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Policy {
    api_version: String,
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<serde_json::Value>,
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<AuditStage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: AuditLevel,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<AuditStage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

impl Policy {
    /// What the API server would refuse, by the place where it is.
    ///
    /// Source: `k8s.io/apiserver`, `pkg/apis/audit/validation/validation.go`.
    fn check(&self) -> Result<(), String> {
        let Self { api_version, kind, rules, .. } = self;
        if api_version != API_VERSION || kind != KIND {
            return Err(format!("it is a {kind:?} of {api_version:?}"));
        }
        if rules.is_empty() {
            return Err("it has no rules".to_owned());
        }
        for (index, rule) in rules.iter().enumerate() {
            rule.check().map_err(|problem| format!("rules[{index}]{problem}"))?;
        }
        Ok(())
    }
}

impl Rule {
    fn none() -> Self {
        Self {
            level: AuditLevel::None,
            users: Vec::new(),
            user_groups: Vec::new(),
            verbs: Vec::new(),
            resources: Vec::new(),
            namespaces: Vec::new(),
            non_resource_urls: Vec::new(),
            omit_stages: Vec::new(),
            omit_managed_fields: None,
        }
    }

    fn check(&self) -> Result<(), String> {
        let about_resources = self.resources.len() + self.namespaces.len() > 0;
        if about_resources && !self.non_resource_urls.is_empty() {
            return Err(" has nonResourceURLs beside resources or namespaces".to_owned());
        }
        for url in self.non_resource_urls.iter().filter(|url| *url != "*") {
            if !url.starts_with('/') || url[..url.len() - 1].contains('*') {
                return Err(format!(
                    ".nonResourceURLs has {url:?}, which does not begin with / or has a * before \
                     its end"
                ));
            }
        }
        for resources in &self.resources {
            if resources.group.contains('/') {
                return Err(format!(
                    ".resources has the group {:?}; leave out the version",
                    resources.group
                ));
            }
            if !resources.resource_names.is_empty() && resources.resources.is_empty() {
                return Err(".resources has resourceNames without resources".to_owned());
            }
        }
        Ok(())
    }
}

/// One line of the audit log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AuditEvent {
    /// The same for all events of one request.
    pub id: String,
    /// When it was noted.
    pub stage: AuditStage,
    /// What was asked for: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, …
    pub verb: String,
    /// Who asked.
    pub user: String,
    /// The path and the query of the request.
    pub uri: String,
    /// The plural name of the resource, if it was about one, without its group.
    pub resource: Option<String>,
    /// The namespace, if there was one.
    pub namespace: Option<String>,
    /// The object's name, if it had one when the event was noted.
    pub name: Option<String>,
    /// The status of the reply, once there was one.
    pub code: Option<u16>,
    /// The whole event, as `audit.k8s.io/v1` defines it.
    pub raw: serde_json::Value,
}

/// The events of a log; a last line that is still being written is none yet.
pub(crate) fn events(log: &str) -> Result<Vec<AuditEvent>, serde_json::Error> {
    let complete = log.rfind('\n').map_or("", |end| &log[..end]);
    complete.lines().filter(|line| !line.is_empty()).map(event).collect()
}

fn event(line: &str) -> Result<AuditEvent, serde_json::Error> {
    let raw: serde_json::Value = serde_json::from_str(line)?;
    let text = |pointer: &str| Some(raw.pointer(pointer)?.as_str()?.to_owned());
    Ok(AuditEvent {
        id: text("/auditID").unwrap_or_default(),
        stage: AuditStage::deserialize(&raw["stage"])?,
        verb: text("/verb").unwrap_or_default(),
        user: text("/user/username").unwrap_or_default(),
        uri: text("/requestURI").unwrap_or_default(),
        resource: text("/objectRef/resource"),
        namespace: text("/objectRef/namespace"),
        name: text("/objectRef/name"),
        code: raw.pointer("/responseStatus/code").and_then(|code| code.as_u64()?.try_into().ok()),
        raw,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_policy_is_written_as_it_was_read() {
        let text = r"
            apiVersion: audit.k8s.io/v1
            kind: Policy
            rules:
            - level: RequestResponse
              nonResourceURLs: ['/healthz*']
              omitStages: [RequestReceived]
            - { level: None, resources: [{ resources: [pods/log], resourceNames: [a] }] }
        ";
        let policy: AuditPolicy = text.parse().unwrap();
        assert_eq!(policy.to_text().parse::<AuditPolicy>().unwrap(), policy);
        assert!(policy.to_text().contains(r#""nonResourceURLs":["/healthz*"]"#));
    }

    #[rstest]
    #[case("rules: [{ level: Metadate }]", "Metadate")]
    #[case("rules: [{ level: Metadata, verb: [get] }]", "verb")]
    #[case("rules: [{ verbs: [get] }]", "level")]
    #[case("rules: []", "no rules")]
    #[case("omitStages: [Never]\nrules: [{ level: None }]", "Never")]
    #[case("rules: [{ level: None, nonResourceURLs: [healthz] }]", "rules[0].nonResourceURLs")]
    #[case("rules: [{ level: None, nonResourceURLs: [/a], namespaces: [b] }]", "rules[0] has")]
    #[case(
        "rules: [{ level: None }, { level: None, resources: [{ group: apps/v1 }] }]",
        "rules[1]"
    )]
    fn what_is_no_policy_is_refused_with_the_place(#[case] body: &str, #[case] named: &str) {
        let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{body}\n");
        let error = text.parse::<AuditPolicy>().unwrap_err().to_string();
        assert!(error.contains("no audit policy") && error.contains(named), "{error}");
    }

    #[test]
    fn another_kind_is_no_policy() {
        let text = "apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{ level: None }]";
        let error = text.parse::<AuditPolicy>().unwrap_err().to_string();
        assert!(error.contains("audit.k8s.io/v1beta1"), "{error}");
    }

    #[test]
    fn a_line_that_is_being_written_is_no_event_yet() {
        let line = r#"{"auditID":"1","stage":"ResponseComplete","verb":"get","responseStatus":{"code":404}}"#;
        assert!(events(&line[..20]).unwrap().is_empty());
        let log = format!("{line}\n{}", &line[..20]);
        let read = events(&log).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].stage, read[0].code), (AuditStage::ResponseComplete, Some(404)));
        assert!(events("no json\n").is_err());
    }
}
