//! The token: the choices of a run as a text that can be pasted.

use std::{collections::BTreeSet, fmt, str::FromStr};

use crate::lag::model::{Chosen, Kind, Label, PointId};

/// The choices in which a run differs from the one where everything is fresh.
///
/// It names points relative to the run, never resource versions, UIDs or times, so it survives reruns and
/// most changes of the code. As text it is a list of `point:alternative`, with `..` over points in a row:
///
/// ```
/// use laggard::explore::Token;
///
/// let token: Token = "statefulsets/n0@r2:-1,pods@q1..q3:-2".parse()?;
/// assert_eq!(token.choices().len(), 4);
/// assert_eq!(token.to_string(), "statefulsets/n0@r2:-1,pods@q1..q3:-2");
/// # Ok::<(), laggard::explore::ParseTokenError>(())
/// ```
///
/// The run where everything is fresh has the token `fresh`.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Token {
    choices: Vec<(PointId, Label)>,
}

impl Token {
    /// The choices with these points and alternatives. Of two at one point the first counts.
    #[must_use]
    pub fn new(choices: impl IntoIterator<Item = (PointId, Label)>) -> Self {
        let mut seen = BTreeSet::new();
        let choices = choices.into_iter().filter(|(id, _)| seen.insert(id.clone())).collect();
        Self { choices }
    }

    /// The deviations among `chosen`.
    #[must_use]
    pub fn of(chosen: &[Chosen]) -> Self {
        let deviations = chosen.iter().filter(|chosen| chosen.is_deviation());
        Self::new(
            deviations
                .map(|chosen| (chosen.point.id().clone(), chosen.alternative().label.clone())),
        )
    }

    /// The points and alternatives, in the order of the run.
    #[must_use]
    pub fn choices(&self) -> &[(PointId, Label)] {
        &self.choices
    }

    /// Whether everything is fresh.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.choices.is_empty()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.choices.is_empty() {
            return f.write_str(FRESH);
        }
        let mut rest = &self.choices[..];
        let mut first = true;
        while let Some((id, label)) = rest.first() {
            if !first {
                f.write_str(",")?;
            }
            first = false;
            let row = row_length(rest);
            if row > 1 {
                let (last, _) = &rest[row - 1];
                // The moment of the last point: what follows the `@` of its name.
                let last = last.to_string();
                let moment = last.rsplit('@').next().unwrap_or_default();
                write!(f, "{id}..{moment}:{label}")?;
            } else {
                write!(f, "{id}:{label}")?;
            }
            rest = &rest[row..];
        }
        Ok(())
    }
}

/// How many choices at the front name points in a row, with one alternative.
fn row_length(choices: &[(PointId, Label)]) -> usize {
    let mut length = 1;
    while let Some((id, label)) = choices.get(length) {
        let (before, same) = &choices[length - 1];
        let follows = (id.subject(), id.kind()) == (before.subject(), before.kind())
            && before.number().checked_add(1) == Some(id.number())
            && label == same;
        if !follows {
            break;
        }
        length += 1;
    }
    length
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let text = text.trim();
        if text == FRESH {
            return Ok(Self::default());
        }
        let mut choices = Vec::new();
        for part in text.split(',') {
            let problem = |why: String| ParseTokenError { token: text.to_owned(), why };
            choices.extend(parse_part(part.trim()).map_err(problem)?);
        }
        let token = Self::new(choices.iter().cloned());
        if token.choices.len() < choices.len() {
            let why = "it names one point twice".to_owned();
            return Err(ParseTokenError { token: text.to_owned(), why });
        }
        Ok(token)
    }
}

fn parse_part(part: &str) -> Result<Vec<(PointId, Label)>, String> {
    let (points, label) = part
        .rsplit_once(':')
        .ok_or_else(|| format!("{part:?} has no alternative after a \":\""))?;
    let label: Label = label.parse().map_err(|error| format!("{error}"))?;
    // A subject may hold dots, so a range is looked for behind the `@` only.
    let at = points.rfind('@').unwrap_or(0);
    let (first, last) = match points[at..].split_once("..") {
        None => (points, None),
        Some((moment, last)) => (&points[..at + moment.len()], Some(last)),
    };
    let first: PointId = first.parse().map_err(|error| format!("{error}"))?;
    let last = match last {
        None => first.number(),
        Some(moment) => {
            let last: PointId = format!("@{moment}").parse().map_err(|error| format!("{error}"))?;
            if last.kind() != first.kind() || last.number() <= first.number() {
                return Err(format!("{part:?} ends before it begins, or with another kind"));
            }
            last.number()
        }
    };
    if last - first.number() >= LONGEST_ROW {
        return Err(format!("{part:?} names more than {LONGEST_ROW} points"));
    }
    let point = |number| PointId::new(first.subject(), first.kind(), number);
    Ok((first.number()..=last).map(|number| (point(number), label.clone())).collect())
}

/// A text that is no token.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("failed to read the token {token:?}: {why}")]
pub struct ParseTokenError {
    token: String,
    why: String,
}

const FRESH: &str = "fresh";
/// A typing error in a number must not fill the memory.
const LONGEST_ROW: u32 = 10_000;

/// Which of the choices make a view old, and which change what happens.
pub(crate) fn is_staleness(id: &PointId) -> bool {
    Kind::is_staleness(id.kind())
}

#[cfg(test)]
mod tests {
    use super::{super::random::Random, *};

    #[test]
    fn a_token_survives_the_way_through_text() {
        let subjects =
            ["statefulsets/n0", "seinodes.sei.io", "a..b", "x@y,z:1", "pods#2/p-0", "sys:x"];
        let labels = ["0", "-1", "-12", "commit", "a:b,c"];
        let mut random = Random::new(7);
        for _ in 0..2_000 {
            let token = Token::new((0..random.below(6)).map(|_| {
                let subject = subjects[random.below(subjects.len())];
                let kind = Kind::ALL[random.below(Kind::ALL.len())];
                let number = u32::try_from(1 + random.below(4)).unwrap();
                (
                    PointId::new(subject, kind, number),
                    Label::new(labels[random.below(labels.len())]),
                )
            }));
            let text = token.to_string();
            assert_eq!(text.parse(), Ok(token), "{text}");
        }
    }

    #[test]
    fn points_in_a_row_are_written_as_a_range() {
        for (long, short) in [
            ("pods@q1:-1,pods@q2:-1", "pods@q1..q2:-1"),
            ("pods@q1:-1,pods@q2:-2", "pods@q1:-1,pods@q2:-2"),
            ("pods@q1:-1,pods@q3:-1", "pods@q1:-1,pods@q3:-1"),
            ("pods@q1:-1,nodes@q2:-1", "pods@q1:-1,nodes@q2:-1"),
            ("fresh", "fresh"),
        ] {
            assert_eq!(long.parse::<Token>().unwrap().to_string(), short);
        }
    }

    #[test]
    fn what_is_no_token_is_an_error_that_says_why() {
        for (text, why) in [
            ("", "has no alternative"),
            ("pods@r1", "has no alternative"),
            ("pods:-1", "failed to read the choice point"),
            ("pods@q3..q1:-1", "ends before it begins"),
            ("pods@q1..r3:-1", "with another kind"),
            ("pods@q1..q99999999:-1", "more than"),
            ("pods@r1:-1,pods@r1:-2", "twice"),
            ("pods@r1:", "failed to read the alternative"),
        ] {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
