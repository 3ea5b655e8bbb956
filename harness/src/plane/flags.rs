//! The command line of a server: our defaults, and what a person changes about them.

use std::collections::{BTreeMap, BTreeSet};

/// Changes to a server's flags, applied to the defaults in the order in which they were made.
///
/// Names are written without the leading dashes.
///
/// # Example
///
/// ```
/// use laggard::plane::Flags;
///
/// let flags = Flags::new()
///     .set("v", "4")
///     .append("enable-admission-plugins", "NodeRestriction")
///     .remove("anonymous-auth");
/// assert_eq!(format!("{flags}"), "--v=4 --enable-admission-plugins+=NodeRestriction !--anonymous-auth");
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[must_use = "flags do nothing until a builder has them"]
pub struct Flags {
    changes: Vec<Change>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Change {
    Set(String, String),
    Append(String, String),
    Remove(String),
}

impl Flags {
    /// No change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives a flag this value and no other.
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.changes.push(Change::Set(bare(name), value.into()));
        self
    }

    /// Adds a value to a flag that can be given more than once, or holds a list.
    pub fn append(mut self, name: &str, value: impl Into<String>) -> Self {
        self.changes.push(Change::Append(bare(name), value.into()));
        self
    }

    /// Leaves a flag out, so that the server's own default holds.
    pub fn remove(mut self, name: &str) -> Self {
        self.changes.push(Change::Remove(bare(name)));
        self
    }

    /// These changes and then those.
    pub(crate) fn then(mut self, later: &Self) -> Self {
        self.changes.extend(later.changes.iter().cloned());
        self
    }

    #[cfg(test)]
    pub(crate) fn arguments(&self) -> Vec<String> {
        self.applied().0
    }

    /// The command line, sorted by name, so that two equal planes have equal commands; and which flags
    /// were removed that were not there.
    pub(crate) fn applied(&self) -> (Vec<String>, Vec<String>) {
        let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut absent = BTreeSet::new();
        for change in &self.changes {
            match change {
                Change::Set(name, value) => {
                    values.insert(name, vec![value]);
                }
                Change::Append(name, value) => values.entry(name).or_default().push(value),
                Change::Remove(name) => {
                    if values.remove(name.as_str()).is_none() {
                        absent.insert(name.clone());
                    }
                }
            }
        }
        let arguments = values
            .into_iter()
            .flat_map(|(name, values)| {
                values.into_iter().map(move |value| format!("--{name}={value}"))
            })
            .collect();
        (arguments, absent.into_iter().collect())
    }
}

impl std::fmt::Display for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, change) in self.changes.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            match change {
                Change::Set(name, value) => write!(f, "--{name}={value}")?,
                Change::Append(name, value) => write!(f, "--{name}+={value}")?,
                Change::Remove(name) => write!(f, "!--{name}")?,
            }
        }
        Ok(())
    }
}

/// People copy flags from manuals, dashes included.
fn bare(name: &str) -> String {
    name.trim_start_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_apply_to_the_defaults_in_order() {
        let defaults = Flags::new().set("b", "1").set("a", "1").append("c", "1");
        let changes = Flags::new().set("--a", "2").append("c", "2").remove("b").set("d", "");
        assert_eq!(defaults.then(&changes).arguments(), ["--a=2", "--c=1", "--c=2", "--d="]);
    }

    #[test]
    fn a_removal_of_nothing_is_told() {
        let flags = Flags::new().set("a", "1").remove("a").remove("b");
        assert_eq!(flags.applied(), (vec![], vec!["b".to_owned()]));
    }
}
