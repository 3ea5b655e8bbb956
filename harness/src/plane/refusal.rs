//! A server that refuses what it was told: its own words turned into one clear error.
//!
//! The server itself is the judge, and this crate has no lists of flags, gates or plugins. It
//! refuses before it does anything, within 0.3 s; it knows the flags and gates that `--help` leaves
//! out (hidden flags, gates at GA), which a list made from `--help` would take for typos; and it is
//! right for every patch, and for a binary that somebody built. Only once it has refused, and so
//! never in a start that succeeds, is it asked for its `--help`, where the names that were meant
//! may be. The exception is [`Server::removed`](super::backend::Server::removed): nobody refuses
//! the removal of a flag that does not exist.

use std::fmt::{self, Display};

use crate::assets::{Binary, Version};

/// What a server refused, and what may have been meant.
///
/// Its `Display` names the server, its version, what it refused and the nearest names that it knows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    pub(crate) server: Binary,
    pub(crate) version: Option<Version>,
    pub(crate) refused: Refused,
    pub(crate) near: Vec<String>,
}

/// What a server can refuse.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Refused {
    /// It has no such flag.
    #[non_exhaustive]
    Flag {
        /// Without the leading dashes.
        name: String,
    },
    /// It has the flag, but not that value of it.
    #[non_exhaustive]
    Value {
        /// The flag, without the leading dashes.
        flag: String,
        /// The value.
        value: String,
        /// What the server said about it.
        why: String,
    },
    /// It has no such feature gate.
    #[non_exhaustive]
    FeatureGate {
        /// Without the component.
        name: String,
    },
    /// It has the feature gate, but it cannot be turned.
    #[non_exhaustive]
    LockedFeatureGate {
        /// Without the component.
        name: String,
        /// What it is locked to.
        locked_to: bool,
    },
    /// It has these feature gates on, and some that they depend on are off.
    #[non_exhaustive]
    FeatureGateDependency {
        /// Those that are on.
        names: Vec<String>,
        /// Those that are off.
        needs: Vec<String>,
    },
    /// It has no such API: no such group, or no such version of it.
    #[non_exhaustive]
    Api {
        /// As `runtime-config` takes it, such as `apps/v1`.
        name: String,
    },
    /// It has no such admission plugin.
    #[non_exhaustive]
    AdmissionPlugin {
        /// Its name.
        name: String,
    },
}

impl Refusal {
    /// Who refused.
    #[must_use]
    pub fn server(&self) -> Binary {
        self.server
    }

    /// The version that the server says it has, etcd's own for etcd; `None` if it said nothing.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// What.
    #[must_use]
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Names that it knows and that are like the refused one, the likeliest first; at most three.
    #[must_use]
    pub fn near(&self) -> &[String] {
        &self.near
    }

    /// The names that may have been meant, out of what the server knows.
    pub(crate) fn look_up(&mut self, help: &str) {
        let (name, known) = match &self.refused {
            Refused::Flag { name } => (name, flags(help)),
            Refused::FeatureGate { name } => (name, gates(help)),
            Refused::AdmissionPlugin { name } => (name, plugins(help)),
            Refused::Api { name } => {
                self.near = near_apis(name);
                return;
            }
            Refused::Value { .. }
            | Refused::LockedFeatureGate { .. }
            | Refused::FeatureGateDependency { .. } => return,
        };
        self.near = near(name, known);
    }
}

impl Refused {
    /// Kubernetes 1.34 names the group alone; the command line has all of it.
    pub(crate) fn asked_by(self, command: &str) -> Self {
        let Self::Api { name: group } = &self else { return self };
        let name = command
            .split_whitespace()
            .filter_map(|argument| argument.strip_prefix("--runtime-config="))
            .flat_map(|asked| asked.split(','))
            .filter_map(|asked| asked.split('=').next())
            .find(|name| name.strip_prefix(group).is_some_and(|rest| rest.starts_with('/')));
        match name {
            Some(name) => Self::Api { name: name.to_owned() },
            None => self,
        }
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dashes = if matches!(self.refused, Refused::Flag { .. }) { "--" } else { "" };
        write!(f, "{}", self.server)?;
        if let Some(version) = &self.version {
            write!(f, " {version}")?;
        }
        let server = self.server;
        let advice = match &self.refused {
            Refused::Flag { name } => {
                write!(f, " has no flag --{name}")?;
                format!("`{server} --help` lists those that it has")
            }
            Refused::Value { flag, value, why } => {
                write!(f, " does not take {value:?} for --{flag} ({why})")?;
                format!("`{server} --help` says what it takes")
            }
            Refused::FeatureGate { name } => {
                write!(f, " has no feature gate {name}")?;
                "one that is gone belonged to a feature that is now always on, or is given up"
                    .to_owned()
            }
            Refused::LockedFeatureGate { name, locked_to } => {
                write!(f, " does not let feature gate {name} be turned")?;
                format!("it is locked to {locked_to} in this version; leave it out")
            }
            Refused::FeatureGateDependency { names, needs } => {
                let (names, needs) = (enumerated(names), enumerated(needs));
                write!(f, " does not let feature gate {names} be on while {needs} is off")?;
                format!("turn {needs} on, or {names} off as well")
            }
            Refused::Api { name } => {
                write!(f, " has no API {name}")?;
                "write `group/version`, `v1`, or `api/all`, `api/ga`, `api/beta`, `api/alpha`; \
                 another version of Kubernetes may have it"
                    .to_owned()
            }
            Refused::AdmissionPlugin { name } => {
                write!(f, " has no admission plugin {name}")?;
                format!("`{server} --help` lists those that it has")
            }
        };
        match self.near.split_last() {
            None => write!(f, "; {advice}"),
            Some((only, [])) => write!(f, "; did you mean {dashes}{only}?"),
            Some((last, others)) => {
                f.write_str("; did you mean ")?;
                for (index, name) in others.iter().enumerate() {
                    write!(f, "{}{dashes}{name}", if index == 0 { "" } else { ", " })?;
                }
                write!(f, " or {dashes}{last}?")
            }
        }
    }
}

/// What a server refused, by the log that it left when it ended.
///
/// Sources: spf13/pflag `errors.go` and Go's `flag` (etcd); component-base
/// `featuregate/feature_gate.go`; apiserver `pkg/server/options/{admission,api_enablement}.go` and
/// `pkg/server/resourceconfig/helpers.go`.
pub(crate) fn refused(log: &str) -> Option<Refused> {
    log.lines().rev().find_map(|line| {
        // The log quotes what it quotes.
        let line = line.replace("\\\"", "\"");
        let line = line.trim();
        // Before the values: etcd says both in one line.
        gate(line).or_else(|| api(line)).or_else(|| plugin(line)).or_else(|| flag(line))
    })
}

fn gate(line: &str) -> Option<Refused> {
    if let Some(refused) = dependency(line) {
        return Some(refused);
    }
    if let Some(rest) = after(line, "unrecognized feature gate: ") {
        return Some(Refused::FeatureGate { name: first_name(rest)? });
    }
    let (name, rest) = after(line, "cannot set feature gate ")?.split_once(" to ")?;
    let locked_to = after(rest, "locked to ")?.starts_with("true");
    Some(Refused::LockedFeatureGate { name: name.to_owned(), locked_to })
}

/// `[A is enabled, but depends on features that are disabled: [B C], D is …]`, in any order.
fn dependency(line: &str) -> Option<Refused> {
    let mark = " is enabled, but depends on features that are disabled: [";
    let mut parts = line.split(mark);
    let last_word = |text: &str| Some(text.rsplit([' ', '[', '"']).next()?.to_owned());
    let mut names = vec![last_word(parts.next()?)?];
    let mut needs = Vec::new();
    for part in parts {
        let (disabled, rest) = part.split_once(']')?;
        needs.extend(disabled.split(' ').map(str::to_owned));
        // The last one is followed by no other.
        names.extend(last_word(rest).filter(|_| rest.starts_with(", ")));
    }
    if needs.is_empty() {
        return None;
    }
    for list in [&mut names, &mut needs] {
        list.sort_unstable();
        list.dedup();
    }
    Some(Refused::FeatureGateDependency { names, needs })
}

fn api(line: &str) -> Option<Refused> {
    let name = after(line, "unknown api groups ").or_else(|| {
        let rest = after(line, "group version ")?;
        rest.contains(" that has not been registered").then_some(rest)
    })?;
    Some(Refused::Api { name: first_name(name)? })
}

fn plugin(line: &str) -> Option<Refused> {
    let (name, rest) = after(line, "able-admission-plugins plugin \"")?.split_once('"')?;
    rest.starts_with(" is unknown").then(|| Refused::AdmissionPlugin { name: name.to_owned() })
}

fn flag(line: &str) -> Option<Refused> {
    if let Some(rest) = line.strip_prefix("Error: unknown flag: --") {
        return Some(Refused::Flag { name: first_name(rest)? });
    }
    if let Some(rest) = line.strip_prefix("flag provided but not defined: -") {
        return Some(Refused::Flag { name: first_name(rest.trim_start_matches('-'))? });
    }
    let rest = line
        .strip_prefix("Error: invalid argument \"")
        .or_else(|| line.strip_prefix("invalid value \""))?;
    // Of a flag with a short form both are named: `"-v, --v" flag`.
    let (value, rest) = rest.split_once("\" for ")?;
    let (flag, why) = rest.split_once(": ")?;
    let flag = flag.trim_end_matches(" flag").trim_start_matches("flag ");
    let flag = flag.trim_matches('"').rsplit(' ').next()?.trim_start_matches('-');
    Some(Refused::Value {
        flag: flag.to_owned(),
        value: value.to_owned(),
        why: why.trim_end_matches('.').to_owned(),
    })
}

/// `a`, `a and b`, `a, b and c`.
fn enumerated(names: &[String]) -> String {
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.split_once(mark).map(|(_, rest)| rest)
}

fn first_name(text: &str) -> Option<String> {
    let end = text
        .find(|c: char| c.is_whitespace() || matches!(c, '"' | ',' | ']'))
        .unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

/// The flags in the answer to `--help`, without dashes.
pub(crate) fn flags(help: &str) -> Vec<&str> {
    let named = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    named
        // Behind a short form (`-v, --v Level`), or at once.
        .filter_map(|line| line.split_whitespace().take(2).find_map(|word| word.strip_prefix("--")))
        .map(|word| word.split(['=', '[', ',']).next().unwrap_or(word))
        .collect()
}

/// The feature gates in it; those at GA are not there.
fn gates(help: &str) -> Vec<&str> {
    // `v1=true|false for the core API group` is none.
    let named = help.lines().filter_map(|line| line.split_once("=true|false ("));
    named
        .filter_map(|(before, _)| before.split_whitespace().last())
        .map(|name| name.rsplit(':').next().unwrap_or(name))
        .collect()
}

fn plugins(help: &str) -> Vec<&str> {
    let Some(list) = after(help, "Comma-delimited list of admission plugins: ") else {
        return Vec::new();
    };
    list.split(['.', '\n']).next().unwrap_or_default().split(',').map(str::trim).collect()
}

/// Groups that a server has of its own, and what stands for several: `--help` names only these.
const GROUPS: &[&str] = &[
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];

fn near_apis(name: &str) -> Vec<String> {
    match name.split_once('/') {
        Some(("api", stage)) => near(stage, ["all", "ga", "beta", "alpha"])
            .iter()
            .map(|stage| format!("api/{stage}"))
            .collect(),
        // The group is right, so it is the version, and of those nothing is known.
        Some((group, _)) if GROUPS.contains(&group) => Vec::new(),
        Some((group, version)) => near(group, GROUPS.iter().copied())
            .iter()
            .map(|group| format!("{group}/{version}"))
            .collect(),
        None => Vec::new(),
    }
}

/// The names that are like this one, the likeliest first; at most three.
fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let plain = |name: &str| name.to_lowercase().replace('_', "-");
    let wanted = plain(name);
    // One slip in four letters; a part of a longer name is the least likely.
    let limit = (wanted.chars().count() / 4).max(1);
    let distance = |known: &str| {
        let known = plain(known);
        match strsim::osa_distance(&wanted, &known) {
            edits if edits <= limit => Some(edits),
            _ => (wanted.len() >= 4 && known.contains(&wanted)).then_some(limit + 1),
        }
    };
    let mut near: Vec<_> =
        known.into_iter().filter_map(|known| Some((distance(known)?, known))).collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    // What the servers of Kubernetes 1.37.2 said.
    #[rstest]
    #[case("Error: unknown flag: --no-such-flag", Refused::Flag { name: "no-such-flag".into() })]
    #[case("flag provided but not defined: -no-such-flag", Refused::Flag { name: "no-such-flag".into() })]
    #[case(
        r#"Error: invalid argument "abc" for "--max-requests-inflight" flag: strconv.ParseInt: parsing "abc": invalid syntax"#,
        Refused::Value {
            flag: "max-requests-inflight".into(),
            value: "abc".into(),
            why: r#"strconv.ParseInt: parsing "abc": invalid syntax"#.into(),
        }
    )]
    #[case(
        r#"Error: invalid argument "x" for "-v, --v" flag: strconv.ParseInt: parsing "x": invalid syntax"#,
        Refused::Value {
            flag: "v".into(),
            value: "x".into(),
            why: r#"strconv.ParseInt: parsing "x": invalid syntax"#.into(),
        }
    )]
    #[case(
        r#"invalid value "abc" for flag -heartbeat-interval: parse error"#,
        Refused::Value { flag: "heartbeat-interval".into(), value: "abc".into(), why: "parse error".into() }
    )]
    #[case(
        r#"E1129 08:22:32.557947   28270 run.go:72] "command failed" err="unrecognized feature gate: Nope""#,
        Refused::FeatureGate { name: "Nope".into() }
    )]
    #[case(
        r#"invalid value "Nope=true" for flag -feature-gates: unrecognized feature gate: Nope"#,
        Refused::FeatureGate { name: "Nope".into() }
    )]
    #[case(
        r#"E1129 08:22:32.5 1 run.go:72] "command failed" err="cannot set feature gate A to false, feature is locked to true""#,
        Refused::LockedFeatureGate { name: "A".into(), locked_to: true }
    )]
    #[case(
        r#"E1129 12:16:53.8 1 run.go:72] "command failed" err="[B is enabled, but depends on features that are disabled: [Z Y], A is enabled, but depends on features that are disabled: [Y]]""#,
        Refused::FeatureGateDependency {
            names: vec!["A".into(), "B".into()],
            needs: vec!["Y".into(), "Z".into()],
        }
    )]
    #[case(
        r#"E1129 12:16:53.8 1 run.go:72] "command failed" err="A is enabled, but depends on features that are disabled: [Y]""#,
        Refused::FeatureGateDependency { names: vec!["A".into()], needs: vec!["Y".into()] }
    )]
    #[case(
        r#"E1129 08:22:33.288391   28326 run.go:72] "command failed" err="unknown api groups nope/v1""#,
        Refused::Api { name: "nope/v1".into() }
    )]
    #[case(
        r#"E1129 08:22:33.533572   28372 run.go:72] "command failed" err="group version apps/v9 that has not been registered""#,
        Refused::Api { name: "apps/v9".into() }
    )]
    #[case(
        r#"E1129 08:22:33.862792 1 run.go:72] "command failed" err="[enable-admission-plugins plugin \"Nope\" is unknown, disable-admission-plugins plugin \"Nupe\" is unknown]""#,
        Refused::AdmissionPlugin { name: "Nope".into() }
    )]
    fn the_words_of_the_servers_are_understood(#[case] line: &str, #[case] expected: Refused) {
        let log = format!("    I1129 08:22:33 1 serving.go:405] Generated\n    …\n    {line}\n");
        assert_eq!(refused(&log), Some(expected));
    }

    #[test]
    fn what_is_no_refusal_is_left_alone() {
        for log in [
            "",
            "    (nothing)",
            r#"E1129 1 run.go:72] "command failed" err="loading audit policy file: no such file""#,
            "W1129 1 logging.go:55] Err: connection error: desc = \"transport: invalid value\"",
        ] {
            assert_eq!(refused(log), None, "{log}");
        }
    }

    const HELP: &str = "Flags:
      --feature-gates colonSeparatedMultimapStringString   Comma-separated list. Options are:
                                 kube:APIServerIdentity=true|false (BETA - default=true)
                                 kube:AllAlpha=true|false (ALPHA - default=false)
      --runtime-config mapStringString   A set of key=value pairs. Supported options are:
                                 v1=true|false for the core API group
      --enable-admission-plugins strings   Comma-delimited list of admission plugins: AlwaysPullImages, PodSecurity. The order of plugins in this flag does not matter.
      --audit-policy-file string  Path --no-flag-of-its-own
      --version version[=true]    --version, --version=raw prints
  -v, --v Level                  number
";

    #[test]
    fn a_group_alone_is_completed_from_the_command_line() {
        let command = "kube-apiserver --runtime-config=apps/v1=true --runtime-config=app/v1=true";
        let api = |name: &str| Refused::Api { name: name.to_owned() };
        assert_eq!(api("app").asked_by(command), api("app/v1"));
        assert_eq!(api("batch").asked_by(command), api("batch"));
        assert_eq!(api("app/v1").asked_by(command), api("app/v1"));
    }

    #[test]
    fn help_is_read() {
        assert_eq!(
            flags(HELP),
            [
                "feature-gates",
                "runtime-config",
                "enable-admission-plugins",
                "audit-policy-file",
                "version",
                "v"
            ]
        );
        assert_eq!(gates(HELP), ["APIServerIdentity", "AllAlpha"]);
        assert_eq!(plugins(HELP), ["AlwaysPullImages", "PodSecurity"]);
        assert_eq!(flags("Member:\n  --name 'default'\n    Human-readable\n"), ["name"]);
    }

    #[test]
    fn slips_are_near_and_strangers_are_not() {
        let flags =
            ["audit-log-path", "audit-policy-file", "v", "anonymous-auth", "audit-log-mode"];
        assert_eq!(near("audit-log-paht", flags), ["audit-log-path"]);
        assert_eq!(near("anonymus_auth", flags), ["anonymous-auth"]);
        assert_eq!(near("audit-policy", flags), ["audit-policy-file"]);
        assert_eq!(near("podsecurity", ["PodSecurity", "PodTopologyLabels"]), ["PodSecurity"]);
        assert!(near("no-such-flag", flags).is_empty());
        assert_eq!(near_apis("app/v1"), ["apps/v1"]);
        assert_eq!(near_apis("api/aplha"), ["api/alpha"]);
        assert!(near_apis("apps/v9").is_empty());
    }

    #[rstest]
    #[case(&[], "kube-apiserver 1.37.2 has no flag --audit; `kube-apiserver --help` lists those that it has")]
    #[case(&["a"], "kube-apiserver 1.37.2 has no flag --audit; did you mean --a?")]
    #[case(&["a", "b", "c"], "kube-apiserver 1.37.2 has no flag --audit; did you mean --a, --b or --c?")]
    fn one_sentence_says_it(#[case] near: &[&str], #[case] expected: &str) {
        let refusal = Refusal {
            server: Binary::KubeApiserver,
            version: Some(Version::new(1, 37, 2)),
            refused: Refused::Flag { name: "audit".to_owned() },
            near: near.iter().map(|&name| name.to_owned()).collect(),
        };
        assert_eq!(refusal.to_string(), expected);
    }
}
