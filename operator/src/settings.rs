//! What can be set about the operator: intervals, limits, images, and the clock.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// All settings; [`Default`] is what production uses.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Between two looks at a task that waits. Default 5 s.
    pub task_poll: Duration,
    /// Between two passes over a node that needs nothing. Default 30 s.
    pub steady_state: Duration,
    /// When something is to go on at once. Default 1 ms.
    pub immediately: Duration,
    /// How long no plan is built after a failed one. Default 30 s.
    pub hold_off: Duration,
    /// How long a health check of a sidecar may take. Default 2 s.
    pub probe_timeout: Duration,
    /// How long any other call of a sidecar may take. Default 10 s.
    pub sidecar_timeout: Duration,
    /// How long a request to the API server may take. Default 10 s.
    pub api_timeout: Duration,
    /// What the platform gives every node.
    pub platform: Platform,
    /// Where the time comes from. Default the wall clock.
    pub clock: Clock,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            task_poll: Duration::from_secs(5),
            steady_state: Duration::from_secs(30),
            immediately: Duration::from_millis(1),
            hold_off: Duration::from_secs(30),
            probe_timeout: Duration::from_secs(2),
            sidecar_timeout: Duration::from_secs(10),
            api_timeout: Duration::from_secs(10),
            platform: Platform::default(),
            clock: Clock::default(),
        }
    }
}

/// What the platform gives every node.
#[derive(Clone, Debug)]
pub struct Platform {
    /// The image of the sidecar, where a node does not name one.
    pub sidecar_image: String,
}

impl Default for Platform {
    fn default() -> Self {
        Self { sidecar_image: "sei.io/sidecar:latest".to_owned() }
    }
}

/// Where the time comes from; a test hands in its own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock that asks this function.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time now, cut to whole seconds as the API server keeps it.
    #[must_use]
    pub fn now(&self) -> Time {
        let seconds = (self.0)().as_second();
        Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Timestamp::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
