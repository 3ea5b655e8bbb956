//! How obtaining the servers looks to a person: a running clock on a terminal, a line a step
//! elsewhere. All of it goes to standard error.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use laggard::assets::Event;

/// Decided once: a clock that moves, or plain lines.
pub(crate) struct Progress {
    on_terminal: bool,
    clock: Mutex<Option<ProgressBar>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let in_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
        Self { on_terminal: std::io::stderr().is_terminal() && !in_ci, clock: Mutex::new(None) }
    }

    pub(crate) fn show(&self, event: &Event) {
        match event {
            Event::Found { binary, path } => {
                say(&format!("found   {binary} at {}", path.display()))
            }
            Event::Waiting { version, holder, doing } => {
                let holder = holder.map_or_else(String::new, |pid| format!(" (process {pid})"));
                let doing = if doing.is_empty() { "has it" } else { doing };
                self.begin(
                    &format!(
                        "waiting for another process{holder} with Kubernetes {version}: it {doing}"
                    ),
                    None,
                );
            }
            Event::Damaged { path, problem } => {
                say(&format!("damaged {}: {problem}", path.display()));
            }
            Event::Downloading { what, url } => {
                self.begin(&format!("downloading {what} from {url}"), None);
            }
            Event::Progress { what, received_bytes, total_bytes } => {
                self.advance(what, *received_bytes, *total_bytes);
            }
            Event::Retrying { what, problem, after } => {
                self.finish();
                say(&format!("{what}: {problem}; another try in {:.1} s", after.as_secs_f64()));
            }
            Event::Downloaded { what, took } => {
                self.finish();
                say(&format!("downloaded {what} in {}", seconds(*took)));
            }
            Event::NotDownloaded { problem } => {
                self.finish();
                say(&format!("not downloaded: {problem}"));
            }
            Event::Building { binary, version, number, of, usual } => {
                self.begin(
                    &format!("building {binary} {version} ({number} of {of})"),
                    Some(*usual),
                );
            }
            Event::Built { binary, took } => {
                self.finish();
                say(&format!("built   {binary} in {}", seconds(*took)));
            }
            _ => {}
        }
    }

    /// Takes the clock away.
    pub(crate) fn finish(&self) {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(clock) = clock.take() {
            clock.finish_and_clear();
        }
    }

    /// On a terminal alone: a log wants no line a quarter of a second.
    fn advance(&self, what: &str, received_bytes: u64, total_bytes: Option<u64>) {
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(clock) = clock.as_ref() {
            let total =
                total_bytes.map_or_else(String::new, |total| format!(" of {}", megabytes(total)));
            clock.set_message(format!("downloading {what}: {}{total}", megabytes(received_bytes)));
        }
    }

    fn begin(&self, what: &str, usual: Option<Duration>) {
        self.finish();
        let about = usual.map_or_else(String::new, |usual| {
            format!("; about {} on two cores with nothing cached", seconds(usual))
        });
        if !self.on_terminal {
            say(&format!("{what}{about}"));
            return;
        }
        let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed_precise}");
        let clock = ProgressBar::new_spinner()
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
            .with_message(format!("{what}{about}"));
        clock.enable_steady_tick(Duration::from_millis(200));
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock);
    }
}

/// Standard error is for people.
#[expect(clippy::print_stderr, reason = "this is the program talking to a person")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..90 => format!("{seconds} s"),
        _ => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}
