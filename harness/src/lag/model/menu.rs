//! The menus of the two common choice points: which answers a read may get, how far a stream may move.

use std::ops::RangeInclusive;

use super::Alt;

/// An alternative together with the position that realises it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offer {
    /// What the menu shows.
    pub alt: Alt,
    /// Where the stream stands if it is taken.
    pub position: usize,
}

/// The distinct answers to one read, the freshest first, each with the least position that gives it.
///
/// `positions` are those the stream may have: from where it stands to what has been received. `answer` is
/// what the read would be told at a position; what it compares is the author's claim of what the code
/// under test can see. An answer is `k` behind if `k` other answers were true after it.
///
/// That the least position will do, whatever is read next: it gives the same answer, and every later
/// position is still open from it.
///
/// ```
/// use laggard::lag::model::answers_at;
///
/// // Four positions, three answers: the read does not see what the second event changed.
/// let versions = ["v1", "v1", "v2", "v3"];
/// let offers = answers_at(0..=3, |position| versions[position]);
/// let shown: Vec<_> = offers.iter().map(|o| (o.alt.to_string(), o.position)).collect();
/// assert_eq!(shown, [("0".into(), 3), ("-1".into(), 2), ("-2".into(), 0)]);
/// ```
#[must_use]
pub fn answers_at<A: PartialEq>(
    positions: RangeInclusive<usize>,
    mut answer: impl FnMut(usize) -> A,
) -> Vec<Offer> {
    let mut distinct: Vec<(A, usize)> = Vec::new();
    for position in positions.rev() {
        let answer = answer(position);
        match distinct.iter_mut().find(|(known, _)| *known == answer) {
            Some((_, least)) => *least = position,
            None => distinct.push((answer, position)),
        }
    }
    distinct
        .into_iter()
        .enumerate()
        .map(|(older, (_, position))| Offer { alt: behind(older, false), position })
        .collect()
}

/// How far a stream may be moved at a boundary: from all the way to not at all.
///
/// `held` says that the stream was left at this `position` at the boundary before: to leave it there again
/// only continues that hold, and is free. To let go of some events and keep others opens a new hold, which
/// begins with another event.
///
/// ```
/// use laggard::lag::model::moves_at;
///
/// let costs = |held| moves_at(3, 5, held).iter().map(|o| o.alt.cost).collect::<Vec<_>>();
/// assert_eq!(costs(false), [0, 1, 1]); // to 5, to 4, stay at 3
/// assert_eq!(costs(true), [0, 1, 0]);
/// ```
#[must_use]
pub fn moves_at(position: usize, available: usize, held: bool) -> Vec<Offer> {
    (position..=available.max(position))
        .rev()
        .enumerate()
        .map(|(kept, to)| Offer { alt: behind(kept, held && to == position), position: to })
        .collect()
}

fn behind(events: usize, continues: bool) -> Alt {
    match u32::try_from(events).unwrap_or(u32::MAX) {
        0 => Alt::freshest(),
        lag if continues => Alt::still_behind(lag),
        lag => Alt::behind(lag),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_came_back_is_one_answer_and_keeps_its_least_position() {
        let versions = ["b", "a", "b", "c", "b"];
        let offers = answers_at(0..=4, |position| versions[position]);
        let shown: Vec<_> = offers.iter().map(|o| (o.alt.lag, o.alt.cost, o.position)).collect();
        assert_eq!(shown, [(0, 0, 0), (1, 1, 3), (2, 1, 1)]);
        assert_eq!(answers_at(2..=2, |_| ()).len(), 1);
    }

    #[test]
    fn to_keep_a_stream_where_it_was_held_is_free_and_to_hold_from_elsewhere_is_not() {
        let menu = |held| {
            moves_at(1, 4, held)
                .into_iter()
                .map(|o| (o.position, o.alt.lag, o.alt.cost))
                .collect::<Vec<_>>()
        };
        assert_eq!(menu(false), [(4, 0, 0), (3, 1, 1), (2, 2, 1), (1, 3, 1)]);
        assert_eq!(menu(true), [(4, 0, 0), (3, 1, 1), (2, 2, 1), (1, 3, 0)]);
    }

    #[test]
    fn a_stream_with_nothing_waiting_has_one_move() {
        assert_eq!(moves_at(4, 4, true).len(), 1);
        assert_eq!(moves_at(4, 4, true)[0].alt, Alt::freshest());
    }
}
