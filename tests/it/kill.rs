//! A test process that is killed, at any moment, leaves nothing behind.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use laggard::plane::BackendKind;

use crate::backends::is_available;

/// What the promise allows; normally it takes some 30 ms.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// A moment to kill at: so long after the n-th time that the victim said a word.
#[derive(Clone, Copy, Debug)]
struct Moment {
    word: &'static str,
    nth: usize,
    after: Duration,
    whole_group: bool,
}

impl Moment {
    fn new(word: &'static str, nth: usize, micros: u64) -> Self {
        let after = Duration::from_micros(micros);
        Self { word, nth, after, whole_group: micros.is_multiple_of(2) }
    }
}

/// Twenty moments over start, run and stop, with the first two milliseconds after each spawn.
fn moments_of_processes() -> Vec<Moment> {
    let moment = Moment::new;
    vec![
        moment("start", 1, 0),
        moment("start", 1, 700),
        moment("started", 1, 0),
        moment("started", 1, 301),
        moment("started", 1, 800),
        moment("started", 1, 1_501),
        moment("started", 2, 0),
        moment("started", 2, 501),
        moment("started", 2, 1_000),
        moment("started", 2, 1_901),
        moment("started", 2, 20_000),
        moment("started", 2, 150_001),
        moment("started", 2, 600_000),
        moment("up", 1, 0),
        moment("up", 1, 2_001),
        moment("stop", 1, 0),
        moment("stop", 1, 1_001),
        moment("stop", 1, 10_000),
        moment("stop", 1, 30_001),
        moment("start", 2, 1_000),
    ]
}

/// The same where a server takes the engine a quarter of a second: between the requests, too.
fn moments_of_containers() -> Vec<Moment> {
    let moment = Moment::new;
    vec![
        moment("start", 1, 0),
        moment("start", 1, 5_001),
        moment("start", 1, 20_000),
        moment("start", 1, 50_001),
        moment("start", 1, 90_000),
        moment("start", 1, 140_001),
        moment("start", 1, 200_000),
        moment("start", 1, 280_001),
        moment("start", 1, 360_000),
        moment("started", 1, 0),
        moment("started", 1, 1_001),
        moment("started", 1, 60_000),
        moment("started", 2, 0),
        moment("started", 2, 1_501),
        moment("started", 2, 300_000),
        moment("up", 1, 1_001),
        moment("stop", 1, 0),
        moment("stop", 1, 40_001),
        moment("stop", 1, 150_000),
        moment("start", 2, 100_001),
    ]
}

/// As many moments as asked for: the list, and then the same words at times that no list has
/// thought of.
fn moments(mut listed: Vec<Moment>) -> Vec<Moment> {
    let count = count();
    let mut seed = u64::from(std::process::id());
    while listed.len() < count {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = ["start", "started", "up", "stop"][usize::try_from(seed >> 62).unwrap_or(0)];
        let limit = if word == "up" || word == "stop" { 80_000 } else { 1_500_000 };
        listed.push(Moment::new(word, 1, (seed >> 20) % limit));
    }
    listed.truncate(count);
    listed
}

fn count() -> usize {
    match std::env::var("LAGGARD_KILL_MOMENTS") {
        Ok(text) => text.parse().expect("LAGGARD_KILL_MOMENTS is a number"),
        Err(_) => 20,
    }
}

#[test]
fn a_killed_process_leaves_no_server_and_no_key() -> Result<()> {
    kill_at_each(moments(moments_of_processes()), "process", |place, _| {
        let mut left = processes_in(place)?;
        left.extend(files_in(&place.join(planes()))?);
        Ok(left)
    })
}

#[tokio::test]
async fn a_killed_process_leaves_no_container() -> Result<()> {
    if !is_available(BackendKind::Container).await? {
        return Ok(());
    }
    kill_at_each(moments(moments_of_containers()), "container", |_, victim| {
        labelled(victim, &["ps", "--all", "--format", "{{.Label \"laggard.owner\"}} {{.Names}}"])
    })
}

/// Kills a victim at each moment, and waits until nothing of it is left; at the end it looks again
/// at all of them, for what a request that was under way made late.
#[expect(clippy::print_stdout, reason = "a figure for whoever runs this with --nocapture")]
fn kill_at_each(
    moments: Vec<Moment>,
    backend: &str,
    left: impl Fn(&Path, u32) -> Result<Vec<String>>,
) -> Result<()> {
    let mut slowest = Duration::ZERO;
    let mut victims = Vec::new();
    for moment in moments {
        let place = tempfile::tempdir()?;
        let mut victim = Victim::start(place.path(), backend)?;
        victim.kill_at(moment).with_context(|| format!("{moment:?}"))?;
        let begun = Instant::now();
        loop {
            let left = left(place.path(), victim.child.id())?;
            if left.is_empty() {
                break;
            }
            ensure!(
                begun.elapsed() < GONE_WITHIN,
                "killed at {moment:?}; {GONE_WITHIN:?} later this is left: {left:#?}"
            );
            std::thread::yield_now();
        }
        slowest = slowest.max(begun.elapsed());
        victims.push((moment, place, victim.child.id()));
    }
    if backend == "container" {
        // A request may still be under way in the engine when its sender is killed, and what it
        // makes comes late. So look again when the promise falls due, and not before.
        std::thread::park_timeout(GONE_WITHIN);
    }
    for (moment, place, victim) in victims {
        let late = left(place.path(), victim)?;
        ensure!(late.is_empty(), "killed at {moment:?}; {GONE_WITHIN:?} later: {late:#?}");
    }
    println!("nothing left; the slowest clean-up took {slowest:?}");
    Ok(())
}

/// What the engine lists of this owner's.
fn labelled(owner: u32, arguments: &[&str]) -> Result<Vec<String>> {
    let output = Command::new("docker").args(arguments).output().context("run docker")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let owner = format!("{owner}:");
    let lines = String::from_utf8_lossy(&output.stdout);
    Ok(lines.lines().filter(|line| line.starts_with(&owner)).map(str::to_owned).collect())
}

fn planes() -> String {
    format!("laggard-{}/planes", rustix::process::getuid().as_raw())
}

/// A process of its own that does nothing but start and stop planes.
struct Victim {
    child: Child,
    words: BufReader<ChildStdout>,
}

impl Victim {
    fn start(place: &Path, backend: &str) -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_victim"))
            .env("TMPDIR", place)
            .env("LAGGARD_BACKEND", backend)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the victim")?;
        let words = BufReader::new(child.stdout.take().context("the victim has no output")?);
        Ok(Self { child, words })
    }

    fn kill_at(&mut self, moment: Moment) -> Result<()> {
        let mut heard = 0;
        while heard < moment.nth {
            let mut word = String::new();
            let read = self.words.read_line(&mut word)?;
            ensure!(read > 0, "the victim ended by itself: {:?}", self.child.wait()?);
            if word.trim() == moment.word {
                heard += 1;
            }
        }
        // The moment is the point, so this waits for no event; a spin, since sleeping is coarse.
        let begun = Instant::now();
        while begun.elapsed() < moment.after {
            std::hint::spin_loop();
        }
        if moment.whole_group {
            let pid = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process_group(pid, rustix::process::Signal::KILL)?;
        } else {
            self.child.kill()?;
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every process that works in the place, or has it in its command line: servers and watchers.
fn processes_in(place: &Path) -> Result<Vec<String>> {
    let place = place.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let directory = fs::read_link(entry.path().join("cwd"));
        let directory = directory.map(|path| path.to_string_lossy().into_owned());
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if directory.is_ok_and(|directory| directory.starts_with(&place))
            || command.contains(&place)
        {
            found.push(format!("{name} {command}"));
        }
    }
    Ok(found)
}

/// Every file below a directory: keys above all, but nothing else either.
fn files_in(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return Ok(found) };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_in(&entry.path())?),
            _ => found.push(entry.path().display().to_string()),
        }
    }
    Ok(found)
}
