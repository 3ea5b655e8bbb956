//! Versions of Kubernetes: those that can be built here, and those that a person asks for.

use std::fmt;
use std::str::FromStr;

use super::AssetError;

/// The control planes whose Go modules are pinned in this crate, oldest first.
pub(crate) const PINNED: &[Pinned] = &[
    Pinned {
        version: Version::new(1, 34, 4),
        etcd: "3.6.5",
        etcd_image: "3.6.5-0",
        go_mod: include_str!("../../go/1.34/go.mod"),
        go_sum: include_str!("../../go/1.34/go.sum"),
    },
    Pinned {
        version: Version::new(1, 35, 4),
        // Kubernetes 1.35 names 3.6.6, which the Go module proxy does not serve.
        etcd: "3.6.8",
        etcd_image: "3.6.6-0",
        go_mod: include_str!("../../go/1.35/go.mod"),
        go_sum: include_str!("../../go/1.35/go.sum"),
    },
    Pinned {
        version: Version::new(1, 36, 3),
        etcd: "3.6.8",
        etcd_image: "3.6.8-0",
        go_mod: include_str!("../../go/1.36/go.mod"),
        go_sum: include_str!("../../go/1.36/go.sum"),
    },
    Pinned {
        version: Version::new(1, 37, 2),
        etcd: "3.7.0",
        etcd_image: "3.7.0-0",
        go_mod: include_str!("../../go/1.37/go.mod"),
        go_sum: include_str!("../../go/1.37/go.sum"),
    },
];

/// One pinned control plane.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) version: Version,
    pub(crate) etcd: &'static str,
    /// The tag of the official etcd image: the version, and the build of the image, as in
    /// kubeadm's `DefaultEtcdVersion` (Kubernetes, `cmd/kubeadm/app/constants/constants.go`).
    #[cfg_attr(not(feature = "container"), expect(dead_code, reason = "for images alone"))]
    pub(crate) etcd_image: &'static str,
    pub(crate) go_mod: &'static str,
    pub(crate) go_sum: &'static str,
}

/// A version of Kubernetes: a release, or a pre-release such as `1.38.0-rc.1`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Version {
    major: u16,
    minor: u16,
    patch: u16,
    stage: Stage,
}

/// How far a version has come, in the order in which they come.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Stage {
    Alpha(u16),
    Beta(u16),
    Candidate(u16),
    Release,
}

impl Version {
    pub(crate) const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch, stage: Stage::Release }
    }

    /// The first number, always 1 so far.
    #[must_use]
    pub fn major(&self) -> u16 {
        self.major
    }

    /// The second number.
    #[must_use]
    pub fn minor(&self) -> u16 {
        self.minor
    }

    /// Whether it is a release, and no alpha, beta or candidate.
    #[must_use]
    pub fn is_release(&self) -> bool {
        self.stage == Stage::Release
    }

    pub(crate) fn is_of_minor(&self, major: u16, minor: u16) -> bool {
        (self.major, self.minor) == (major, minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        match self.stage {
            Stage::Alpha(number) => write!(f, "-alpha.{number}"),
            Stage::Beta(number) => write!(f, "-beta.{number}"),
            Stage::Candidate(number) => write!(f, "-rc.{number}"),
            Stage::Release => Ok(()),
        }
    }
}

impl FromStr for Version {
    type Err = AssetError;

    fn from_str(text: &str) -> Result<Self, AssetError> {
        let bad = || AssetError::BadVersion { text: text.to_owned() };
        let bare = text.strip_prefix('v').unwrap_or(text);
        let (numbers, stage) = match bare.split_once('-') {
            None => (bare, Stage::Release),
            Some((numbers, stage)) => {
                let (name, count) = stage.split_once('.').ok_or_else(bad)?;
                let count = number(count).ok_or_else(bad)?;
                let stage = match name {
                    "alpha" => Stage::Alpha(count),
                    "beta" => Stage::Beta(count),
                    "rc" => Stage::Candidate(count),
                    _ => return Err(bad()),
                };
                (numbers, stage)
            }
        };
        let mut numbers = numbers.split('.');
        let mut next = || numbers.next().map(number);
        match (next(), next(), next(), next()) {
            (Some(Some(major)), Some(Some(minor)), Some(Some(patch)), None) => {
                Ok(Self { major, minor, patch, stage })
            }
            _ => Err(bad()),
        }
    }
}

/// Digits only: `u16::from_str` would also take a sign.
pub(crate) fn number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_they_come_out() {
        let texts =
            ["1.36.3", "1.37.0-alpha.3", "1.37.0-beta.0", "1.37.0-rc.1", "1.37.0", "1.37.1"];
        let versions: Vec<Version> = texts.iter().map(|text| text.parse().unwrap()).collect();
        assert!(versions.is_sorted(), "{versions:?}");
        let shown: Vec<_> = versions.iter().map(ToString::to_string).collect();
        assert_eq!(shown, texts);
    }

    #[test]
    fn what_is_no_version_is_named_in_the_error() {
        for text in ["", "1.37", "1.37.2.4", "1.37.2.x", "1.37.2-dirty", "1.37.2-rc.", "1.37.+2"] {
            let error = text.parse::<Version>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_pinned_is_what_the_modules_require() {
        for pinned in PINNED {
            let Pinned { version, etcd, go_mod, go_sum, .. } = pinned;
            for required in
                [format!("k8s.io/kubernetes v{version}"), format!("etcd/server/v3 v{etcd}")]
            {
                let found = go_mod
                    .lines()
                    .any(|line| line.trim().trim_end_matches(" // indirect").ends_with(&required));
                assert!(found, "{version}: no {required:?}");
            }
            assert!(go_sum.contains(&format!("k8s.io/kubernetes v{version} h1:")), "{version}");
        }
        assert!(PINNED.is_sorted_by_key(|pinned| pinned.version));
    }
}
