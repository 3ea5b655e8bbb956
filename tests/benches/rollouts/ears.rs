//! What the library tells about its runs by way of `tracing`, kept as plain data.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Where the time of a run went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    pub(crate) namespace: String,
    pub(crate) world: Duration,
    pub(crate) process: Duration,
    pub(crate) judge: Duration,
    pub(crate) leave: Duration,
}

impl Times {
    pub(crate) fn whole(&self) -> Duration {
        self.world + self.process + self.judge + self.leave
    }
}

/// A request of a process or an actor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) method: String,
    pub(crate) uri: String,
    pub(crate) content_type: Option<String>,
    pub(crate) body: Option<String>,
}

/// Hears of runs, and, where it is asked to, of requests.
#[derive(Clone, Default)]
pub(crate) struct Ears {
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) runs: Vec<Times>,
    pub(crate) sent: Vec<Sent>,
}

impl Ears {
    /// Listens in this process from now on; to be called once.
    pub(crate) fn listen() -> Self {
        let ears = Self::default();
        let targets = tracing_subscriber::filter::Targets::new()
            .with_target("laggard::run", tracing::Level::DEBUG)
            .with_target("laggard::sent", tracing::Level::TRACE);
        let words = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        tracing_subscriber::registry()
            .with(ears.clone().with_filter(targets))
            .with(words.with_filter(tracing_subscriber::EnvFilter::from_default_env()))
            .init();
        ears
    }

    /// What was heard since the last time.
    pub(crate) fn take(&self) -> Heard {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The requests that were heard since the last time.
    pub(crate) fn take_sent(&self) -> Vec<Sent> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut heard.sent)
    }
}

impl<S: Subscriber> Layer<S> for Ears {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match event.metadata().target() {
            "laggard::run" => {
                let mut times = Times::default();
                event.record(&mut times);
                heard.runs.push(times);
            }
            _ => {
                let mut sent = Sent::default();
                event.record(&mut sent);
                heard.sent.push(sent);
            }
        }
    }
}

impl Visit for Times {
    fn record_u64(&mut self, field: &Field, value: u64) {
        let value = Duration::from_micros(value);
        match field.name() {
            "world" => self.world = value,
            "process" => self.process = value,
            "judge" => self.judge = value,
            "leave" => self.leave = value,
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "namespace" {
            value.clone_into(&mut self.namespace);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

impl Visit for Sent {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "content_type" => self.content_type = Some(value.to_owned()),
            "body" => self.body = Some(value.to_owned()),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "method" => self.method = format!("{value:?}"),
            "uri" => self.uri = format!("{value:?}"),
            _ => {}
        }
    }
}
