//! The minors of Kubernetes that this crate knows, and tests that run on each of them.

use std::fmt;
use std::io::Write as _;
use std::str::FromStr;

use super::version::{PINNED, number};
use super::{AssetError, Binary, Wanted};

/// Which minors tests run on: `all`, or names with commas between them.
const MINORS: &str = "LAGGARD_MINORS";

/// A minor of Kubernetes that this crate knows, such as `1.36`: its servers can be had wherever
/// there is a network or Go.
///
/// [`minors!`](crate::minors) makes a test run on each.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Minor {
    major: u16,
    minor: u16,
}

impl Minor {
    /// All of them, oldest first.
    pub fn all() -> impl Iterator<Item = Self> {
        PINNED
            .iter()
            .map(|pinned| Self { major: pinned.version.major(), minor: pinned.version.minor() })
    }

    /// Whether a test is to run on this minor; where it is not, a line on standard error says so,
    /// and why.
    ///
    /// `LAGGARD_MINORS` decides: `all`, or a list such as `1.34,1.37`, of which a start obtains
    /// what is missing. Where it is not set, those minors will do whose etcd and kube-apiserver are
    /// found without a download or a build.
    ///
    /// # Errors
    ///
    /// [`AssetError::BadSource`] if `LAGGARD_MINORS` is neither.
    pub async fn runs_here(self) -> Result<bool, AssetError> {
        let chosen = Chosen::parse(&std::env::var(MINORS).unwrap_or_default())?;
        let missing = match chosen {
            Chosen::Present => self.missing().await,
            _ => None,
        };
        let Some(why) = chosen.forbids(self, missing) else { return Ok(true) };
        let thread = std::thread::current();
        // The runner names the thread of a test after it.
        let test = thread.name().filter(|name| name.contains("::")).unwrap_or("a test");
        // Past the runner, which shows nobody what a test says that does not fail.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
        Ok(false)
    }

    /// Why its servers are not at hand, if they are not.
    async fn missing(self) -> Option<String> {
        let servers = [Binary::Etcd, Binary::KubeApiserver];
        let wanted = Wanted::kubernetes(self).binaries(servers).installed_only(true);
        let error = wanted.get(|_| ()).await.err()?.to_string();
        Some(error.lines().next().unwrap_or_default().to_owned())
    }
}

impl fmt::Display for Minor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl From<Minor> for String {
    fn from(minor: Minor) -> Self {
        minor.to_string()
    }
}

impl FromStr for Minor {
    type Err = AssetError;

    fn from_str(text: &str) -> Result<Self, AssetError> {
        text.split_once('.')
            .and_then(|(major, minor)| Some(Self { major: number(major)?, minor: number(minor)? }))
            .filter(|wanted| Self::all().any(|minor| minor == *wanted))
            .ok_or_else(|| AssetError::BadSource {
                source_name: format!("the minor {text:?}"),
                problem: format!("write one that this version of laggard knows: {}", known()),
            })
    }
}

/// What `LAGGARD_MINORS` says.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Chosen {
    /// Nothing: those that are here.
    Present,
    All,
    These(Vec<Minor>),
}

impl Chosen {
    fn parse(text: &str) -> Result<Self, AssetError> {
        match text.trim() {
            "" => return Ok(Self::Present),
            "all" => return Ok(Self::All),
            _ => {}
        }
        let minors: Result<_, AssetError> =
            text.split(',').map(|name| name.trim().parse()).collect();
        minors.map(Self::These).map_err(|_| AssetError::BadSource {
            source_name: MINORS.to_owned(),
            problem: format!("it is {text:?}; write \"all\", or of {} some with commas", known()),
        })
    }

    /// Why a test does not run on this minor, of which something may be missing.
    fn forbids(&self, minor: Minor, missing: Option<String>) -> Option<String> {
        match self {
            Self::Present => Some(format!("{}; {MINORS}=all obtains it", missing?)),
            Self::All => None,
            Self::These(minors) => (!minors.contains(&minor)).then(|| {
                let names: Vec<_> = minors.iter().map(Minor::to_string).collect();
                format!("Kubernetes {minor} is not in {MINORS}={}", names.join(","))
            }),
        }
    }
}

fn known() -> String {
    Minor::all().map(|minor| minor.to_string()).collect::<Vec<_>>().join(", ")
}

/// Makes an [rstest](https://docs.rs/rstest) test run on each minor of Kubernetes that this crate
/// knows, in a case of its own: `my_test::minor_1_1_34` and so on.
///
/// The first parameter gets the [`Minor`](crate::assets::Minor); what follows it is rstest's, cases
/// and fixtures included. The test is asynchronous, and returns nothing or a `Result<(), _>`.
/// Which cases run, [`Minor::runs_here`](crate::assets::Minor::runs_here) decides: those whose
/// servers are on this machine, and the others say that they were skipped. `LAGGARD_MINORS=all`
/// runs each, and obtains what is missing.
///
/// rustfmt leaves alone what is in the braces. Where that matters, the same by hand is
/// `#[values("1.34", "1.37")] minor: Minor` and a first line that asks `runs_here`.
///
/// # Example
///
/// ```no_run,test_harness
/// use laggard::Plane;
/// use laggard::assets::Minor;
/// use rstest::rstest;
///
/// laggard::minors! {
///     #[rstest]
///     #[tokio::test]
///     async fn the_operator_settles(
///         minor: Minor,
///         #[values(1, 3)] replicas: u8,
///     ) -> anyhow::Result<()> {
///         let plane = Plane::builder().kubernetes(minor).start().await?;
///         // …
///         plane.stop().await?;
///         Ok(())
///     }
/// }
/// ```
#[macro_export]
macro_rules! minors {
    (@pass_over) => { return };
    (@pass_over $returned:ty) => { return ::core::result::Result::Ok(()) };
    ($(
        $(#[$attribute:meta])*
        async fn $name:ident($minor:ident: $($type:ident)::+ $(, $($parameters:tt)*)?) $(-> $returned:ty)? {
            $($body:tt)*
        }
    )+) => {$(
        $(#[$attribute])*
        async fn $name(
            // The comments are the names of the cases.
            #[values(
                #[doc = "1.34"] "1.34",
                #[doc = "1.35"] "1.35",
                #[doc = "1.36"] "1.36",
                #[doc = "1.37"] "1.37",
            )]
            $minor: $($type)::+,
            $($($parameters)*)?
        ) $(-> $returned)? {
            match $crate::assets::Minor::runs_here($minor).await {
                ::core::result::Result::Ok(true) => {}
                ::core::result::Result::Ok(false) => $crate::minors!(@pass_over $($returned)?),
                ::core::result::Result::Err(error) => ::core::panic!("{error}"),
            }
            $($body)*
        }
    )+};
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minor(text: &str) -> Minor {
        text.parse().unwrap()
    }

    #[test]
    fn a_minor_is_one_that_is_pinned() {
        let all: Vec<_> = Minor::all().map(String::from).collect();
        assert_eq!(all.len(), PINNED.len());
        assert!(all.iter().all(|text| minor(text).to_string() == *text));
        for text in ["1.33", "1", "1.34.4", "", "newest"] {
            let error = text.parse::<Minor>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("1.34, "), "{error}");
        }
    }

    /// A macro cannot read a constant, so it has a list of its own.
    #[test]
    fn the_macro_has_every_minor_and_no_other() {
        let listed: Vec<_> = include_str!("minor.rs")
            .lines()
            .filter_map(|line| line.trim().strip_prefix("#[doc = \"")?.split_once("\"] "))
            .map(|(name, value)| (name.to_owned(), value.trim_matches([',', '"']).to_owned()))
            .collect();
        let expected: Vec<_> =
            Minor::all().map(|minor| (minor.to_string(), minor.to_string())).collect();
        assert_eq!(listed, expected);
    }

    #[test]
    fn what_is_chosen_runs_and_what_is_not_says_why() {
        let missing = || Some("etcd 1.35 is nowhere".to_owned());
        let forbids =
            |text: &str, missing| Chosen::parse(text).unwrap().forbids(minor("1.35"), missing);
        assert_eq!(forbids("", None), None);
        let why = forbids("", missing()).unwrap();
        assert_eq!(why, "etcd 1.35 is nowhere; LAGGARD_MINORS=all obtains it");
        assert_eq!(forbids("all", missing()), None);
        assert_eq!(forbids("1.34, 1.35", missing()), None);
        let why = forbids("1.34,1.37", None).unwrap();
        assert_eq!(why, "Kubernetes 1.35 is not in LAGGARD_MINORS=1.34,1.37");
    }

    #[test]
    fn nonsense_in_the_variable_is_an_error_that_says_what_to_write() {
        for text in ["1.33", "yes", "1.34 1.35", "1.34,"] {
            let error = Chosen::parse(text).unwrap_err().to_string();
            for expected in [MINORS, text, "\"all\"", "1.34, 1.35"] {
                assert!(error.contains(expected), "{expected:?} is missing in {error}");
            }
        }
    }
}
