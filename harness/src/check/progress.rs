//! One line on a terminal that says how far a check has come.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::explore::Progress;

/// The variable that turns it off.
const SWITCH: &str = "LAGGARD_PROGRESS";

/// A person reads no faster, and a terminal costs time.
const EVERY: Duration = Duration::from_millis(100);

/// Narrower than any terminal: a line that wraps cannot be rewritten.
const WIDTH: usize = 79;

/// Back to the beginning of the line, and clear what is there.
const CLEAR: &str = "\r\x1b[K";

/// Only one check of this process shows its line at a time.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// The line of one check. It is taken away when this is dropped.
pub(super) struct Line<W: Write> {
    name: String,
    state: Mutex<State<W>>,
    /// What to give back at the end.
    claimed: Option<&'static AtomicBool>,
}

struct State<W> {
    out: W,
    last: Option<Duration>,
}

/// The line for a check with this name, if standard error is a terminal on which nobody else shows one.
pub(super) fn on_terminal(name: &str) -> Option<Arc<Line<io::Stderr>>> {
    let is_terminal = io::stderr().is_terminal();
    if !wanted(is_terminal, |name| std::env::var(name).ok()) {
        return None;
    }
    let free = SHOWN.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
    free.then(|| {
        let mut line = Line::new(name, io::stderr());
        line.claimed = Some(&SHOWN);
        Arc::new(line)
    })
}

fn wanted(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> bool {
    let is = |name, value| variable(name).is_some_and(|set| set.eq_ignore_ascii_case(value));
    is_terminal && !is(SWITCH, "off") && !is("TERM", "dumb")
}

impl<W: Write> Line<W> {
    fn new(name: &str, out: W) -> Self {
        let name = name.replace(char::is_control, " ");
        Self { name, state: Mutex::new(State { out, last: None }), claimed: None }
    }

    /// Writes the line anew, unless it was just written.
    pub(super) fn show(&self, progress: &Progress) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| progress.elapsed.saturating_sub(last) < EVERY) {
            return;
        }
        state.last = Some(progress.elapsed);
        let line = line(&self.name, progress);
        write(&mut state.out, &format!("{CLEAR}{line}"));
    }
}

impl<W: Write> Drop for Line<W> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some() {
            write(&mut state.out, CLEAR);
        }
        if let Some(claimed) = self.claimed {
            claimed.store(false, Ordering::Release);
        }
    }
}

fn write(out: &mut impl Write, text: &str) {
    // A terminal that is gone is no reason for a check to end.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn line(name: &str, progress: &Progress) -> String {
    let Progress { runs, failures, left, under_way, level, elapsed } = *progress;
    let mut counts = format!("{runs} runs");
    // Writing to a String cannot fail.
    if failures > 0 {
        let _ = write!(counts, ", {failures} failed");
    }
    let _ = write!(counts, ", {} left, level {level}", left + under_way);
    if let Some(rate) = progress.runs_per_second() {
        let _ = write!(counts, ", {rate:.0}/s");
    }
    let _ = write!(counts, ", {:.1} s", elapsed.as_secs_f64());
    let room = WIDTH.saturating_sub(counts.chars().count() + 2);
    let short: String = match name.chars().count() > room {
        true => name.chars().take(room.saturating_sub(1)).chain(['…']).collect(),
        false => name.to_owned(),
    };
    format!("{short}: {counts}").chars().take(WIDTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore::{Choices, Ending, Outcome, Search, Subject};
    use crate::lag::model::{Alt, Chooser as _, Kind, Point, PointId};

    /// A terminal that keeps what was sent to it.
    #[derive(Clone, Default)]
    struct Sent(Arc<Mutex<Vec<u8>>>);

    impl Write for Sent {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sent {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    struct Reads;

    impl Subject for Reads {
        type Record = ();
        type Error = std::convert::Infallible;

        async fn run(&self, mut choices: Choices) -> Result<Outcome<()>, Self::Error> {
            for number in 1..=3 {
                let menu = vec![Alt::freshest(), Alt::behind(1)];
                let point = Point::new(PointId::new("pods/p", Kind::Read, number), menu).unwrap();
                choices.choose(&point);
            }
            Ok(Outcome::new(Ending::Passed, ()))
        }
    }

    /// Lets a search tell the line, with a clock that goes on by so much each time it is read.
    fn shown(name: &str, tick: Duration) -> String {
        let sent = Sent::default();
        let shown = Arc::new(Line::new(name, sent.clone()));
        let ticks = std::sync::atomic::AtomicU32::new(0);
        let clock = move || tick * ticks.fetch_add(1, Ordering::Relaxed);
        let watching = Arc::clone(&shown);
        let search = Search::new().clock(clock).observe(move |progress| watching.show(progress));
        futures::executor::block_on(search.run(&Reads)).unwrap();
        drop((search, shown));
        sent.text()
    }

    #[test]
    fn the_line_is_rewritten_and_taken_away_at_the_end() {
        let text = shown("read\nown write", Duration::from_secs(1));
        let lines: Vec<_> = text.split(CLEAR).collect();
        // One for each of the seven runs with at most two of three reads stale; nothing before and after.
        assert_eq!(lines.len(), 9, "{text:?}");
        assert_eq!((lines[0], lines[8]), ("", ""));
        assert!(lines[1].starts_with("read own write: 1 runs, 3 left, level 0, "), "{text:?}");
        assert!(lines[7].starts_with("read own write: 7 runs, 0 left, level 2, "), "{text:?}");
        assert!(!text.contains('\n'), "{text:?}");
    }

    #[test]
    fn it_is_not_written_more_often_than_anybody_reads() {
        let text = shown("quick", Duration::from_millis(1));
        assert_eq!(text.matches("runs").count(), 1, "{text:?}");
    }

    #[test]
    fn a_long_name_gives_way_to_the_counts() {
        let text = shown(&"very long ".repeat(20), Duration::from_secs(1));
        for line in text.split(CLEAR).filter(|line| !line.is_empty()) {
            assert_eq!(line.chars().count(), WIDTH, "{line}");
            assert!(line.contains("…: ") && line.ends_with(" s"), "{line}");
        }
    }

    #[test]
    fn nothing_is_written_if_no_run_was_made() {
        let sent = Sent::default();
        drop(Line::new("nothing", sent.clone()));
        assert_eq!(sent.text(), "");
    }

    #[test]
    fn it_is_for_terminals_that_can_and_people_who_want() {
        let none = |_: &str| None;
        assert!(wanted(true, none));
        assert!(!wanted(false, none));
        for (variable, value) in [(SWITCH, "off"), (SWITCH, "OFF"), ("TERM", "dumb")] {
            let set = |name: &str| (name == variable).then(|| value.to_owned());
            assert!(!wanted(true, set), "{variable}={value}");
        }
    }
}
