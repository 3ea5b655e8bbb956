//! The points at which a run could have gone another way, and who is asked there.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Label, PointId};

/// Decides what happens at each point of a run.
///
/// Whoever runs the code under test makes the menu and asks; it never decides by itself. So the same
/// engine is driven by a search, a replay, or a random walk.
pub trait Chooser: Send {
    /// The index of the chosen alternative in the menu of `point`. An index past the end of the menu is
    /// an error of the chooser; whoever asks takes the freshest alternative then.
    fn choose(&mut self, point: &Point) -> usize;
}

/// Takes the freshest alternative everywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Freshest;

impl Chooser for Freshest {
    fn choose(&mut self, _point: &Point) -> usize {
        0
    }
}

/// A moment at which a run can go on in more than one way.
///
/// ```
/// use laggard::lag::model::{Alt, Kind, Point, PointId};
///
/// let id = PointId::new("statefulsets/n0", Kind::Read, 2);
/// let point = Point::new(id, vec![Alt::freshest(), Alt::behind(1)])?;
/// assert_eq!(point.to_string(), "statefulsets/n0@r2 {0 -1}");
/// assert_eq!(point.menu()[1].cost, 1);
/// # Ok::<(), laggard::lag::model::MenuError>(())
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "UncheckedPoint")]
pub struct Point {
    id: PointId,
    menu: Vec<Alt>,
}

impl Point {
    /// A point with this menu, whose first alternative is the freshest.
    ///
    /// # Errors
    /// [`MenuError`] if the menu is empty, its first alternative costs something, or two alternatives
    /// have one label.
    pub fn new(id: PointId, menu: Vec<Alt>) -> Result<Self, MenuError> {
        let problem = match menu.first() {
            None => Some("it is empty".to_owned()),
            Some(first) if first.cost > 0 => Some(format!("its first alternative {first} costs")),
            Some(_) => menu
                .iter()
                .enumerate()
                .find(|(index, alt)| menu[..*index].iter().any(|other| other.label == alt.label))
                .map(|(_, alt)| format!("it has {alt} twice")),
        };
        match problem {
            Some(problem) => Err(MenuError { id, problem }),
            None => Ok(Self { id, menu }),
        }
    }

    /// What it is called.
    #[must_use]
    pub fn id(&self) -> &PointId {
        &self.id
    }

    /// What is decided there.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.id.kind()
    }

    /// The alternatives, the freshest first; at least one.
    #[must_use]
    pub fn menu(&self) -> &[Alt] {
        &self.menu
    }

    /// The index of the alternative with this label.
    #[must_use]
    pub fn position_of(&self, label: &Label) -> Option<usize> {
        self.menu.iter().position(|alt| alt.label == *label)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {{", self.id)?;
        for (index, alt) in self.menu.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{}", alt.label)?;
        }
        f.write_str("}")
    }
}

#[derive(Deserialize)]
struct UncheckedPoint {
    id: PointId,
    menu: Vec<Alt>,
}

impl TryFrom<UncheckedPoint> for Point {
    type Error = MenuError;

    fn try_from(unchecked: UncheckedPoint) -> Result<Self, MenuError> {
        Self::new(unchecked.id, unchecked.menu)
    }
}

/// A menu that offers no sensible choice.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("failed to make the menu of {id}: {problem}")]
pub struct MenuError {
    id: PointId,
    problem: String,
}

/// One way to go on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Alt {
    /// What it is called in a token; unique within its menu.
    pub label: Label,
    /// What it takes from the budget of its kind: 0 for the freshest and for what only continues an
    /// earlier choice, 1 for a stale read, or for a hold that opens here.
    pub cost: u8,
    /// How many events (of the answer, or of the stream) it stays behind the freshest.
    pub lag: u32,
}

impl Alt {
    /// Nothing is held back: label `0`, free.
    #[must_use]
    pub fn freshest() -> Self {
        Self { label: Label::new("0"), cost: 0, lag: 0 }
    }

    /// `lag` events behind: label `-lag`, cost 1.
    #[must_use]
    pub fn behind(lag: u32) -> Self {
        Self { label: Label::new(&format!("-{lag}")), cost: 1, lag }
    }

    /// `lag` events behind, as a choice made earlier already had it: label `-lag`, free.
    #[must_use]
    pub fn still_behind(lag: u32) -> Self {
        Self { cost: 0, ..Self::behind(lag) }
    }

    /// Something else than a lag, such as an actor's step or a crash.
    #[must_use]
    pub fn other(label: &str, cost: u8) -> Self {
        Self { label: Label::new(label), cost, lag: 0 }
    }
}

impl fmt::Display for Alt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label.fmt(f)
    }
}

/// What is decided at a point.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// Which answer a cached read (or a flipped live read) gets: `r`.
    Read,
    /// How far a stream moves before the reply to a request is handed back: `q`.
    Boundary,
    /// Which trigger is delivered next: `t`.
    Trigger,
    /// Which position an initial list shows: `i`.
    Init,
    /// Whether another actor commits its next step: `e`.
    Environment,
    /// Whether the process ends here, or a request or its reply is lost: `f`.
    Fault,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Read, Self::Boundary, Self::Trigger, Self::Init, Self::Environment, Self::Fault];

    /// Whether an alternative that costs something here makes a view old. The others change what
    /// happens, not what is seen of it.
    #[must_use]
    pub fn is_staleness(self) -> bool {
        matches!(self, Self::Read | Self::Boundary | Self::Trigger | Self::Init)
    }

    pub(super) fn letter(self) -> char {
        match self {
            Self::Read => 'r',
            Self::Boundary => 'q',
            Self::Trigger => 't',
            Self::Init => 'i',
            Self::Environment => 'e',
            Self::Fault => 'f',
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Boundary => "boundary",
            Self::Trigger => "trigger",
            Self::Init => "initial list",
            Self::Environment => "environment",
            Self::Fault => "fault",
        })
    }
}

/// A point as it was met in a run, and what was taken there.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Chosen {
    /// The point.
    pub point: Point,
    /// The index in its menu.
    pub taken: usize,
}

impl Chosen {
    /// The alternative that was taken; the freshest if the index is past the end.
    #[must_use]
    pub fn alternative(&self) -> &Alt {
        self.point.menu.get(self.taken).unwrap_or(&self.point.menu[0])
    }

    /// Whether another one than the first was taken.
    #[must_use]
    pub fn is_deviation(&self) -> bool {
        self.taken > 0
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.point.id, self.alternative().label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_menu_without_a_free_first_alternative_is_refused() {
        let id = || PointId::new("pods", Kind::Read, 1);
        assert!(Point::new(id(), vec![]).is_err());
        assert!(Point::new(id(), vec![Alt::behind(1)]).is_err());
        let twice = vec![Alt::freshest(), Alt::behind(1), Alt::still_behind(1)];
        let error = Point::new(id(), twice).unwrap_err().to_string();
        assert_eq!(error, "failed to make the menu of pods@r1: it has -1 twice");
        let json = r#"{"id":"pods@r1","menu":[]}"#;
        assert!(serde_json::from_str::<Point>(json).is_err(), "the check holds for read text too");
    }
}
