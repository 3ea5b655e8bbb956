//! The names of points and alternatives, as tokens carry them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de};

use super::Kind;

/// Names a point relative to the run, by what it is about and how often that was met before:
/// `statefulsets/n0@r2` is the second read about that object, `statefulsets@q3` the stream at the third
/// request, `pods@t1` its first trigger, `sts-controller@e2` the second chance of that actor.
///
/// It holds no resource version, no UID and no run's namespace, so it means the same in another run.
///
/// ```
/// use laggard::lag::model::{Kind, PointId};
///
/// let id: PointId = "statefulsets/n0@r2".parse()?;
/// assert_eq!((id.subject(), id.kind(), id.number()), ("statefulsets/n0", Kind::Read, 2));
/// assert_eq!(id.to_string(), "statefulsets/n0@r2");
/// # Ok::<(), laggard::lag::model::ParsePointIdError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PointId {
    subject: String,
    kind: Kind,
    number: u32,
}

impl PointId {
    /// The `number`th point (from 1) of this kind about `subject`: a stream, an object of it, or an actor.
    #[must_use]
    pub fn new(subject: impl Into<String>, kind: Kind, number: u32) -> Self {
        Self { subject: subject.into(), kind, number }
    }

    /// What it is about.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What is decided there.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Counts the points of this kind about this subject, from 1.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = escaped(&self.subject, |c| c == '@');
        write!(f, "{subject}@{}{}", self.kind.letter(), self.number)
    }
}

impl FromStr for PointId {
    type Err = ParsePointIdError;

    fn from_str(text: &str) -> Result<Self, ParsePointIdError> {
        let parsed = || {
            let (subject, moment) = text.rsplit_once('@')?;
            let subject = unescaped(subject)?;
            let letter = moment.chars().next()?;
            let kind = Kind::ALL.into_iter().find(|kind| kind.letter() == letter)?;
            let digits = &moment[letter.len_utf8()..];
            // `parse` alone would also take "+2" and "02", and two texts would name one point.
            let number: u32 = digits.parse().ok()?;
            (number > 0 && number.to_string() == digits).then(|| Self::new(subject, kind, number))
        };
        parsed().ok_or_else(|| ParsePointIdError { text: text.to_owned() })
    }
}

impl Serialize for PointId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PointId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A text that names no point.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("failed to read the choice point {text:?}: expected something like \"statefulsets/n0@r2\"")]
pub struct ParsePointIdError {
    text: String,
}

/// The name of an alternative: `0` for the freshest, `-2` for two events behind, or a word such as `commit`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Label(String);

impl Label {
    /// A label with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escaped(&self.0, |c| c == ':'))
    }
}

impl FromStr for Label {
    type Err = ParseLabelError;

    fn from_str(text: &str) -> Result<Self, ParseLabelError> {
        let known = !text.is_empty() && !text.contains([':', ',']);
        known
            .then(|| unescaped(text))
            .flatten()
            .map(Self)
            .ok_or_else(|| ParseLabelError { text: text.to_owned() })
    }
}

impl Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A text that names no alternative.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("failed to read the alternative {text:?}: expected something like \"-1\" or \"commit\"")]
pub struct ParseLabelError {
    text: String,
}

/// Tokens are lists of `id:label` split at commas, put on a command line within single quotes: what would
/// end one of these parts is written as `%` and its two hexadecimal digits, byte by byte.
fn escaped(text: &str, also: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        let special = matches!(character, '%' | ',' | '\'')
            || character.is_whitespace()
            || character.is_control()
            || also(character);
        if special {
            let mut buffer = [0; 4];
            for byte in character.encode_utf8(&mut buffer).bytes() {
                out.push_str(&format!("%{byte:02X}"));
            }
        } else {
            out.push(character);
        }
    }
    out
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_points_survive_the_way_through_text() {
        for subject in [
            "statefulsets/n0",
            "statefulsets.apps#2/n0",
            "system:controller:x",
            "a@b, 100% 'c'\n\u{1F600}",
            "",
        ] {
            for kind in Kind::ALL {
                for number in [1, 2, 17, u32::MAX] {
                    let id = PointId::new(subject, kind, number);
                    let text = id.to_string();
                    assert!(!text.contains([',', ' ', '\n', '\'']), "{text}");
                    assert_eq!(text.parse(), Ok(id.clone()), "{text}");
                    let json = serde_json::to_string(&id).unwrap();
                    assert_eq!(serde_json::from_str::<PointId>(&json).unwrap(), id);
                }
            }
        }
    }

    #[test]
    fn the_names_of_the_four_common_points_are_as_documented() {
        for (id, text) in [
            (PointId::new("statefulsets/n0", Kind::Read, 2), "statefulsets/n0@r2"),
            (PointId::new("statefulsets", Kind::Boundary, 3), "statefulsets@q3"),
            (PointId::new("pods", Kind::Trigger, 1), "pods@t1"),
            (PointId::new("sts-controller", Kind::Environment, 2), "sts-controller@e2"),
        ] {
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn what_names_no_point_is_an_error() {
        for text in
            ["", "pods", "pods@", "pods@r", "pods@r0", "pods@x1", "pods@r01", "pods@r+1", "a%2@r1"]
        {
            let error = text.parse::<PointId>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn labels_survive_the_way_through_text() {
        for text in ["0", "-1", "commit", "a:b", "x, y", "100%"] {
            let label = Label::new(text);
            assert_eq!(label.to_string().parse(), Ok(label));
        }
        for text in ["", "a:b", "a,b", "%", "%zz"] {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
    }
}
