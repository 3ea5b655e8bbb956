//! Settings with methods of their own, and the flags that they become.

use std::collections::BTreeMap;

use super::audit::AuditPolicy;
use super::builder::PlaneBuilder;
use super::error::StartErrorKind;
use super::flags::Flags;

/// What the methods here have set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Named {
    gates: BTreeMap<String, bool>,
    apis: BTreeMap<String, bool>,
    plugins: BTreeMap<String, bool>,
    log_level: Option<u8>,
    pub(crate) audit: Option<AuditPolicy>,
    pub(crate) attach_output: Option<bool>,
}

/// The file with the audit policy, among those of a plane.
pub(crate) const AUDIT_POLICY: &str = "audit-policy.json";

impl PlaneBuilder {
    /// Turns a feature gate on or off, in the API server and in the controller-manager, if there is
    /// one: both know the same. `AllAlpha` and `AllBeta` are gates too. Default: the servers' own.
    ///
    /// A gate that this version does not know fails the start with
    /// [`StartErrorKind::Refused`](super::StartErrorKind::Refused), which has the nearest names. A
    /// feature whose API is alpha or beta needs [`Self::runtime_config`] besides. Gates of etcd, or of
    /// one of the servers alone, are a flag: `append("feature-gates", "Name=true")`.
    ///
    /// # Example
    ///
    /// ```
    /// # use laggard::Plane;
    /// let builder = Plane::builder().kubernetes("1.37").feature_gate("APIServerIdentity", false);
    /// ```
    pub fn feature_gate(mut self, name: impl Into<String>, on: bool) -> Self {
        self.named.gates.insert(name.into(), on);
        self
    }

    /// Has the API server serve a built-in API or not: `apps/v1`, `v1`, or one of `api/all`,
    /// `api/ga`, `api/beta` and `api/alpha`. Default: those at GA.
    ///
    /// One that this version does not have fails the start with
    /// [`StartErrorKind::Refused`](super::StartErrorKind::Refused).
    ///
    /// # Example
    ///
    /// ```
    /// # use laggard::Plane;
    /// let builder = Plane::builder().runtime_config("api/alpha", true);
    /// ```
    pub fn runtime_config(mut self, group_version: impl Into<String>, on: bool) -> Self {
        self.named.apis.insert(group_version.into(), on);
        self
    }

    /// Turns an admission plugin of the API server on.
    ///
    /// Default: Kubernetes' own, but for `ServiceAccount`, which is on only where
    /// [`Controller::ServiceAccount`](super::Controller::ServiceAccount) runs: it refuses every pod
    /// in a namespace without an account `default`. [`Self::exploring`] turns off two more. What is
    /// called last for a plugin holds, and wins over all of that.
    ///
    /// One that this version does not have fails the start with
    /// [`StartErrorKind::Refused`](super::StartErrorKind::Refused).
    ///
    /// # Example
    ///
    /// ```
    /// # use laggard::Plane;
    /// let builder = Plane::builder()
    ///     .enable_admission_plugin("AlwaysPullImages")
    ///     .disable_admission_plugin("PodSecurity");
    /// ```
    pub fn enable_admission_plugin(mut self, name: impl Into<String>) -> Self {
        self.named.plugins.insert(name.into(), true);
        self
    }

    /// Turns an admission plugin of the API server off: see [`Self::enable_admission_plugin`].
    pub fn disable_admission_plugin(mut self, name: impl Into<String>) -> Self {
        self.named.plugins.insert(name.into(), false);
        self
    }

    /// Has the API server keep an audit log, which [`Plane::audit_events`](super::Plane::audit_events)
    /// reads. Default: none.
    ///
    /// An event is written before its request goes on. The log is among the plane's logs and ends
    /// with them; at the levels `Request` and `RequestResponse` it has the Secrets that were sent.
    ///
    /// # Example
    ///
    /// ```
    /// # use laggard::Plane;
    /// use laggard::plane::{AuditLevel, AuditPolicy};
    ///
    /// let builder = Plane::builder().audit(AuditPolicy::all(AuditLevel::Metadata));
    /// ```
    pub fn audit(mut self, policy: AuditPolicy) -> Self {
        self.named.audit = Some(policy);
        self
    }

    /// How much the servers log: the `v` of Kubernetes' servers, from 0 to 10. etcd, which has names
    /// for it, logs warnings at 0 and 1, what it does at 2 and 3, and everything from 4. Default: 0.
    ///
    /// # Example
    ///
    /// ```
    /// # use laggard::Plane;
    /// let builder = Plane::builder().log_level(4).attach_output(true);
    /// ```
    pub fn log_level(mut self, level: u8) -> Self {
        self.named.log_level = Some(level);
        self
    }

    /// Whether what the servers log goes to this process's standard error too, each line behind the
    /// server's name. Default: whether `KUBEBUILDER_ATTACH_CONTROL_PLANE_OUTPUT` is `true`.
    pub fn attach_output(mut self, attach: bool) -> Self {
        self.named.attach_output = Some(attach);
        self
    }
}

impl Named {
    /// Without what is only about what people are shown.
    pub(crate) fn without_output(&self) -> Self {
        Self { log_level: None, audit: None, attach_output: Some(false), ..self.clone() }
    }

    /// Names that would not be read as one by the server.
    pub(crate) fn check(&self) -> Result<(), StartErrorKind> {
        let names = |map: &BTreeMap<String, bool>| map.keys().cloned().collect::<Vec<_>>();
        for (method, names, allowed) in [
            ("feature_gate", names(&self.gates), ":"),
            ("runtime_config", names(&self.apis), "/.-"),
            ("enable_admission_plugin", names(&self.plugins), ""),
        ] {
            let good = |c: char| c.is_ascii_alphanumeric() || allowed.contains(c);
            if let Some(name) = names.iter().find(|name| name.is_empty() || !name.chars().all(good))
            {
                return Err(StartErrorKind::Setting {
                    problem: format!("`{method}` was given {name:?}; give it one name alone"),
                });
            }
        }
        Ok(())
    }

    pub(crate) fn attaches_output(&self) -> bool {
        self.attach_output.unwrap_or_else(|| {
            std::env::var("KUBEBUILDER_ATTACH_CONTROL_PLANE_OUTPUT").is_ok_and(|it| it == "true")
        })
    }

    pub(crate) fn etcd(&self) -> Flags {
        match self.log_level {
            None => Flags::new(),
            Some(0 | 1) => Flags::new().set("log-level", "warn"),
            Some(2 | 3) => Flags::new().set("log-level", "info"),
            Some(_) => Flags::new().set("log-level", "debug"),
        }
    }

    /// `off` are the admission plugins that are off if nobody says otherwise.
    pub(crate) fn apiserver(&self, off: &[&str], files: &str, audit_log: &str) -> Flags {
        let mut plugins: BTreeMap<&str, bool> = off.iter().map(|&name| (name, false)).collect();
        plugins.extend(self.plugins.iter().map(|(name, &on)| (name.as_str(), on)));
        let mut flags = self.common();
        for (name, on) in plugins {
            let flag = if on { "enable-admission-plugins" } else { "disable-admission-plugins" };
            flags = flags.append(flag, name);
        }
        for (name, on) in &self.apis {
            flags = flags.append("runtime-config", format!("{name}={on}"));
        }
        if self.audit.is_some() {
            flags = flags
                .set("audit-policy-file", format!("{files}{AUDIT_POLICY}"))
                .set("audit-log-path", audit_log)
                // In megabytes: a reader should not have to follow the log into other files.
                .set("audit-log-maxsize", "1000000");
        }
        flags
    }

    pub(crate) fn controller_manager(&self) -> Flags {
        self.common()
    }

    fn common(&self) -> Flags {
        let mut flags = Flags::new();
        if let Some(level) = self.log_level {
            flags = flags.set("v", level.to_string());
        }
        for (name, on) in &self.gates {
            flags = flags.append("feature-gates", format!("{name}={on}"));
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::audit::AuditLevel;
    use super::super::{Plane, PlaneBuilder};
    use super::*;

    fn apiserver(builder: &PlaneBuilder) -> Vec<String> {
        let off = ["LimitRanger", "ServiceAccount"];
        builder.named.apiserver(&off, "pki/", "/logs/audit.log").arguments()
    }

    #[test]
    fn what_is_said_last_of_a_plugin_holds_and_wins_over_what_is_off() {
        let builder = Plane::builder()
            .enable_admission_plugin("LimitRanger")
            .enable_admission_plugin("NodeRestriction")
            .disable_admission_plugin("NodeRestriction");
        assert_eq!(
            apiserver(&builder),
            [
                "--disable-admission-plugins=NodeRestriction",
                "--disable-admission-plugins=ServiceAccount",
                "--enable-admission-plugins=LimitRanger",
            ]
        );
    }

    #[test]
    fn gates_and_the_level_go_to_both_servers_and_apis_to_one() {
        let builder = Plane::builder()
            .disable_admission_plugin("LimitRanger")
            .feature_gate("B", false)
            .feature_gate("A", true)
            .runtime_config("api/beta", true)
            .log_level(4);
        let common = ["--feature-gates=A=true", "--feature-gates=B=false", "--v=4"];
        assert_eq!(builder.named.controller_manager().arguments(), common);
        assert_eq!(builder.named.etcd().arguments(), ["--log-level=debug"]);
        let apiserver = apiserver(&builder);
        for flag in common.into_iter().chain(["--runtime-config=api/beta=true"]) {
            assert!(apiserver.iter().any(|found| found == flag), "{flag}: {apiserver:?}");
        }
    }

    #[test]
    fn an_audit_log_has_its_policy_and_is_one_file() {
        let builder = Plane::builder().audit(AuditPolicy::all(AuditLevel::Metadata));
        let flags = apiserver(&builder);
        assert!(flags.contains(&"--audit-policy-file=pki/audit-policy.json".to_owned()));
        assert!(flags.contains(&"--audit-log-path=/logs/audit.log".to_owned()));
    }

    #[rstest]
    #[case(Plane::builder().feature_gate("A=true", true), "A=true")]
    #[case(Plane::builder().runtime_config("apps/v1,batch/v1", true), "apps/v1,batch/v1")]
    #[case(Plane::builder().disable_admission_plugin(""), "\"\"")]
    fn more_than_a_name_is_refused(#[case] builder: PlaneBuilder, #[case] shown: &str) {
        let error = builder.named.check().unwrap_err().to_string();
        assert!(error.contains(shown), "{error}");
        let good = Plane::builder().feature_gate("kube:A", true);
        good.runtime_config("resource.k8s.io/v1alpha3", true).named.check().unwrap();
    }
}
