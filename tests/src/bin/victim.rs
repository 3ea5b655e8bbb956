//! A process that starts, uses and stops planes until somebody kills it; for the tests of that.
//!
//! Says on standard output what it is about to do, a word a line, so that a test can choose its
//! moment: `start`, `started` (a server was spawned), `up`, `stop`, `down`.

use std::io::Write as _;

use anyhow::Result;
use laggard::Plane;
use laggard::plane::Controller;
use tracing_subscriber::fmt::MakeWriter;

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter("laggard=debug")
        .with_ansi(false)
        .with_writer(Started)
        .init();
    let controllers = std::env::args().any(|argument| argument == "--controllers");
    loop {
        say("start");
        let mut builder = Plane::builder();
        if controllers {
            builder = builder.controllers([Controller::StatefulSet]);
        }
        let plane = builder.start().await?;
        say("up");
        plane.namespace("victim").await?;
        say("stop");
        plane.stop().await?;
        say("down");
    }
}

fn say(word: &str) {
    let mut output = std::io::stdout().lock();
    // Nobody reads any more once the test has killed this process, or is gone itself.
    if writeln!(output, "{word}").and_then(|()| output.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Turns the library's event of a spawn into the word `started`.
struct Started;

impl MakeWriter<'_> for Started {
    type Writer = Started;

    fn make_writer(&self) -> Started {
        Started
    }
}

impl std::io::Write for Started {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        if text.contains("started") {
            say("started");
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
